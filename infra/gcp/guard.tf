# What everything will cost until it expires, of the same table as the driver's guard (cookbook/tools/prices.py), so that nobody needs
# the driver to be held back. Everything that costs waits for it.
locals {
  prices = yamldecode(file("${path.module}/prices.yaml"))
  # Types that the table does not know.
  unpriced = [for type in distinct(concat(values(local.machines), var.tpu_type == null ? [] : [var.tpu_type])) : type if !contains(keys(local.prices.instances), type)]
  usd_per_hour = (
    sum([for type in values(local.machines) : lookup(local.prices.instances, type, 0) + var.volume_gb * local.prices.volumes.pd-balanced.gb_month / 730])
    + (var.tpu_type == null ? 0 : lookup(local.prices.instances, var.tpu_type, 0))
    + (var.shared_gb == null ? 0 : var.shared_gb * local.prices.filestore_gb_month / 730)
    + local.prices.per_hour.google_compute_router_nat
  )
  cost_usd = local.usd_per_hour * var.ttl_hours
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
