variable "name" {
  description = "Name of this set of machines, and value of the label that everything of it carries."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 30 small letters, digits and dashes, beginning with a letter."
  }
}

variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of network and bucket."
  type        = string
  default     = "us-central1"
}

variable "zone" {
  description = "Zone of the machines; it must have the GPUs or the TPU."
  type        = string
  default     = "us-central1-a"
}

variable "created" {
  description = "When the machines were first asked for, RFC 3339: their time counts from then. The driver remembers it."
  type        = string
  validation {
    condition     = can(timeadd(var.created, "1h"))
    error_message = "created must be a time such as 2026-01-31T12:00:00Z."
  }
}

variable "ttl_hours" {
  description = "After so many hours every machine is deleted, whatever it does."
  type        = number
  validation {
    condition     = var.ttl_hours > 0 && var.ttl_hours <= 168
    error_message = "ttl_hours must be more than 0 and at most 168 (a week)."
  }
}

variable "num_workers" {
  description = "GPU machines beside the head; 0: none, for a TPU alone."
  type        = number
  default     = 2
  validation {
    condition     = var.num_workers >= 0 && var.num_workers <= 64 && floor(var.num_workers) == var.num_workers
    error_message = "num_workers must be a whole number from 0 to 64."
  }
}

variable "head_type" {
  description = "Machine type of the head, where the driver runs."
  type        = string
  default     = "n2-standard-4"
}

variable "worker_type" {
  description = "Machine type of the workers; g2 and a2 bring their GPUs with them."
  type        = string
  default     = "g2-standard-4"
}

variable "spot" {
  description = "Workers at the spot price, which can be taken away at any moment."
  type        = bool
  default     = false
}

variable "tpu_type" {
  description = "Accelerator type of a TPU VM for the tensorflow recipe, such as v5litepod-1; null: none."
  type        = string
  default     = null
}

variable "tpu_version" {
  description = "Software of the TPU VM."
  type        = string
  default     = "v2-alpha-tpuv5-lite"
}

variable "ssh_cidrs" {
  description = "Where ssh to the machines may come from; by default Identity-Aware Proxy only (gcloud compute ssh --tunnel-through-iap)."
  type        = list(string)
  default     = ["35.235.240.0/20"]
  validation {
    condition     = alltrue([for cidr in var.ssh_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]), 0) >= 16])
    error_message = "ssh_cidrs must be IPv4 ranges of at most /16; 0.0.0.0/0 would let everybody in."
  }
}

variable "subnet_cidr" {
  description = "Addresses of the machines."
  type        = string
  default     = "10.30.0.0/20"
  validation {
    condition     = can(cidrnetmask(var.subnet_cidr)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.subnet_cidr))
    error_message = "subnet_cidr must be a private range such as 10.30.0.0/20."
  }
}

variable "image" {
  description = "Image of the machines."
  type        = string
  default     = "projects/ubuntu-os-accelerator-images/global/images/family/ubuntu-accelerator-2204-amd64-with-nvidia-570"
}

variable "volume_gb" {
  description = "Disk of each machine, in GB."
  type        = number
  default     = 200
  validation {
    condition     = var.volume_gb >= 50 && var.volume_gb <= 16384 && floor(var.volume_gb) == var.volume_gb
    error_message = "volume_gb must be a whole number from 50 to 16384."
  }
}

variable "shared_gb" {
  description = "GB of a disk that all hosts see as /shared (Filestore); null: no such disk."
  type        = number
  default     = null
  validation {
    condition     = var.shared_gb == null || try(var.shared_gb >= 1024 && var.shared_gb <= 65433 && floor(var.shared_gb) == var.shared_gb, false)
    error_message = "shared_gb must be a whole number from 1024 to 65433: Filestore makes no smaller disk."
  }
}

variable "slots_per_worker" {
  description = "Workers of a training on each machine; null: one for each of its GPUs."
  type        = number
  default     = null
}

variable "max_cost_usd" {
  description = "What everything may cost until it expires, in US dollars; above it nothing is made."
  type        = number
  validation {
    condition     = var.max_cost_usd >= 0 && var.max_cost_usd <= 1000000
    error_message = "max_cost_usd must be a number from 0 to 1000000."
  }
}
