# Deletes the TPU and the shared disk when their time is over (machines have a clock of Compute Engine's). This comes first, and waits for nothing
# that it deletes. A cron expression comes back every year: so the job has a name that no other set has, and a second job removes the first one
# two hours later.
locals {
  # What is deleted: name -> its address in Google's API, and the role that may delete it. Neither has a policy of its own: these are the smallest
  # roles.
  expiring = merge(
    var.tpu_type == null ? {} : {
      tpu = { uri = "https://tpu.googleapis.com/v2/projects/${var.project}/locations/${var.zone}/nodes/${var.name}-tpu", role = "roles/tpu.admin" }
    },
    var.shared_gb == null ? {} : {
      shared = { uri = "https://file.googleapis.com/v1/projects/${var.project}/locations/${var.zone}/instances/${var.name}-shared", role = "roles/file.editor" }
    },
  )
  is_expiring = length(local.expiring) > 0 ? 1 : 0
  # The time of its making, so that no other set's job has this name.
  expiry_job = "${var.name}-expiry-${formatdate("YYYYMMDDhhmmss", var.created)}"
}

resource "google_service_account" "expiry" {
  count        = local.is_expiring
  account_id   = "${var.name}-expiry"
  display_name = "Deletes what of ${var.name} has no clock of its own"
}

resource "google_project_iam_member" "expiry" {
  # checkov:skip=CKV_GCP_49:neither has a policy of its own; these are the smallest roles that may delete them
  for_each = local.expiring
  project  = var.project
  role     = each.value.role
  member   = "serviceAccount:${google_service_account.expiry[0].email}"
}

# May delete those jobs, and no more.
resource "google_project_iam_custom_role" "jobs" {
  count       = local.is_expiring
  role_id     = "${replace(var.name, "-", "_")}_expiry"
  title       = "Removes the expiry jobs of ${var.name}"
  permissions = ["cloudscheduler.jobs.delete"]
}

resource "google_project_iam_member" "jobs" {
  count   = local.is_expiring
  project = var.project
  role    = google_project_iam_custom_role.jobs[0].id
  member  = "serviceAccount:${google_service_account.expiry[0].email}"
}

resource "google_cloud_scheduler_job" "expiry" {
  for_each  = local.expiring
  name      = "${local.expiry_job}-${each.key}"
  region    = var.region
  schedule  = formatdate("m h D M '*'", local.expires)
  time_zone = "Etc/UTC"
  retry_config {
    retry_count          = 5 # what is being changed cannot be deleted
    min_backoff_duration = "300s"
    max_backoff_duration = "900s"
  }
  http_target {
    http_method = "DELETE"
    uri         = each.value.uri
    oauth_token {
      service_account_email = google_service_account.expiry[0].email
    }
  }
  depends_on = [terraform_data.guard, google_project_iam_member.expiry]
}

resource "google_cloud_scheduler_job" "expiry_end" {
  for_each  = local.expiring
  name      = "${local.expiry_job}-${each.key}-end"
  region    = var.region
  schedule  = formatdate("m h D M '*'", timeadd(local.expires, "2h"))
  time_zone = "Etc/UTC"
  http_target {
    http_method = "DELETE"
    uri         = "https://cloudscheduler.googleapis.com/v1/projects/${var.project}/locations/${var.region}/jobs/${local.expiry_job}-${each.key}"
    oauth_token {
      service_account_email = google_service_account.expiry[0].email
    }
  }
  depends_on = [google_project_iam_member.jobs]
}
