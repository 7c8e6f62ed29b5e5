output "expires" {
  description = "When the cluster is deleted, UTC."
  value       = local.expires
}

output "next" {
  description = "What to type next."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.main.name} --zone ${var.zone} --project ${var.project}; make infra-up TARGET=kubernetes ARGS=\"infra.variables.context=gke_${var.project}_${var.zone}_${var.name} infra.variables.filestore_network=${google_compute_network.main.name} infra.variables.storage_size=1Ti infra.variables.device_plugin=false\""
}
