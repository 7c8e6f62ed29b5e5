locals {
  labels = { "distributed-ml" = var.name }
  # Every chart with its version. What is empty in `values` is as the chart has it.
  charts = {
    trainer = {
      namespace = "kubeflow-system", repository = "oci://ghcr.io/kubeflow/charts", chart = "kubeflow-trainer", version = "2.3.0", values = {}
    }
    ray = {
      namespace = "ray-system", repository = "https://ray-project.github.io/kuberay-helm", chart = "kuberay-operator", version = "1.6.2", values = {}
    }
    spark = {
      namespace = "spark-operator", repository = "https://kubeflow.github.io/spark-operator", chart = "spark-operator", version = "2.4.0",
      # The driver's account and its rights are made where the recipes run.
      values = { spark = { jobNamespaces = [var.namespace] }, webhook = { enable = true } }
    }
    dask = {
      namespace = "dask-operator", repository = "https://helm.dask.org", chart = "dask-kubernetes-operator", version = "2026.3.0", values = {}
    }
    cert-manager = {
      namespace = "cert-manager", repository = "oci://quay.io/jetstack/charts", chart = "cert-manager", version = "v1.19.1",
      values    = { crds = { enabled = true } }
    }
    kserve-crd = {
      namespace = "kserve", repository = "oci://ghcr.io/kserve/charts", chart = "kserve-crd", version = "v0.21.0", values = {}
    }
    kserve = {
      namespace = "kserve", repository = "oci://ghcr.io/kserve/charts", chart = "kserve-resources", version = "v0.21.0",
      values    = { kserve = { controller = { deploymentMode = "RawDeployment" } } }
    }
    device-plugin = {
      namespace = "nvidia-device-plugin", repository = "https://nvidia.github.io/k8s-device-plugin", chart = "nvidia-device-plugin", version = "0.18.0",
      values    = { gfd = { enabled = true } } # it finds the nodes that have a GPU
    }
  }
  first = toset(concat(contains(var.operators, "kserve") ? ["cert-manager", "kserve-crd"] : [], var.device_plugin ? ["device-plugin"] : []))
}

resource "kubernetes_namespace_v1" "recipes" {
  metadata {
    name = var.namespace
    labels = merge(local.labels, {
      "pod-security.kubernetes.io/enforce" = "baseline"
      "pod-security.kubernetes.io/warn"    = "restricted"
    })
  }
}

# What others wait for.
resource "helm_release" "first" {
  for_each         = local.first
  name             = each.value
  namespace        = local.charts[each.value].namespace
  create_namespace = true
  repository       = local.charts[each.value].repository
  chart            = local.charts[each.value].chart
  version          = local.charts[each.value].version
  values           = [yamlencode(local.charts[each.value].values)]
  atomic           = true
  timeout          = 600
}

resource "helm_release" "operator" {
  for_each         = var.operators
  name             = local.charts[each.value].chart
  namespace        = local.charts[each.value].namespace
  create_namespace = true
  repository       = local.charts[each.value].repository
  chart            = local.charts[each.value].chart
  version          = local.charts[each.value].version
  values           = [yamlencode(local.charts[each.value].values)]
  atomic           = true
  timeout          = 600
  depends_on       = [helm_release.first, kubernetes_namespace_v1.recipes]
}

# As its installation guide has it: the cluster-wide objects first, then the rest.
resource "terraform_data" "pipelines" {
  count      = var.pipelines_version == null ? 0 : 1
  depends_on = [kubernetes_storage_class_v1.default, helm_release.operator]
  input = {
    kubectl = "kubectl --kubeconfig ${pathexpand(var.kubeconfig)} --context ${var.context}"
    source  = "github.com/kubeflow/pipelines/manifests/kustomize"
    version = var.pipelines_version
  }
  provisioner "local-exec" {
    command = <<-EOT
      set -e
      ${self.input.kubectl} apply -k "${self.input.source}/cluster-scoped-resources?ref=${self.input.version}"
      ${self.input.kubectl} wait crd/applications.app.k8s.io --for condition=established --timeout=120s
      ${self.input.kubectl} apply -k "${self.input.source}/env/platform-agnostic?ref=${self.input.version}"
      ${self.input.kubectl} wait --namespace kubeflow deployment --all --for condition=available --timeout=900s
    EOT
  }
  provisioner "local-exec" {
    when    = destroy
    command = <<-EOT
      ${self.input.kubectl} delete --ignore-not-found -k "${self.input.source}/env/platform-agnostic?ref=${self.input.version}"
      ${self.input.kubectl} delete --ignore-not-found -k "${self.input.source}/cluster-scoped-resources?ref=${self.input.version}"
    EOT
  }
}

resource "kubernetes_storage_class_v1" "efs" {
  count               = var.efs_file_system == null ? 0 : 1
  storage_provisioner = "efs.csi.aws.com"
  reclaim_policy      = "Delete"
  # The pods' own user; nobody else reads what is there.
  parameters = { provisioningMode = "efs-ap", fileSystemId = var.efs_file_system, directoryPerms = "700", uid = "1000", gid = "1000" }
  metadata {
    name   = "${var.name}-efs"
    labels = local.labels
  }
}

# EKS has no default class, and Pipelines' databases ask for one; GKE has.
resource "kubernetes_storage_class_v1" "default" {
  count                  = var.efs_file_system == null ? 0 : 1
  storage_provisioner    = "ebs.csi.aws.com"
  reclaim_policy         = "Delete"
  volume_binding_mode    = "WaitForFirstConsumer"
  allow_volume_expansion = true
  parameters             = { type = "gp3", encrypted = "true" }
  metadata {
    name        = "${var.name}-gp3"
    labels      = local.labels
    annotations = { "storageclass.kubernetes.io/is-default-class" = "true" }
  }
}

# GKE's own class is for the network called default.
resource "kubernetes_storage_class_v1" "filestore" {
  count               = var.filestore_network == null ? 0 : 1
  storage_provisioner = "filestore.csi.storage.gke.io"
  reclaim_policy      = "Delete"
  volume_binding_mode = "WaitForFirstConsumer"
  parameters          = { tier = "standard", network = var.filestore_network }
  metadata {
    name   = "${var.name}-filestore"
    labels = local.labels
  }
}

# Datasets, checkpoints and results of all runs.
resource "kubernetes_persistent_volume_claim_v1" "shared" {
  wait_until_bound = false
  metadata {
    name      = "cookbook-shared"
    namespace = kubernetes_namespace_v1.recipes.metadata[0].name
    labels    = local.labels
  }
  spec {
    access_modes = ["ReadWriteMany"]
    storage_class_name = coalesce(
      var.storage_class, one(kubernetes_storage_class_v1.efs[*].metadata[0].name), one(kubernetes_storage_class_v1.filestore[*].metadata[0].name)
    )
    resources {
      requests = { storage = var.storage_size }
    }
  }
}

# The pods of recipes talk to each other, and the operators to them; nobody else comes in.
resource "kubernetes_network_policy_v1" "recipes" {
  metadata {
    name      = "recipes"
    namespace = kubernetes_namespace_v1.recipes.metadata[0].name
    labels    = local.labels
  }
  spec {
    policy_types = ["Ingress"]
    pod_selector {
      match_labels = { "app.kubernetes.io/part-of" = "distributed-ml-recipes" }
    }
    ingress {
      from {
        pod_selector {
          match_labels = { "app.kubernetes.io/part-of" = "distributed-ml-recipes" }
        }
      }
      dynamic "from" {
        for_each = toset([for name in var.operators : local.charts[name].namespace])
        content {
          namespace_selector {
            match_labels = { "kubernetes.io/metadata.name" = from.value }
          }
        }
      }
    }
  }
}
