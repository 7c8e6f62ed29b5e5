variable "name" {
  description = "Name of this set of machines, and value of the tag that everything of it carries."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 32 small letters, digits and dashes, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "zone" {
  description = "Where the machines are, such as us-east-1a; null: the first zone that has their types. A capacity block is in one zone."
  type        = string
  default     = null
}

variable "ttl_hours" {
  description = "After so many hours every machine is terminated, whatever it does."
  type        = number
  validation {
    condition     = var.ttl_hours > 0 && var.ttl_hours <= 168
    error_message = "ttl_hours must be more than 0 and at most 168 (a week)."
  }
}

variable "created" {
  description = "When the machines were first asked for, RFC 3339: their time counts from then. The driver remembers it."
  type        = string
  validation {
    condition     = can(timeadd(var.created, "1h"))
    error_message = "created must be a time such as 2026-01-31T12:00:00Z."
  }
}

variable "num_workers" {
  description = "GPU machines beside the head."
  type        = number
  default     = 2
  validation {
    condition     = var.num_workers >= 1 && var.num_workers <= 64 && floor(var.num_workers) == var.num_workers
    error_message = "num_workers must be a whole number from 1 to 64."
  }
}

variable "head_type" {
  description = "Instance type of the head, where the driver runs."
  type        = string
  default     = "m5.xlarge"
}

variable "worker_type" {
  description = "Instance type of the workers."
  type        = string
  default     = "g5.xlarge"
}

variable "market" {
  description = "How the workers are bought: on-demand, spot, or capacity-block (needs capacity_reservation_id)."
  type        = string
  default     = "on-demand"
  validation {
    condition     = contains(["on-demand", "spot", "capacity-block"], var.market)
    error_message = "market must be on-demand, spot or capacity-block."
  }
}

variable "capacity_reservation_id" {
  description = "The capacity block to use, cr-...; null: none."
  type        = string
  default     = null
}

variable "placement_group" {
  description = "Puts the workers close together (cluster placement group)."
  type        = bool
  default     = true
}

variable "efa" {
  description = "Elastic Fabric Adapter on all network cards of the workers; main.tf knows the types that have it."
  type        = bool
  default     = false
}

variable "ami_id" {
  description = "Image of all machines; null: AWS's newest base image for GPUs (Ubuntu 22.04, NVIDIA driver)."
  type        = string
  default     = null
}

variable "vpc_cidr" {
  description = "Addresses of the network."
  type        = string
  default     = "10.20.0.0/16"
  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 8, 0)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.vpc_cidr))
    error_message = "vpc_cidr must be a private range with room for 256 subnets, such as 10.20.0.0/16."
  }
}

variable "access" {
  description = "How one gets in: ssm (Session Manager, no open port) or bastion (a small machine, ssh from bastion_cidrs)."
  type        = string
  default     = "ssm"
  validation {
    condition     = contains(["ssm", "bastion"], var.access)
    error_message = "access must be ssm or bastion."
  }
}

variable "bastion_cidrs" {
  description = "Where ssh to the bastion may come from."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for cidr in var.bastion_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]), 0) >= 16])
    error_message = "bastion_cidrs must be IPv4 ranges of at most /16; 0.0.0.0/0 would let everybody in."
  }
}

variable "public_key" {
  description = "OpenSSH public key, by which the driver on the head reaches the workers, and you the bastion. There is no default."
  type        = string
  default     = null
}

variable "nat" {
  description = "A NAT gateway, by which the machines reach package registries. It costs by the hour."
  type        = bool
  default     = true
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
  description = "GB that a disk which all hosts see as /shared (EFS) will hold, for the price; null: no such disk."
  type        = number
  default     = null
  validation {
    condition     = var.shared_gb == null || try(var.shared_gb >= 0 && var.shared_gb <= 1000000, false)
    error_message = "shared_gb must be a number from 0 to 1000000."
  }
}

variable "slots_per_worker" {
  description = "Workers of a training on each machine; null: one for each of its GPUs."
  type        = number
  default     = null
}

variable "repository" {
  description = "Git address that the machines clone; null: the driver's files are brought by rsync."
  type        = string
  default     = null
}

variable "alarm_email" {
  description = "Who is told when budget_usd is nearly spent; null: no alarm."
  type        = string
  default     = null
}

variable "budget_usd" {
  description = "Monthly budget of the alarm."
  type        = number
  default     = 100
}

variable "max_cost_usd" {
  description = "What everything may cost until it expires, in US dollars; above it nothing is made."
  type        = number
  validation {
    condition     = var.max_cost_usd >= 0 && var.max_cost_usd <= 1000000
    error_message = "max_cost_usd must be a number from 0 to 1000000."
  }
}
