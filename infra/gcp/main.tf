locals {
  labels  = { "distributed-ml" = var.name }
  expires = timeadd(var.created, "${var.ttl_hours}h")
  gpus = {
    "g2-standard-4" = 1, "g2-standard-12" = 1, "g2-standard-24" = 2, "g2-standard-48" = 4,
    "a2-highgpu-1g" = 1, "a2-highgpu-2g" = 2, "a2-highgpu-4g" = 4, "a2-highgpu-8g" = 8,
  }
  gpus_per_worker = lookup(local.gpus, var.worker_type, 0)
  machines        = merge({ head = var.head_type }, { for number in range(var.num_workers) : "worker${number + 1}" => var.worker_type })
}

resource "google_compute_network" "main" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "main" {
  # checkov:skip=CKV_GCP_26:a network of some hours, where one group's machines talk to each other; flow logs would cost more than they tell
  # checkov:skip=CKV_GCP_76:no address of version 6 is given out
  name                     = var.name
  network                  = google_compute_network.main.id
  region                   = var.region
  ip_cidr_range            = var.subnet_cidr
  private_ip_google_access = true
}

resource "google_compute_firewall" "among_hosts" {
  name          = "${var.name}-among-hosts"
  network       = google_compute_network.main.id
  source_ranges = [var.subnet_cidr]
  allow {
    protocol = "tcp"
  }
  allow {
    protocol = "icmp"
  }
}

resource "google_compute_firewall" "ssh" {
  name          = "${var.name}-ssh"
  network       = google_compute_network.main.id
  source_ranges = var.ssh_cidrs
  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}

# Package registries are reached by it; no machine has a public address.
resource "google_compute_router" "main" {
  name    = var.name
  network = google_compute_network.main.id
  region  = var.region
}

resource "google_compute_router_nat" "main" {
  name                               = var.name
  router                             = google_compute_router.main.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

resource "google_service_account" "host" {
  account_id   = "${var.name}-host"
  display_name = "Machines of ${var.name}: their own bucket, nothing else"
}

resource "google_storage_bucket" "data" {
  # checkov:skip=CKV_GCP_62:the bucket lives as long as the machines, and only their account reads it
  name                        = "${var.name}-${var.project}"
  location                    = var.region
  force_destroy               = true # it goes with the machines; what is to be kept is copied elsewhere before
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  versioning {
    enabled = true
  }
  lifecycle_rule {
    condition {
      num_newer_versions = 3
    }
    action {
      type = "Delete"
    }
  }
}

resource "google_storage_bucket_iam_member" "host" {
  bucket = google_storage_bucket.data.name
  role   = "roles/storage.objectUser"
  member = "serviceAccount:${google_service_account.host.email}"
}

# A disk that all hosts see as /shared: for Spark, whose workers read what others have written.
resource "google_filestore_instance" "shared" {
  count    = var.shared_gb == null ? 0 : 1
  name     = "${var.name}-shared"
  location = var.zone
  tier     = "BASIC_HDD"
  file_shares {
    name        = "shared"
    capacity_gb = var.shared_gb
  }
  networks {
    network = google_compute_network.main.name
    modes   = ["MODE_IPV4"]
  }
  depends_on = [google_cloud_scheduler_job.expiry, google_project_iam_member.expiry]
}

locals {
  shared = one([for disk in google_filestore_instance.shared : "${disk.networks[0].ip_addresses[0]}:/shared"])
  # The TPU VM gets the same software: recipe.mode=tpu runs there.
  startup = "#!/bin/bash\nexport CLOUD=gcp GPUS=0 SHARED='${local.shared == null ? "" : local.shared}' SHARED_BY='nfs hard,_netdev'\n${file("${path.module}/../bootstrap.sh")}"
}

resource "google_compute_instance" "host" {
  # checkov:skip=CKV_GCP_38:disks are encrypted by Google's keys; a key of one's own would outlive the machines
  for_each     = local.machines
  name         = "${var.name}-${each.key}"
  machine_type = each.value
  zone         = var.zone
  labels       = { expires = lower(formatdate("YYYY-MM-DD't'hh-mm-ss", local.expires)) }

  boot_disk {
    initialize_params {
      image = var.image
      size  = var.volume_gb
      type  = "pd-balanced"
    }
  }

  network_interface {
    subnetwork = google_compute_subnetwork.main.id
  }

  # Deletes itself when its time is over: Compute Engine's own clock, which counts from the machine's start. A longer ttl_hours stops and
  # starts the machine, and keeps its disk.
  allow_stopping_for_update = true
  scheduling {
    provisioning_model          = var.spot && each.key != "head" ? "SPOT" : "STANDARD"
    preemptible                 = var.spot && each.key != "head"
    automatic_restart           = false
    on_host_maintenance         = "TERMINATE"
    instance_termination_action = "DELETE"
    max_run_duration {
      seconds = var.ttl_hours * 3600
    }
  }

  service_account {
    email  = google_service_account.host.email
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write", "https://www.googleapis.com/auth/logging.write"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    startup-script         = local.startup
    # The machine reads it each minute, and switches itself off.
    expires                 = local.expires
    enable-guest-attributes = "TRUE"
  }
  lifecycle {
    ignore_changes = [boot_disk[0].initialize_params[0].image] # a newer one must not replace machines
  }
  # Its bootstrap fetches packages as soon as the machine is up.
  depends_on = [google_compute_router_nat.main, google_compute_firewall.among_hosts, terraform_data.guard]
}

# For the tensorflow recipe (recipe.mode=tpu): it is run on this machine itself.
resource "google_tpu_v2_vm" "main" {
  provider         = google-beta
  count            = var.tpu_type == null ? 0 : 1
  name             = "${var.name}-tpu"
  zone             = var.zone
  accelerator_type = var.tpu_type
  runtime_version  = var.tpu_version
  network_config {
    network             = google_compute_network.main.id
    subnetwork          = google_compute_subnetwork.main.id
    enable_external_ips = false
  }
  service_account {
    email = google_service_account.host.email
    scope = ["https://www.googleapis.com/auth/devstorage.read_write"]
  }
  # A TPU has no clock of that kind: it switches itself off, and a scheduled call (expiry.tf) deletes it.
  metadata = { startup-script = local.startup, expires = local.expires, enable-guest-attributes = "TRUE" }
  depends_on = [
    google_cloud_scheduler_job.expiry, google_project_iam_member.expiry, google_compute_router_nat.main,
    google_compute_firewall.among_hosts
  ]
}
