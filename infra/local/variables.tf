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

variable "services" {
  description = "Recipes whose Spark, Dask or Ray cluster stays up on the hosts."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for name in var.services : contains(["spark", "dask", "ray_train", "ray_tune", "ray_rllib"], name)])
    error_message = "services are recipes of Spark, Dask or Ray: spark, dask, ray_train, ray_tune, ray_rllib."
  }
}

variable "python" {
  description = "The Python of the driver's environment, which starts services."
  type        = string
  default     = "python3"
  validation {
    condition     = length(var.python) > 0 && !strcontains(var.python, "'")
    error_message = "python must be a path without quotes."
  }
}
