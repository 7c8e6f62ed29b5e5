output "inventory" {
  description = "The list of hosts, for cluster.inventory."
  value       = "${terraform_data.hosts.output.folder}/inventory.yaml"
}
