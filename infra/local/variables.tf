variable "folder" {
  description = "Where the hosts' keys, logs and inventory are; belongs to them alone."
  type        = string
  validation {
    condition     = length(var.folder) > 0 && !strcontains(var.folder, "'")
    error_message = "folder must be a path without quotes."
  }
}

variable "num_hosts" {
  description = "Number of hosts."
  type        = number
  default     = 2
  validation {
    condition     = var.num_hosts >= 1 && var.num_hosts <= 50 && floor(var.num_hosts) == var.num_hosts
    error_message = "num_hosts must be a whole number from 1 to 50."
  }
}

variable "slots" {
  description = "Workers that each host takes."
  type        = number
  default     = 1
  validation {
    condition     = var.slots >= 1 && floor(var.slots) == var.slots
    error_message = "slots must be a whole number of at least 1."
  }
}
