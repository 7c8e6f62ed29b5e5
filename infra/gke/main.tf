locals {
  expires = timeadd(var.created, "${var.ttl_hours}h")
}

resource "google_project_service" "needed" {
  for_each           = toset(["compute", "container", "file", "cloudscheduler"])
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false # others may use them too
}

resource "google_compute_network" "main" {
  name                    = var.name
  auto_create_subnetworks = false
  depends_on              = [google_project_service.needed, google_cloud_scheduler_job.expiry]
}

resource "google_compute_subnetwork" "main" {
  # checkov:skip=CKV_GCP_26:a network of some hours, where one cluster's nodes talk to each other; flow logs would cost more than they tell
  # checkov:skip=CKV_GCP_76:no address of version 6 is given out
  name                     = var.name
  network                  = google_compute_network.main.id
  region                   = var.region
  ip_cidr_range            = var.subnet_cidr
  private_ip_google_access = true
  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = "10.51.0.0/16"
  }
  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = "10.52.0.0/16"
  }
}

# GKE's own rules let the control plane reach nodes on 443 and 10250 only; operators answer its questions on these.
resource "google_compute_firewall" "webhooks" {
  name          = "${var.name}-webhooks"
  network       = google_compute_network.main.id
  source_ranges = ["10.53.0.0/28"]
  allow {
    protocol = "tcp"
    ports    = ["8443", "9443"]
  }
}

# Images come by it; no node has a public address.
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

resource "google_service_account" "node" {
  account_id   = "${var.name}-node"
  display_name = "Nodes of ${var.name}: logs, metrics and images, nothing else"
}

resource "google_project_iam_member" "node" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])
  project  = var.project
  role     = each.value
  member   = "serviceAccount:${google_service_account.node.email}"
}

resource "google_container_cluster" "main" {
  # checkov:skip=CKV_GCP_65:a cluster of some hours, whose users come by IAM; groups of an organisation are not asked for
  # checkov:skip=CKV_GCP_66:images are one's own, from one's own registry; signing them is another project's matter
  # checkov:skip=CKV_GCP_69:set for each node pool (workload_metadata_config); the cluster's first pool is removed at once
  # checkov:skip=CKV_GCP_24:pod security is asked for in the namespace's labels; the policy of that name is gone from Kubernetes
  # checkov:skip=CKV_GCP_12:ADVANCED_DATAPATH enforces network policies; that older switch excludes it
  # checkov:skip=CKV_GCP_13:there is no client certificate: GKE issues none unless asked
  # checkov:skip=CKV_GCP_61:no flow logs in a network of some hours; they would cost more than they tell
  name                        = var.name
  location                    = var.zone
  network                     = google_compute_network.main.id
  subnetwork                  = google_compute_subnetwork.main.id
  remove_default_node_pool    = true
  initial_node_count          = 1
  deletion_protection         = false               # it goes when its time is over
  datapath_provider           = "ADVANCED_DATAPATH" # network policies
  enable_shielded_nodes       = true
  enable_intranode_visibility = true
  resource_labels             = { "distributed-ml" = var.name }
  depends_on                  = [google_cloud_scheduler_job.expiry, google_project_iam_member.expiry, google_compute_router_nat.main]

  release_channel {
    channel = "REGULAR"
  }
  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }
  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = length(var.api_cidrs) == 0
    master_ipv4_cidr_block  = "10.53.0.0/28"
  }
  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.api_cidrs
      content {
        cidr_block = cidr_blocks.value
      }
    }
  }
  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }
  addons_config {
    gcp_filestore_csi_driver_config {
      enabled = true # what the pods share
    }
  }
  node_config {
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }
}

resource "google_container_node_pool" "system" {
  name       = "system"
  cluster    = google_container_cluster.main.id
  node_count = 2

  node_config {
    machine_type    = var.system_type
    disk_size_gb    = var.volume_gb
    disk_type       = "pd-balanced"
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }
  management {
    auto_repair  = true
    auto_upgrade = true
  }
}

resource "google_container_node_pool" "workers" {
  count      = var.num_workers > 0 ? 1 : 0
  name       = "workers"
  cluster    = google_container_cluster.main.id
  node_count = var.num_workers

  node_config {
    machine_type    = var.worker_type
    spot            = var.spot
    disk_size_gb    = var.volume_gb
    disk_type       = "pd-balanced"
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    guest_accelerator {
      type  = var.gpu_type
      count = var.gpus_per_worker
      gpu_driver_installation_config {
        gpu_driver_version = "DEFAULT"
      }
    }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }
  management {
    auto_repair  = true
    auto_upgrade = true
  }
}

