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
    condition     = var.ttl_hours > 0 && var.ttl_hours <= 168
    error_message = "ttl_hours must be more than 0 and at most 168 (a week)."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.34"
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
}
