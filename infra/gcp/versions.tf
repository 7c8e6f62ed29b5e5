terraform {
  backend "local" {} # where: the driver says so
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.0"
    }
    google-beta = { # TPU VMs are not in the other one
      source  = "hashicorp/google-beta"
      version = "~> 7.0"
    }
  }
}

provider "google" {
  project        = var.project
  region         = var.region
  zone           = var.zone
  default_labels = local.labels
}

provider "google-beta" {
  project        = var.project
  region         = var.region
  zone           = var.zone
  default_labels = local.labels
}
