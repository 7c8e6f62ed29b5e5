variable "name" {
  description = "Name of this cluster, and value of the label that everything of it carries."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 22 small letters, digits and dashes, beginning with a letter."
  }
}

variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of network and cluster."
  type        = string
  default     = "us-central1"
}

variable "zone" {
  description = "Zone of the cluster; it must have the GPUs."
  type        = string
  default     = "us-central1-a"
}

variable "created" {
  description = "When the cluster was first asked for, RFC 3339: its time counts from then. The driver remembers it."
  type        = string
  validation {
    condition     = can(timeadd(var.created, "1h"))
    error_message = "created must be a time such as 2026-01-31T12:00:00Z."
  }
}

variable "ttl_hours" {
  description = "After so many hours the cluster is deleted, whatever it does."
  type        = number
  validation {
    condition     = var.ttl_hours >= 1 && var.ttl_hours <= 168
    error_message = "ttl_hours must be at least 1 and at most 168 (a week): a cluster takes half an hour to make."
  }
}

variable "api_cidrs" {
  description = "Where the cluster's API may be called from; empty: from its own network only."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]), 0) >= 16])
    error_message = "api_cidrs must be IPv4 ranges of at most /16; 0.0.0.0/0 would let everybody knock."
  }
}

variable "subnet_cidr" {
  description = "Addresses of the nodes; 10.51 to 10.53 belong to pods, services and the cluster's API."
  type        = string
  default     = "10.50.0.0/20"
  validation {
    condition     = can(cidrnetmask(var.subnet_cidr)) && can(regex("^10\\..*/(1[6-9]|2[0-4])$", var.subnet_cidr)) && !can(regex("^10\\.5[123]\\.", var.subnet_cidr))
    error_message = "subnet_cidr must be a range of 10.0.0.0/8 of /16 to /24 such as 10.50.0.0/20, outside 10.51 to 10.53."
  }
}

variable "system_type" {
  description = "Machine type of the two nodes for operators and drivers."
  type        = string
  default     = "n2-standard-4"
}

variable "worker_type" {
  description = "Machine type of the GPU nodes; g2 and a2 bring their GPUs with them."
  type        = string
  default     = "g2-standard-4"
}

variable "gpu_type" {
  description = "The GPU of that machine type, as GKE calls it."
  type        = string
  default     = "nvidia-l4"
}

variable "gpus_per_worker" {
  description = "GPUs of each node."
  type        = number
  default     = 1
}

variable "num_workers" {
  description = "GPU nodes."
  type        = number
  default     = 2
  validation {
    condition     = var.num_workers >= 0 && var.num_workers <= 64 && floor(var.num_workers) == var.num_workers
    error_message = "num_workers must be a whole number from 0 to 64."
  }
}

variable "spot" {
  description = "GPU nodes at the spot price, which can be taken away at any moment."
  type        = bool
  default     = false
}

variable "volume_gb" {
  description = "Disk of each node, in GB."
  type        = number
  default     = 100
  validation {
    condition     = var.volume_gb >= 50 && var.volume_gb <= 16384 && floor(var.volume_gb) == var.volume_gb
    error_message = "volume_gb must be a whole number from 50 to 16384."
  }
}

variable "max_cost_usd" {
  description = "What everything may cost until it expires, in US dollars; above it nothing is made."
  type        = number
  validation {
    condition     = var.max_cost_usd >= 0 && var.max_cost_usd <= 1000000
    error_message = "max_cost_usd must be a number from 0 to 1000000."
  }
}

variable "shared_gb" {
  description = "Size of the shared disk (Filestore) that TARGET=kubernetes makes in this cluster, in GB."
  type        = number
  default     = 1024
  validation {
    condition     = var.shared_gb >= 1024 && var.shared_gb <= 65433 && floor(var.shared_gb) == var.shared_gb
    error_message = "shared_gb must be a whole number from 1024 to 65433: Filestore makes no smaller disk."
  }
}
