# Hosts on this machine (hosts.py): network namespaces as root, sshd processes on loopback else. No provider is downloaded.
terraform {
  backend "local" {} # where: the driver says so, or S3 (infra.state)
  required_version = ">= 1.4"
}

resource "terraform_data" "hosts" {
  # Destruction sees no variables: what it needs is kept here.
  input = {
    script = "${path.module}/hosts.py"
    folder = abspath(var.folder)
  }
  triggers_replace = [var.num_hosts, var.slots, abspath(var.folder)]

  provisioner "local-exec" {
    command = "python3 '${self.input.script}' up '${self.input.folder}' --num-hosts ${var.num_hosts} --slots ${var.slots}"
  }

  provisioner "local-exec" {
    when    = destroy
    command = "python3 '${self.input.script}' down '${self.input.folder}'"
  }
}
