output "hosts" {
  description = "For the inventory: the workers, in order."
  value = [for number in range(var.num_workers) : {
    name    = "worker${number + 1}"
    address = google_compute_instance.host["worker${number + 1}"].network_interface[0].network_ip
    slots   = var.slots_per_worker != null ? var.slots_per_worker : max(1, local.gpus_per_worker)
    gpus    = local.gpus_per_worker
  }]
}

output "ssh" {
  description = "For the inventory; OS Login gives each user a name of its own."
  value       = {}
}

output "bucket" {
  description = "For data and checkpoints."
  value       = google_storage_bucket.data.url
}

output "shared" {
  description = "The folder that all hosts see, if there is one."
  value       = var.shared_gb == null ? null : "/shared"
}

output "tpu" {
  description = "Name of the TPU VM, if there is one."
  value       = one(google_tpu_v2_vm.main[*].name)
}

output "expires" {
  description = "When all machines are deleted, UTC."
  value       = local.expires
}

output "cost_usd" {
  description = "What everything costs until it expires, in US dollars: an estimate of prices.yaml."
  value       = local.cost_usd
}

output "bootstrap" {
  description = "Where each machine says how its bootstrap ended: infra-up waits for it."
  value       = { zone = var.zone, hosts = { for name, machine in google_compute_instance.host : name => machine.name } }
}
