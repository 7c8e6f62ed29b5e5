# Deletes the TPU (machines have a clock of Compute Engine's) when its time is over. This comes first, and waits for nothing that it deletes. A cron expression comes back every year: so
# the job has a name that no other set has, and a second job removes the first one two hours later.
resource "google_service_account" "expiry" {
  count        = var.tpu_type == null ? 0 : 1
  account_id   = "${var.name}-expiry"
  display_name = "Deletes the TPU of ${var.name} when its time is over"
}

resource "google_project_iam_member" "expiry" {
  # checkov:skip=CKV_GCP_49:a TPU has no policy of its own; the role is the smallest that may delete one
  count   = var.tpu_type == null ? 0 : 1
  project = var.project
  role    = "roles/tpu.admin"
  member  = "serviceAccount:${google_service_account.expiry[0].email}"
}

# May delete that job, and no more.
resource "google_project_iam_custom_role" "jobs" {
  count       = var.tpu_type == null ? 0 : 1
  role_id     = "${replace(var.name, "-", "_")}_expiry"
  title       = "Removes the expiry job of ${var.name}"
  permissions = ["cloudscheduler.jobs.delete"]
}

resource "google_project_iam_member" "jobs" {
  count   = var.tpu_type == null ? 0 : 1
  project = var.project
  role    = google_project_iam_custom_role.jobs[0].id
  member  = "serviceAccount:${google_service_account.expiry[0].email}"
}

locals {
  # The time of its making, so that no other set's job has this name.
  expiry_job = "${var.name}-expiry-${formatdate("YYYYMMDDhhmmss", var.created)}"
}

resource "google_cloud_scheduler_job" "expiry" {
  count     = var.tpu_type == null ? 0 : 1
  name      = local.expiry_job
  region    = var.region
  schedule  = formatdate("m h D M '*'", local.expires)
  time_zone = "Etc/UTC"
  retry_config {
    retry_count          = 5 # a cluster that is being changed cannot be deleted
    min_backoff_duration = "300s"
    max_backoff_duration = "900s"
  }
  http_target {
    http_method = "DELETE"
    uri         = "https://tpu.googleapis.com/v2/projects/${var.project}/locations/${var.zone}/nodes/${var.name}-tpu"
    oauth_token {
      service_account_email = google_service_account.expiry[0].email
    }
  }
  depends_on = [terraform_data.guard, google_project_iam_member.expiry]
}

resource "google_cloud_scheduler_job" "expiry_end" {
  count     = var.tpu_type == null ? 0 : 1
  name      = "${local.expiry_job}-end"
  region    = var.region
  schedule  = formatdate("m h D M '*'", timeadd(local.expires, "2h"))
  time_zone = "Etc/UTC"
  http_target {
    http_method = "DELETE"
    uri         = "https://cloudscheduler.googleapis.com/v1/projects/${var.project}/locations/${var.region}/jobs/${local.expiry_job}"
    oauth_token {
      service_account_email = google_service_account.expiry[0].email
    }
  }
  depends_on = [google_project_iam_member.jobs]
}
