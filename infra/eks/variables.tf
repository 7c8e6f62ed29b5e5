variable "name" {
  description = "Name of this cluster, and value of the tag that everything of it carries."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 30 small letters, digits and dashes, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
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
  description = "After so many hours nodes and cluster are deleted, whatever they do."
  type        = number
  validation {
    condition     = var.ttl_hours >= 1 && var.ttl_hours <= 168
    error_message = "ttl_hours must be at least 1 and at most 168 (a week): a cluster takes half an hour to make."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.35"
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

variable "vpc_cidr" {
  description = "Addresses of nodes and pods."
  type        = string
  default     = "10.40.0.0/16"
  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.).*/1[6-8]$", var.vpc_cidr))
    error_message = "vpc_cidr must be a private range of /16 to /18 such as 10.40.0.0/16."
  }
}

variable "system_type" {
  description = "Instance type of the two nodes for operators and drivers."
  type        = string
  default     = "m5.xlarge"
}

variable "worker_type" {
  description = "Instance type of the GPU nodes."
  type        = string
  default     = "g5.xlarge"
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
  description = "What the shared disk will hold, in GB: for the price alone, it takes more."
  type        = number
  default     = 100
  validation {
    condition     = var.shared_gb >= 0 && var.shared_gb <= 1000000
    error_message = "shared_gb must be a number from 0 to 1000000."
  }
}

variable "shared_mibps" {
  description = "Throughput of the shared disk in MiB/s, paid by the hour; null: bursts of 100 MiB/s, which cost nothing."
  type        = number
  default     = null
  validation {
    condition     = var.shared_mibps == null || try(var.shared_mibps >= 1 && var.shared_mibps <= 1024, false)
    error_message = "shared_mibps must be a number from 1 to 1024."
  }
}
