locals {
  tags    = { "distributed-ml" = var.name }
  expires = timeadd(var.created, "${var.ttl_hours}h")
  gpus = {
    "g4dn.xlarge" = 1, "g4dn.12xlarge" = 4, "g5.xlarge" = 1, "g5.2xlarge" = 1, "g5.12xlarge" = 4, "g5.48xlarge" = 8,
    "g6.xlarge"   = 1, "g6.12xlarge" = 4, "p3.2xlarge" = 1, "p3.8xlarge" = 4, "p4d.24xlarge" = 8, "p5.48xlarge" = 8,
  }
  gpus_per_worker = lookup(local.gpus, var.worker_type, 0)
  bastion_gb      = min(var.volume_gb, 100)
  # Network cards with EFA of a type: the exchange is only as fast as the cards that are used.
  efa_cards = {
    "g4dn.12xlarge" = 1, "g5.12xlarge" = 1, "g5.48xlarge" = 1, "g6.12xlarge" = 1, "p4d.24xlarge" = 4, "p5.48xlarge" = 32,
  }
  cards = { head = 1, worker = var.efa ? lookup(local.efa_cards, var.worker_type, 1) : 1 }
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

# The newest image of the day on which the set was made: a newer one must not replace machines. Another ami_id does.
resource "terraform_data" "image" {
  input            = var.ami_id != null ? var.ami_id : data.aws_ssm_parameter.ami[0].value
  triggers_replace = [var.ami_id]
  lifecycle {
    ignore_changes = [input]
  }
}

resource "aws_key_pair" "hosts" {
  count      = var.public_key == null ? 0 : 1
  key_name   = var.name
  public_key = var.public_key
}

resource "aws_placement_group" "workers" {
  count    = var.placement_group ? 1 : 0
  name     = var.name
  strategy = "cluster"
}

resource "aws_launch_template" "host" {
  for_each               = { head = var.head_type, worker = var.worker_type }
  name                   = "${var.name}-${each.key}"
  image_id               = terraform_data.image.output
  instance_type          = each.value
  key_name               = var.public_key == null ? null : aws_key_pair.hosts[0].key_name
  update_default_version = true
  # Ends itself, too, should the schedule fail.
  instance_initiated_shutdown_behavior = "terminate"
  # Nothing here knows when the machines expire: they read it from their tag, so that a longer ttl_hours replaces none.
  user_data = base64encode(join("\n", [
    "#!/bin/bash",
    "export CLOUD=aws REGION='${var.region}' BUCKET='${aws_s3_bucket.data.bucket}' REPOSITORY='${var.repository == null ? "" : var.repository}'",
    # Options: "Mounting with NFS" in the documentation of EFS.
    "export SHARED='${var.shared_gb == null ? "" : "${aws_efs_file_system.shared[0].id}.efs.${var.region}.amazonaws.com:/"}'",
    "export SHARED_BY='nfs4 nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,_netdev'",
    "export GPUS=${each.key == "worker" ? local.gpus_per_worker : 0}",
    file("${path.module}/../bootstrap.sh"),
  ]))

  iam_instance_profile {
    arn = aws_iam_instance_profile.host.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled" # one of them says when the machine expires
  }

  block_device_mappings {
    device_name = "/dev/sda1"
    ebs {
      volume_size           = var.volume_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # The first card also carries IP; the others carry nothing but EFA. ("EFA interfaces" in the documentation of EC2.)
  dynamic "network_interfaces" {
    for_each = range(local.cards[each.key])
    content {
      network_card_index = network_interfaces.value
      device_index       = network_interfaces.value == 0 ? 0 : 1
      subnet_id          = aws_subnet.private.id
      security_groups    = [aws_security_group.hosts.id]
      # EC2 takes no word about public addresses for a machine of several cards: it gets none.
      associate_public_ip_address = local.cards[each.key] == 1 ? false : null
      interface_type              = !var.efa || each.key == "head" ? null : network_interfaces.value == 0 ? "efa" : "efa-only"
      delete_on_termination       = true
    }
  }

  dynamic "instance_market_options" {
    for_each = each.key == "worker" && var.market != "on-demand" ? [var.market] : []
    content {
      market_type = instance_market_options.value
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.key == "worker" && var.market == "capacity-block" ? [var.capacity_reservation_id] : []
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  dynamic "placement" {
    for_each = each.key == "worker" && var.placement_group ? [aws_placement_group.workers[0].name] : []
    content {
      group_name = placement.value
    }
  }
}

resource "aws_instance" "head" {
  # checkov:skip=CKV_AWS_126:detailed monitoring costs by the metric; a training says itself how fast it is
  ami                  = terraform_data.image.output
  iam_instance_profile = aws_iam_instance_profile.host.name
  ebs_optimized        = true
  # As in the launch template; said here, too, so that it holds whatever becomes of that.
  metadata_options {
    http_endpoint          = "enabled"
    http_tokens            = "required"
    instance_metadata_tags = "enabled"
  }
  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = var.volume_gb
  }
  instance_type = var.head_type
  tags          = { Name = "${var.name}-head", expires = local.expires }
  launch_template {
    id      = aws_launch_template.host["head"].id
    version = aws_launch_template.host["head"].latest_version
  }
  lifecycle {
    # The bootstrap runs once: another text of it must not stop a machine that runs.
    ignore_changes = [user_data]
  }
  # Its bootstrap fetches packages as soon as the machine is up, and it is never without an end.
  depends_on = [
    aws_scheduler_schedule.expiry, aws_route.nat, aws_route.out, aws_route_table_association.private,
    aws_route_table_association.public, aws_vpc_endpoint.s3, aws_vpc_endpoint.ssm, aws_security_group_rule.out,
    aws_security_group_rule.apt, aws_iam_role_policy.host, aws_iam_role_policy_attachment.ssm,
    aws_efs_mount_target.shared
  ]
}

resource "aws_instance" "worker" {
  # checkov:skip=CKV_AWS_126:detailed monitoring costs by the metric; a training says itself how fast it is
  count                = var.num_workers
  ami                  = terraform_data.image.output
  iam_instance_profile = aws_iam_instance_profile.host.name
  ebs_optimized        = true
  # As in the launch template; said here, too, so that it holds whatever becomes of that.
  metadata_options {
    http_endpoint          = "enabled"
    http_tokens            = "required"
    instance_metadata_tags = "enabled"
  }
  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = var.volume_gb
  }
  instance_type = var.worker_type
  tags          = { Name = "${var.name}-worker${count.index + 1}", expires = local.expires }
  launch_template {
    id      = aws_launch_template.host["worker"].id
    version = aws_launch_template.host["worker"].latest_version
  }
  # Its bootstrap fetches packages as soon as the machine is up, and it is never without an end.
  depends_on = [
    aws_scheduler_schedule.expiry, aws_route.nat, aws_route.out, aws_route_table_association.private,
    aws_route_table_association.public, aws_vpc_endpoint.s3, aws_vpc_endpoint.ssm, aws_security_group_rule.out,
    aws_security_group_rule.apt, aws_iam_role_policy.host, aws_iam_role_policy_attachment.ssm,
    aws_efs_mount_target.shared
  ]
  lifecycle {
    # The bootstrap runs once: another text of it must not stop a machine that runs.
    ignore_changes = [user_data]
    precondition {
      condition     = var.public_key != null
      error_message = "public_key is not set: the driver on the head reaches the workers by ssh. `ssh-keygen -t ed25519` makes a key; give the content of its .pub file."
    }
    precondition {
      condition     = var.nat || var.ami_id != null
      error_message = "nat = false: the machines cannot install anything; then ami_id must be an image that has all of it."
    }
    precondition {
      condition     = var.market != "capacity-block" || (var.capacity_reservation_id != null && var.zone != null)
      error_message = "market = capacity-block needs capacity_reservation_id, the block that was bought, and zone, where it is."
    }
    precondition {
      condition     = !var.efa || contains(keys(local.efa_cards), var.worker_type)
      error_message = "efa: ${var.worker_type} has none, or main.tf does not know how many cards; it knows ${join(", ", keys(local.efa_cards))}."
    }
  }
}

resource "aws_instance" "bastion" {
  # checkov:skip=CKV_AWS_126:detailed monitoring costs by the metric; nothing happens here but ssh
  # checkov:skip=CKV_AWS_88:a bastion is what has a public address; only bastion_cidrs reach its one port
  count                       = var.access == "bastion" ? 1 : 0
  ami                         = terraform_data.image.output
  instance_type               = "t3.micro"
  subnet_id                   = aws_subnet.public.id
  vpc_security_group_ids      = [aws_security_group.bastion[0].id]
  associate_public_ip_address = true
  ebs_optimized               = true
  # Ends itself, too, should the schedule fail.
  instance_initiated_shutdown_behavior = "terminate"
  user_data                            = "#!/bin/bash\nexport CLOUD=aws ONLY_EXPIRY=1\n${file("${path.module}/../bootstrap.sh")}"
  key_name                             = var.public_key == null ? null : aws_key_pair.hosts[0].key_name
  iam_instance_profile                 = aws_iam_instance_profile.host.name
  tags                                 = { Name = "${var.name}-bastion", expires = local.expires }
  metadata_options {
    http_endpoint          = "enabled"
    http_tokens            = "required"
    instance_metadata_tags = "enabled"
  }
  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = local.bastion_gb
  }
  depends_on = [aws_scheduler_schedule.expiry, aws_route.out, aws_route_table_association.public]
  lifecycle {
    precondition {
      condition     = length(var.bastion_cidrs) > 0 && var.public_key != null
      error_message = "access = bastion needs bastion_cidrs (where you come from) and public_key."
    }
  }
}
