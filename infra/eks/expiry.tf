# Ends nodes and cluster when their time is over: nobody has to remember it. A cluster can only be deleted without nodes, so its own
# call comes later, and again, until it is heard.
resource "aws_iam_role" "expiry" {
  name               = "${var.name}-expiry"
  assume_role_policy = data.aws_iam_policy_document.assume["expiry"].json
}

data "aws_iam_policy_document" "expiry" {
  statement {
    actions   = ["eks:DeleteNodegroup", "eks:DeleteCluster"]
    resources = concat([aws_eks_cluster.main.arn], [for group in aws_eks_node_group.main : group.arn])
  }
}

resource "aws_iam_role_policy" "expiry" {
  name   = "delete-this-cluster"
  role   = aws_iam_role.expiry.id
  policy = data.aws_iam_policy_document.expiry.json
}

resource "aws_scheduler_schedule" "nodes" {
  # checkov:skip=CKV_AWS_297:what it holds are names of node groups, no secrets
  for_each                     = aws_eks_node_group.main
  name                         = "${var.name}-expiry-${each.key}"
  schedule_expression          = "at(${formatdate("YYYY-MM-DD'T'hh:mm:ss", local.expires)})"
  schedule_expression_timezone = "UTC"
  flexible_time_window {
    mode = "OFF"
  }
  target {
    arn      = "arn:aws:scheduler:::aws-sdk:eks:deleteNodegroup"
    role_arn = aws_iam_role.expiry.arn
    input    = jsonencode({ ClusterName = var.name, NodegroupName = each.value.node_group_name })
  }
}

resource "aws_scheduler_schedule" "cluster" {
  # checkov:skip=CKV_AWS_297:what it holds is the cluster's name, no secret
  name                         = "${var.name}-expiry-cluster"
  schedule_expression          = "at(${formatdate("YYYY-MM-DD'T'hh:mm:ss", timeadd(local.expires, "30m"))})"
  schedule_expression_timezone = "UTC"
  flexible_time_window {
    mode = "OFF"
  }
  target {
    arn      = "arn:aws:scheduler:::aws-sdk:eks:deleteCluster"
    role_arn = aws_iam_role.expiry.arn
    input    = jsonencode({ Name = var.name })
    retry_policy {
      maximum_event_age_in_seconds = 86400
      maximum_retry_attempts       = 185
    }
  }
}
