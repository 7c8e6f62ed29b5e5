"""What machines will cost until they expire, by terraform's plan and a table of prices, before anything is made.

Terraform compares the same sum by itself (infra/<target>/guard.tf), so that `terraform apply` without the driver is
guarded too. Here the plan's own values are priced, whatever settings, files or variables of the shell they came from.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cookbook import UserError

HOURS_PER_MONTH = 730
FRESH_DAYS = 90  # older prices are warned of
LEAST_MINUTES = 30  # what expires sooner is not worth making: it would end while it is made


Json = Mapping[str, Any]  # a part of terraform's plan, or of a price table


@dataclass(frozen=True)
class Price:
    """What a plan costs: lines of (what, how many, USD an hour, hours), and when the last of it expires."""

    lines: Sequence[tuple[str, float, float, float]]
    hours: float
    warning: str = ""

    @property
    def total(self) -> float:
        """US dollars until everything expires."""
        return sum(count * each * hours for _, count, each, hours in self.lines)

    def text(self) -> str:
        lines = [f"{what:<28} {count:>6g} x {each:>9.4f} USD/h x {h:g} h" for what, count, each, h in self.lines]
        end = [f"{'until everything expires':<28} {self.hours:g} h: {self.total:.2f} USD"]
        return "\n".join([*lines, *end, *([self.warning] if self.warning else [])])


def guard(plan: Json, variables: Json, table_file: Path, max_cost_usd: float, now: datetime.datetime) -> Price:
    """The price of terraform's `plan` (its JSON) until everything expires.

    `variables` are the driver's; the plan's own win, as they are what terraform will use. Raises UserError for a
    price above max_cost_usd, for one that the table does not know, and for a plan that has no time at which
    everything ends (TTL), or one that is over or nearly so.
    """
    if not (math.isfinite(max_cost_usd) and max_cost_usd >= 0):
        raise UserError(f"infra.max_cost_usd={max_cost_usd}: expected US dollars, a number of at least 0")
    changes = [change for change in plan.get("resource_changes", []) if change["mode"] == "managed"]
    planned = [change for change in changes if change["change"]["after"] is not None]
    if not any(change["type"] != "terraform_data" for change in planned):
        return Price([], 0)
    table = yaml.safe_load(table_file.read_text())
    if all(change["type"] in table["free"] for change in planned):
        return Price([], 0)
    given = {name: entry.get("value") for name, entry in plan.get("variables", {}).items()}
    variables = {**variables, **given}
    hours = variables.get("ttl_hours")
    if not hours or not math.isfinite(hours) or hours <= 0:
        raise UserError(
            f"infra.variables.ttl_hours={hours}: expected after how many hours everything is to be terminated; "
            "without it nothing is made"
        )
    ends = datetime.datetime.fromisoformat(variables["created"]) + datetime.timedelta(hours=hours)
    if ends < now + datetime.timedelta(minutes=LEAST_MINUTES):
        raise UserError(
            f"the time of these machines ends at {ends:%Y-%m-%d %H:%M} UTC, in less than {LEAST_MINUTES} minutes: "
            "`make infra-down` first, or a longer infra.variables.ttl_hours"
        )
    price = Price(lines_of(planned, variables, table, ends), hours, stale(table, now.date()))
    if not price.total <= max_cost_usd:
        raise UserError(
            f"{price.total:.2f} USD until everything expires ({hours:g} h, prices of {table['date']}) is more than "
            f"infra.max_cost_usd={max_cost_usd:g}: nothing was made. "
            "Fewer or smaller machines, fewer hours, or a higher limit"
        )
    return price


def stale(table: Json, today: datetime.date) -> str:
    """A warning about a price table that nobody has looked at for a long time; empty for a fresh one."""
    days = (today - table["date"]).days
    if days <= FRESH_DAYS:
        return ""
    return f"warning: these prices are of {table['date']}, {days} days ago: compare them with the provider's page"


def lines_of(
    planned: Sequence[Json], variables: Json, table: Json, ends: datetime.datetime
) -> list[tuple[str, float, float, float]]:
    """Lines of a price: [(what, how many, USD an hour, hours), ...].

    Raises UserError for what the table does not know.
    """
    region = variables.get("region")
    if region not in table["regions"]:
        raise UserError(f"the price table has no prices for region {region}; it has: {', '.join(table['regions'])}")
    hours = max(variables["ttl_hours"], table.get("least_hours", 0))
    templates = [change["change"]["after"] for change in planned if change["type"] == "aws_launch_template"]
    found: dict[tuple[str, float, float], float] = {}
    for change in planned:
        kind, after = change["type"], change["change"]["after"]
        if kind in table["free"] or (kind == "aws_vpc_endpoint" and after.get("vpc_endpoint_type") == "Gateway"):
            continue
        for what, count, each, more in _parts(kind, after, variables, table, ends, templates):
            if each is None:
                raise UserError(
                    f"the price of {what} is unknown: put it into the target's prices.yaml, with its date, "
                    "before anything is made"
                )
            key = (what, each, hours + more)
            found[key] = found.get(key, 0) + count
    return [(what, count, each, hours) for (what, each, hours), count in found.items()]


Part = tuple[str, float, float | None, float]  # what, how many, USD an hour (None: unknown), hours beyond the rest


def _parts(
    kind: str, after: Json, variables: Json, table: Json, ends: datetime.datetime, templates: Sequence[Json]
) -> Iterator[Part]:
    """What of a resource is paid for."""
    count = dig(after, table["counts"][kind]) if kind in table.get("counts", {}) else 1
    if kind == "aws_eks_cluster":
        yield _control_plane(after.get("version"), table, ends)
    elif kind == "aws_efs_file_system":
        yield from _efs(after, variables, table)
    elif kind == "google_filestore_instance":
        yield "Filestore (GB)", dig(after, "file_shares.capacity_gb"), table["filestore_gb_month"] / HOURS_PER_MONTH, 0
    elif kind in table["machines"]:
        what = dig(after, table["machines"][kind])
        yield what, count, table["instances"].get(what), 0
        if after.get("associate_public_ip_address"):
            yield "public address", count, table["per_hour"].get("aws_eip"), 0
        for volume in _volumes(kind, after, table, templates):
            for name, number, price in _of_a_volume(volume, table["volumes"]):
                yield name, count * number, price, 0
    else:
        what = "aws_vpc_endpoint_interface" if kind == "aws_vpc_endpoint" else kind
        # A filestore that the cluster's claim will make: by the size that was asked for.
        if kind == "google_container_cluster" and variables.get("shared_gb"):
            yield "Filestore (GB)", variables["shared_gb"], table["filestore_gb_month"] / HOURS_PER_MONTH, 0
        yield what, count, table["per_hour"].get(what), 0


def _control_plane(version: str | None, table: Json, ends: datetime.datetime) -> Part:
    """EKS: the price of a version depends on whether its standard support is over. It is deleted after the nodes."""
    until = table["standard_support_until"].get(version)
    standard = until is not None and ends.date() < until
    what = "aws_eks_cluster" if standard else "aws_eks_cluster_extended_support"
    return what, 1, table["per_hour"].get(what), table["cluster_ends_later_hours"]


def _efs(after: Json, variables: Json, table: Json) -> Iterator[Part]:
    mode = after.get("throughput_mode") or "bursting"
    yield "EFS (GB)", variables.get("shared_gb") or 0, table["efs"]["gb_month"] / HOURS_PER_MONTH, 0
    if mode == "provisioned":
        each = table["efs"]["mibps_month"] / HOURS_PER_MONTH
        yield "EFS throughput (MiB/s)", after.get("provisioned_throughput_in_mibps") or 0, each, 0
    elif mode != "bursting":  # elastic is paid by what is transferred: no plan knows how much
        yield f"EFS with throughput_mode={mode}", 1, None, 0


def _volumes(kind: str, after: Json, table: Json, templates: Sequence[Json]) -> list[Json]:
    """The disks of a machine: [{type, gb, iops, mibps}, ...]."""
    if kind == "aws_instance":
        blocks = [*(after.get("root_block_device") or [{}]), *(after.get("ebs_block_device") or [])]
    elif kind == "aws_eks_node_group":  # which template is its own the plan does not know yet: the largest counts
        every = [mapping["ebs"][0] for t in templates for mapping in t.get("block_device_mappings") or []]
        blocks = [max(every, key=lambda ebs: ebs.get("volume_size") or 0)] if every else [{}]
    elif kind == "google_compute_instance":
        boot = [disk["initialize_params"][0] for disk in after["boot_disk"]]
        return [{"type": disk.get("type"), "gb": disk.get("size")} for disk in boot]
    elif kind == "google_container_node_pool":
        config = after["node_config"][0]
        return [{"type": config.get("disk_type"), "gb": config.get("disk_size_gb")}]
    else:
        return []
    return [
        {"type": b.get("volume_type"), "gb": b.get("volume_size"), "iops": b.get("iops"), "mibps": b.get("throughput")}
        for b in blocks
    ]


def _of_a_volume(volume: Json, volumes: Json) -> Iterator[tuple[str, float, float | None]]:
    """(what, how many, USD an hour) of a disk; gp3 pays for more operations and throughput than it comes with."""
    kind = volume["type"] or volumes["default"]
    known = volumes.get(kind, {})
    size = volume["gb"] or volumes["default_gb"]
    yield f"disks {kind} (GB)", size, known["gb_month"] / HOURS_PER_MONTH if known else None
    for name, unit in (("iops", "IOPS"), ("mibps", "MiB/s")):
        if (more := (volume.get(name) or 0) - known.get(f"free_{name}", 0)) > 0 and known:
            price = known.get(f"{name}_month")
            yield f"disks {kind} ({unit})", more, None if price is None else price / HOURS_PER_MONTH


def dig(values: Any, path: str) -> Any:
    """The value at a dotted path in a resource's values. Blocks are lists; the first entry counts."""
    for name in path.split("."):
        values = values[name]
        values = values[0] if isinstance(values, list) else values
    return values
