locals {
  tags    = { "distributed-ml" = var.name }
  expires = timeadd(var.created, "${var.ttl_hours}h")
  zones   = slice(data.aws_availability_zones.here.names, 0, 2)
  # The network, and who a pod is, before the first node: one that comes up without them stays unready. The others run on nodes.
  addons = {
    before = ["vpc-cni", "kube-proxy", "eks-pod-identity-agent"]
    after  = ["coredns", "aws-efs-csi-driver", "aws-ebs-csi-driver"]
  }
  # A driver's account in the cluster, and what it may do in AWS.
  drivers = {
    aws-efs-csi-driver = { account = "efs-csi-controller-sa", policy = "AmazonEFSCSIDriverPolicy" }
    aws-ebs-csi-driver = { account = "ebs-csi-controller-sa", policy = "AmazonEBSCSIDriverPolicy" }
  }
  # The nodes of a group, at most: for the guard, too.
  groups = {
    system  = { type = var.system_type, count = 2, ami = "AL2023_x86_64_STANDARD", capacity = "ON_DEMAND" }
    workers = { type = var.worker_type, count = var.num_workers, ami = "AL2023_x86_64_NVIDIA", capacity = var.spot ? "SPOT" : "ON_DEMAND" }
  }
}

data "aws_iam_policy_document" "assume" {
  for_each = {
    cluster = { service = "eks.amazonaws.com", actions = ["sts:AssumeRole"] }
    node    = { service = "ec2.amazonaws.com", actions = ["sts:AssumeRole"] }
    pods    = { service = "pods.eks.amazonaws.com", actions = ["sts:AssumeRole", "sts:TagSession"] }
  }
  statement {
    actions = each.value.actions
    principals {
      type        = "Service"
      identifiers = [each.value.service]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.assume["cluster"].json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"
}

# Encrypts the cluster's secrets.
resource "aws_kms_key" "secrets" {
  depends_on = [terraform_data.guard]
  # checkov:skip=CKV2_AWS_64:the default policy, which lets the account's own IAM decide
  description             = "Secrets of the cluster ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
}

resource "aws_eks_cluster" "main" {
  # checkov:skip=CKV_AWS_38:open to no more than api_cidrs, which are checked to be narrow
  # checkov:skip=CKV_AWS_39:without api_cidrs there is no public way in at all
  name                      = var.name
  role_arn                  = aws_iam_role.cluster.arn
  version                   = var.kubernetes_version
  enabled_cluster_log_types = ["api", "audit", "authenticator", "controllerManager", "scheduler"]

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }

  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = length(var.api_cidrs) > 0
    public_access_cidrs     = length(var.api_cidrs) > 0 ? var.api_cidrs : null
  }

  encryption_config {
    resources = ["secrets"]
    provider {
      key_arn = aws_kms_key.secrets.arn
    }
  }

  depends_on = [aws_iam_role_policy_attachment.cluster, aws_scheduler_schedule.expiry]
}

resource "aws_eks_addon" "before" {
  for_each                    = toset(local.addons.before)
  cluster_name                = aws_eks_cluster.main.name
  addon_name                  = each.value
  resolve_conflicts_on_create = "OVERWRITE" # EKS has put some of them there already
  # Network policies are only heeded when this says so.
  configuration_values = each.value == "vpc-cni" ? jsonencode({ enableNetworkPolicy = "true" }) : null
}

resource "aws_eks_addon" "after" {
  for_each                    = toset(local.addons.after)
  cluster_name                = aws_eks_cluster.main.name
  addon_name                  = each.value
  resolve_conflicts_on_create = "OVERWRITE"

  dynamic "pod_identity_association" {
    for_each = [for driver, its in local.drivers : its.account if driver == each.value]
    content {
      role_arn        = aws_iam_role.driver[each.value].arn
      service_account = pod_identity_association.value
    }
  }

  depends_on = [aws_eks_node_group.main, aws_iam_role_policy_attachment.driver]
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.assume["node"].json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:aws:iam::aws:policy/${each.value}"
}

resource "aws_launch_template" "node" {
  name = "${var.name}-node"
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # pods do not get the node's role
  }
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = var.volume_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }
  tag_specifications {
    resource_type = "instance"
    tags          = local.tags # without the time: a later one must not replace the nodes
  }
}

resource "aws_eks_node_group" "main" {
  for_each        = { for name, group in local.groups : name => group if group.count > 0 }
  cluster_name    = aws_eks_cluster.main.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = each.key == "workers" ? [aws_subnet.private[0].id] : aws_subnet.private[*].id # workers close to each other
  instance_types  = [each.value.type]
  ami_type        = each.value.ami
  capacity_type   = each.value.capacity
  labels          = { "distributed-ml/group" = each.key }

  scaling_config {
    desired_size = each.value.count
    min_size     = each.value.count
    max_size     = each.value.count
  }
  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  # Nodes fetch images as soon as they are up.
  depends_on = [
    aws_iam_role_policy_attachment.node, aws_eks_addon.before, aws_scheduler_schedule.expiry,
    aws_route.nat, aws_route.out, aws_route_table_association.private, aws_route_table_association.public
  ]
}

# What the pods share: datasets, checkpoints and results (ReadWriteMany).
resource "aws_efs_file_system" "shared" {
  # checkov:skip=CKV_AWS_184:encrypted by AWS's key; a key of one's own would outlive the cluster
  encrypted = true
  # Not elastic: that is paid by what is transferred, which no guard can know.
  throughput_mode                 = var.shared_mibps == null ? "bursting" : "provisioned"
  provisioned_throughput_in_mibps = var.shared_mibps
  performance_mode                = "generalPurpose"
  tags                            = { Name = var.name }
  depends_on                      = [terraform_data.guard]
}

resource "aws_efs_mount_target" "shared" {
  count           = length(local.zones)
  file_system_id  = aws_efs_file_system.shared.id
  subnet_id       = aws_subnet.private[count.index].id
  security_groups = [aws_security_group.efs.id]
}

resource "aws_security_group" "efs" {
  name        = "${var.name}-efs"
  description = "The shared disk, for the cluster's nodes only"
  vpc_id      = aws_vpc.main.id
}

resource "aws_security_group_rule" "efs" {
  description              = "NFS from nodes and pods"
  type                     = "ingress"
  security_group_id        = aws_security_group.efs.id
  source_security_group_id = aws_eks_cluster.main.vpc_config[0].cluster_security_group_id
  protocol                 = "tcp"
  from_port                = 2049
  to_port                  = 2049
}

resource "aws_iam_role" "driver" {
  for_each           = local.drivers
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assume["pods"].json
}

resource "aws_iam_role_policy_attachment" "driver" {
  for_each   = local.drivers
  role       = aws_iam_role.driver[each.key].name
  policy_arn = "arn:aws:iam::aws:policy/service-role/${each.value.policy}"
}
