output "next" {
  description = "What to type next."
  value       = "make recipe-pytorch ARGS=\"cluster=kubernetes cluster.context=${var.context} cluster.namespace=${var.namespace} cluster.image=REGISTRY/cookbook-pytorch:0.1.0\" (images/README.md: how to build one)"
}
