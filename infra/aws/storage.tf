# Data and checkpoints.
resource "aws_s3_bucket" "data" {
  # checkov:skip=CKV_AWS_18:the bucket lives as long as the machines, and only their role reads it
  # checkov:skip=CKV2_AWS_62:nobody waits for its events
  # checkov:skip=CKV_AWS_144:what is to outlive the machines is copied elsewhere
  bucket_prefix = "${var.name}-"
  depends_on    = [aws_scheduler_schedule.expiry]
  force_destroy = true # it goes with the machines; what is to be kept is copied elsewhere before
}

resource "aws_s3_bucket_public_access_block" "data" {
  bucket                  = aws_s3_bucket.data.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "RefuseWhatIsNotEncrypted"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.data.arn, "${aws_s3_bucket.data.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "data" {
  bucket     = aws_s3_bucket.data.id
  policy     = data.aws_iam_policy_document.tls_only.json
  depends_on = [aws_s3_bucket_public_access_block.data]
}

# A disk that all hosts see as /shared: for Spark, whose workers read what others have written.
resource "aws_efs_file_system" "shared" {
  # checkov:skip=CKV_AWS_184:encrypted by AWS's key; a key of one's own would outlive the machines
  count     = var.shared_gb == null ? 0 : 1
  encrypted = true
  # Not elastic: that is paid by what is transferred, which no guard can know.
  throughput_mode = "bursting"
  # By that tag ../expiry.py knows that it ends with the machines.
  tags       = { Name = var.name, expires = local.expires }
  depends_on = [aws_scheduler_schedule.expiry]
}

# In the hosts' own group: they reach it, and nobody else does.
resource "aws_efs_mount_target" "shared" {
  count           = var.shared_gb == null ? 0 : 1
  file_system_id  = aws_efs_file_system.shared[0].id
  subnet_id       = aws_subnet.private.id
  security_groups = [aws_security_group.hosts.id]
}
