# What everything will cost until it expires, of the same table as the driver's guard (cookbook/tools/prices.py), so that nobody needs
# the driver to be held back. Everything that costs waits for it.
locals {
  prices = yamldecode(file("${path.module}/prices.yaml"))
  types  = concat([var.head_type], [for number in range(var.num_workers) : var.worker_type], var.access == "bastion" ? ["t3.micro"] : [])
  disks  = var.volume_gb * (1 + var.num_workers) + (var.access == "bastion" ? local.bastion_gb : 0)
  hourly = local.prices.per_hour
  # Types that the table does not know.
  unpriced = [for type in distinct(local.types) : type if !contains(keys(local.prices.instances), type)]
  usd_per_hour = (
    sum([for type in local.types : lookup(local.prices.instances, type, 0)])
    + local.disks * local.prices.volumes.gp3.gb_month / 730
    + (var.shared_gb == null ? 0 : var.shared_gb * local.prices.efs.gb_month / 730)
    + (var.nat ? local.hourly.aws_nat_gateway + local.hourly.aws_eip : 0)
    + (var.access == "bastion" ? local.hourly.aws_eip : 3 * local.hourly.aws_vpc_endpoint_interface)
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
