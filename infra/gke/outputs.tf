output "expires" {
  description = "When the cluster is deleted, UTC."
  value       = local.expires
}

output "next" {
  description = "What to type next."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.main.name} --zone ${var.zone} --project ${var.project}; make infra-up TARGET=kubernetes ARGS=\"infra.variables.context=gke_${var.project}_${var.zone}_${var.name} infra.variables.filestore_network=${google_compute_network.main.name} infra.variables.storage_size=${var.shared_gb}Gi infra.variables.device_plugin=false\""
}

output "cost_usd" {
  description = "What everything costs until it expires, in US dollars: an estimate of prices.yaml."
  value       = local.cost_usd
}
