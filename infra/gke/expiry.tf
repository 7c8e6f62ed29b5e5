# Deletes the cluster, nodes and all, when its time is over. This comes first, and waits for nothing that it deletes. A cron expression comes back every year: so
# the job has a name that no other set has, and a second job removes the first one two hours later.
resource "google_service_account" "expiry" {
  account_id   = "${var.name}-expiry"
  display_name = "Deletes the cluster of ${var.name} when its time is over"
}

resource "google_project_iam_member" "expiry" {
  project = var.project
  role    = "roles/container.clusterAdmin"
  member  = "serviceAccount:${google_service_account.expiry.email}"
  condition {
    title      = "this-cluster"
    expression = "resource.name.endsWith(\"/clusters/${var.name}\")"
  }
}

# May delete that job, and no more.
resource "google_project_iam_custom_role" "jobs" {
  role_id     = "${replace(var.name, "-", "_")}_expiry"
  title       = "Removes the expiry job of ${var.name}"
  permissions = ["cloudscheduler.jobs.delete"]
}

resource "google_project_iam_member" "jobs" {
  project = var.project
  role    = google_project_iam_custom_role.jobs.id
  member  = "serviceAccount:${google_service_account.expiry.email}"
}

locals {
  # The time of its making, so that no other set's job has this name.
  expiry_job = "${var.name}-expiry-${formatdate("YYYYMMDDhhmmss", var.created)}"
}

resource "google_cloud_scheduler_job" "expiry" {
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
    uri         = "https://container.googleapis.com/v1/projects/${var.project}/locations/${var.zone}/clusters/${var.name}"
    oauth_token {
      service_account_email = google_service_account.expiry.email
    }
  }
  depends_on = [terraform_data.guard, google_project_iam_member.expiry, google_project_service.needed]
}

resource "google_cloud_scheduler_job" "expiry_end" {
  name      = "${local.expiry_job}-end"
  region    = var.region
  schedule  = formatdate("m h D M '*'", timeadd(local.expires, "2h"))
  time_zone = "Etc/UTC"
  http_target {
    http_method = "DELETE"
    uri         = "https://cloudscheduler.googleapis.com/v1/projects/${var.project}/locations/${var.region}/jobs/${local.expiry_job}"
    oauth_token {
      service_account_email = google_service_account.expiry.email
    }
  }
  depends_on = [google_project_iam_member.jobs]
}
