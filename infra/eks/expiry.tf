# Ends everything that costs money when its time is over: nobody has to remember it. This comes first, and all that costs waits for it:
# an apply that fails in the middle leaves machines that expire. So it knows no machine: ../expiry.py finds them by their tag.
data "aws_caller_identity" "me" {}

data "aws_iam_policy_document" "assume_by_scheduler" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com", "ssm.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.me.account_id]
    }
  }
}

resource "aws_iam_role" "expiry" {
  name               = "${var.name}-expiry"
  assume_role_policy = data.aws_iam_policy_document.assume_by_scheduler.json
  depends_on         = [terraform_data.guard]
}

data "aws_iam_policy_document" "expiry" {
  # checkov:skip=CKV_AWS_356:to look for what has the tag cannot be narrowed to one thing; each removal asks for the tag
  statement {
    sid       = "LookForIt"
    actions   = ["ec2:Describe*", "eks:ListClusters", "eks:ListNodegroups", "elasticfilesystem:Describe*"]
    resources = ["*"]
  }
  statement {
    sid = "RemoveWhatHasTheTag"
    actions = [
      "ec2:TerminateInstances", "ec2:DeleteNatGateway", "ec2:DeleteVpcEndpoints", "ec2:ReleaseAddress", "eks:DeleteNodegroup", "eks:DeleteCluster",
      "elasticfilesystem:DeleteMountTarget", "elasticfilesystem:DeleteFileSystem"
    ]
    resources = ["*"]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/distributed-ml"
      values   = [var.name]
    }
  }
  statement {
    sid       = "StartIt"
    actions   = ["ssm:StartAutomationExecution"]
    resources = ["arn:aws:ssm:${var.region}:${data.aws_caller_identity.me.account_id}:automation-definition/${var.name}-expiry:*"]
  }
  statement {
    sid       = "AsThisRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.expiry.arn]
    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ssm.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "expiry" {
  name   = "remove-what-has-the-tag"
  role   = aws_iam_role.expiry.id
  policy = data.aws_iam_policy_document.expiry.json
}

resource "aws_ssm_document" "expiry" {
  name            = "${var.name}-expiry"
  document_type   = "Automation"
  document_format = "JSON"
  content = jsonencode({
    schemaVersion = "0.3"
    description   = "Removes what costs money of ${var.name}"
    assumeRole    = aws_iam_role.expiry.arn
    mainSteps = [{
      name   = "remove"
      action = "aws:executeScript"
      inputs = {
        Runtime      = "python3.11"
        Handler      = "remove"
        InputPayload = { name = var.name, region = var.region }
        Script       = file("${path.module}/../expiry.py")
      }
    }]
  })
}

# Once at that time, and then again for a day: for what could not go at once.
resource "aws_scheduler_schedule" "expiry" {
  # checkov:skip=CKV_AWS_297:what it holds is a document's name, no secret
  for_each = {
    first = { expression = "at(${formatdate("YYYY-MM-DD'T'hh:mm:ss", local.expires)})", from = null, to = null }
    again = { expression = "rate(15 minutes)", from = timeadd(local.expires, "15m"), to = timeadd(local.expires, "24h") }
  }
  name                         = "${var.name}-expiry-${each.key}"
  schedule_expression          = each.value.expression
  schedule_expression_timezone = "UTC"
  start_date                   = each.value.from
  end_date                     = each.value.to
  flexible_time_window {
    mode = "OFF"
  }
  target {
    arn      = "arn:aws:scheduler:::aws-sdk:ssm:startAutomationExecution"
    role_arn = aws_iam_role.expiry.arn
    input    = jsonencode({ DocumentName = aws_ssm_document.expiry.name })
    retry_policy {
      maximum_event_age_in_seconds = 3600
      maximum_retry_attempts       = 60
    }
  }
  depends_on = [aws_iam_role_policy.expiry]
}
