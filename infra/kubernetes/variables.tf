variable "name" {
  description = "Value of the label that everything made here carries."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 30 small letters, digits and dashes, beginning with a letter."
  }
}

variable "kubeconfig" {
  description = "File with the way to the cluster."
  type        = string
  default     = "~/.kube/config"
}

variable "context" {
  description = "The cluster in it; no default, so that nothing is installed into whatever was used last."
  type        = string
  validation {
    condition     = length(var.context) > 0
    error_message = "context must name a cluster of the kubeconfig (kubectl config get-contexts)."
  }
}

variable "namespace" {
  description = "Where recipes run."
  type        = string
  default     = "cookbook"
}

variable "storage_class" {
  description = "An existing storage class with ReadWriteMany for the shared claim; null: one is made for efs_file_system or filestore_network."
  type        = string
  default     = null
  validation {
    condition     = length([for given in [var.storage_class, var.efs_file_system, var.filestore_network] : given if given != null]) == 1
    error_message = "one of storage_class, efs_file_system and filestore_network must be given, and no more: the recipes' pods share a disk."
  }
}

variable "efs_file_system" {
  description = "An EFS file system (output of infra/eks) for which a storage class is made."
  type        = string
  default     = null
}

variable "filestore_network" {
  description = "A network of Google Cloud (output of infra/gke) in which the storage class makes its disks."
  type        = string
  default     = null
}

variable "storage_size" {
  description = "Size of the shared claim; EFS takes any, Filestore 1Ti at least."
  type        = string
  default     = "100Gi"
}

variable "device_plugin" {
  description = "Whether NVIDIA's device plugin is installed; GKE brings its own."
  type        = bool
  default     = true
}

variable "operators" {
  description = "Which operators are installed: trainer, ray, spark, dask, kserve."
  type        = set(string)
  default     = ["trainer", "ray", "spark", "dask", "kserve"]
  validation {
    condition     = length(setsubtract(var.operators, ["trainer", "ray", "spark", "dask", "kserve"])) == 0
    error_message = "operators may be trainer, ray, spark, dask and kserve."
  }
}

variable "pipelines_version" {
  description = "Version of Kubeflow Pipelines, installed by kubectl: it has no chart (kubeflow/pipelines issue 12728); null: not installed."
  type        = string
  default     = "2.17.0"
}
