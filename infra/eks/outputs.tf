output "file_system" {
  description = "The shared disk: infra.variables.efs_file_system of TARGET=kubernetes."
  value       = aws_efs_file_system.shared.id
}

output "expires" {
  description = "When nodes and cluster are deleted, UTC."
  value       = local.expires
}

output "next" {
  description = "What to type next."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${var.name} --alias ${var.name}; make infra-up TARGET=kubernetes ARGS=\"infra.variables.context=${var.name} infra.variables.efs_file_system=${aws_efs_file_system.shared.id}\""
}

output "cost_usd" {
  description = "What everything costs until it expires, in US dollars: an estimate of prices.yaml."
  value       = local.cost_usd
}
