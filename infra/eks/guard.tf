# What everything will cost until it expires, of the same table as the driver's guard (cookbook/tools/prices.py), so that nobody needs
# the driver to be held back. Everything that costs waits for it.
locals {
  prices   = yamldecode(file("${path.module}/prices.yaml"))
  hourly   = local.prices.per_hour
  hours    = max(var.ttl_hours, local.prices.least_hours)
  unpriced = [for group in values(local.groups) : group.type if group.count > 0 && !contains(keys(local.prices.instances), group.type)]
  # The day on which the version's standard support ends; one that the table does not know counts as past it.
  standard_until = lookup(local.prices.standard_support_until, var.kubernetes_version, "2000-01-01T00:00:00Z")
  standard       = timecmp(local.expires, local.standard_until) < 0
  control_plane  = local.standard ? local.hourly.aws_eks_cluster : local.hourly.aws_eks_cluster_extended_support
  usd_per_hour = (
    sum([for group in values(local.groups) : group.count * (
      lookup(local.prices.instances, group.type, 0) + var.volume_gb * local.prices.volumes.gp3.gb_month / 730
    )])
    + local.hourly.aws_nat_gateway + local.hourly.aws_eip + local.hourly.aws_kms_key
    + (var.shared_gb * local.prices.efs.gb_month + coalesce(var.shared_mibps, 0) * local.prices.efs.mibps_month) / 730
  )
  cost_usd = local.usd_per_hour * local.hours + local.control_plane * (local.hours + local.prices.cluster_ends_later_hours)
}

resource "terraform_data" "guard" {
  lifecycle {
    precondition {
      condition     = contains(local.prices.regions, var.region)
      error_message = "the price table has no prices for region ${var.region}."
    }
    precondition {
      condition     = length(local.unpriced) == 0
      error_message = "the price of ${join(", ", local.unpriced)} is unknown: put it into prices.yaml, with its date."
    }
    precondition {
      condition     = try(local.cost_usd <= var.max_cost_usd, false)
      error_message = "${try(format("%.2f", local.cost_usd), "an unknown number of")} USD until everything expires is more than max_cost_usd = ${var.max_cost_usd}: nothing is made."
    }
    precondition {
      condition     = timecmp(local.expires, timeadd(plantimestamp(), "30m")) >= 0
      error_message = "it would expire at ${local.expires}, in less than 30 minutes: destroy it, or give a longer ttl_hours."
    }
  }
}

check "prices_are_fresh" {
  assert {
    condition     = timecmp(plantimestamp(), timeadd(local.prices.date, "2184h")) < 0 # 91 days
    error_message = "prices.yaml is of ${substr(local.prices.date, 0, 10)}, more than 90 days ago: compare it with the provider's page."
  }
}
