terraform {
  backend "local" {} # where: the driver says so
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.0"
    }
  }
}

provider "google" {
  project        = var.project
  region         = var.region
  zone           = var.zone
  default_labels = { "distributed-ml" = var.name }
}
