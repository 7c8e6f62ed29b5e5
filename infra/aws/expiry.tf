# Terminates the machines when their time is over: nobody has to remember it.
data "aws_iam_policy_document" "assume_by_scheduler" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "expiry" {
  name               = "${var.name}-expiry"
  assume_role_policy = data.aws_iam_policy_document.assume_by_scheduler.json
}

data "aws_iam_policy_document" "terminate" {
  statement {
    actions   = ["ec2:TerminateInstances"]
    resources = [for instance in local.machines : instance.arn]
  }
}

resource "aws_iam_role_policy" "expiry" {
  name   = "terminate-these"
  role   = aws_iam_role.expiry.id
  policy = data.aws_iam_policy_document.terminate.json
}

locals {
  machines = concat([aws_instance.head], aws_instance.worker, aws_instance.bastion)
}

# One for each machine: a call that names one that is already gone ends none.
resource "aws_scheduler_schedule" "expiry" {
  # checkov:skip=CKV_AWS_297:what it holds are ids of machines, no secrets
  count                        = length(local.machines)
  name                         = "${var.name}-expiry-${count.index}"
  schedule_expression          = "at(${formatdate("YYYY-MM-DD'T'hh:mm:ss", local.expires)})"
  schedule_expression_timezone = "UTC"
  flexible_time_window {
    mode = "OFF"
  }
  target {
    arn      = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
    role_arn = aws_iam_role.expiry.arn
    input    = jsonencode({ InstanceIds = [local.machines[count.index].id] })
  }
}
