output "hosts" {
  description = "For the inventory: the workers, in order."
  value = [for index, instance in aws_instance.worker : {
    name    = "worker${index + 1}"
    address = instance.private_ip
    slots   = var.slots_per_worker != null ? var.slots_per_worker : max(1, local.gpus_per_worker)
    gpus    = local.gpus_per_worker
  }]
}

output "ssh" {
  description = "For the inventory."
  value       = { user = "ubuntu" }
}

output "head" {
  description = "Where the driver runs: its instance and address."
  value       = { id = aws_instance.head.id, address = aws_instance.head.private_ip }
}

output "bootstrap" {
  description = "Where each machine says how its bootstrap ended: infra-up waits for it."
  value = {
    bucket = aws_s3_bucket.data.bucket
    hosts  = merge({ head = aws_instance.head.id }, { for index, instance in aws_instance.worker : "worker${index + 1}" => instance.id })
  }
}

output "bastion" {
  description = "Public address of the bastion, if there is one."
  value       = one(aws_instance.bastion[*].public_ip)
}

output "bucket" {
  description = "For data and checkpoints."
  value       = aws_s3_bucket.data.bucket
}

output "shared" {
  description = "The folder that all hosts see, if there is one."
  value       = var.shared_gb == null ? null : "/shared"
}

output "expires" {
  description = "When all machines are terminated, UTC."
  value       = local.expires
}

output "cost_usd" {
  description = "What everything costs until it expires, in US dollars: an estimate of prices.yaml."
  value       = local.cost_usd
}
