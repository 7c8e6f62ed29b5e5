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

# Spark, Dask and Ray clusters that stay up on them, for run after run (cookbook/tools/services.py).
resource "terraform_data" "service" {
  for_each = toset(var.services)

  input = {
    python = var.python
    root   = abspath("${path.module}/../..")
    folder = terraform_data.hosts.output.folder
    name   = each.key
  }
  triggers_replace = [terraform_data.hosts.id, each.key]

  provisioner "local-exec" {
    command     = "'${self.input.python}' -m cookbook.tools.services up '${self.input.folder}' ${self.input.name}"
    working_dir = self.input.root
  }

  provisioner "local-exec" {
    when        = destroy
    on_failure  = continue # the hosts' end is also theirs
    command     = "'${self.input.python}' -m cookbook.tools.services down '${self.input.folder}' ${self.input.name}"
    working_dir = self.input.root
  }
}
