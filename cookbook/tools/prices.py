"""What machines will cost until they expire, by terraform's plan and a table of prices, before anything is made."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cookbook import UserError

HOURS_PER_MONTH = 730


Json = Mapping[str, Any]  # a part of terraform's plan, or of a price table


@dataclass(frozen=True)
class Price:
    """What a plan costs: lines of (what, how many, USD an hour), for so many hours."""

    lines: Sequence[tuple[str, int, float]]
    hours: float

    @property
    def total(self) -> float:
        return sum(count * each for _, count, each in self.lines) * self.hours

    def text(self) -> str:
        lines = [f"{what:<28} {count:>3} x {each:>9.4f} USD/h" for what, count, each in self.lines]
        return "\n".join([*lines, f"{'until everything expires':<28} {self.hours:g} h: {self.total:.2f} USD"])


def guard(plan: Json, variables: Json, table_file: Path, max_cost_usd: float) -> Price:
    """The price of terraform's `plan` (its JSON) until everything expires.

    Raises UserError for a price above max_cost_usd, for one that the table does not know, and for a plan without a
    time at which everything ends (TTL).
    """
    changes = [change for change in plan.get("resource_changes", []) if change["mode"] == "managed"]
    planned = [change for change in changes if change["change"]["after"] is not None]
    if not any(change["type"] != "terraform_data" for change in planned):
        return Price([], 0)
    table = yaml.safe_load(table_file.read_text())
    if all(change["type"] in table["free"] for change in planned):
        return Price([], 0)
    hours = variables.get("ttl_hours")
    if not hours or hours <= 0:
        raise UserError(
            f"infra.variables.ttl_hours={hours}: expected after how many hours everything is to be terminated; "
            "without it nothing is made"
        )
    ends = datetime.datetime.fromisoformat(variables["created"]) + datetime.timedelta(hours=hours)
    if ends <= datetime.datetime.now(datetime.UTC):
        raise UserError(
            f"the time of these machines was over at {ends:%Y-%m-%d %H:%M} UTC: "
            "`make infra-down` first, or a longer infra.variables.ttl_hours"
        )
    price = Price(lines_of(planned, variables, table), hours)
    if price.total > max_cost_usd:
        raise UserError(
            f"{price.total:.2f} USD until everything expires ({hours:g} h, prices of {table['date']}) is more than "
            f"infra.max_cost_usd={max_cost_usd:g}: nothing was made. "
            "Fewer or smaller machines, fewer hours, or a higher limit"
        )
    return price


def lines_of(planned: Iterable[Json], variables: Json, table: Json) -> list[tuple[str, int, float]]:
    """Lines of a price: [(what, how many, USD an hour), ...]. Raises UserError for what the table does not know."""
    region = variables.get("region")
    if region not in table["regions"]:
        raise UserError(f"the price table has no prices for region {region}; it has: {', '.join(table['regions'])}")
    counts: dict[str, int] = {}
    each: dict[str, float] = {}
    for change in planned:
        kind, after = change["type"], change["change"]["after"]
        if kind in table["free"] or (kind == "aws_vpc_endpoint" and after.get("vpc_endpoint_type") == "Gateway"):
            continue
        count = dig(after, table["counts"][kind]) if kind in table.get("counts", {}) else 1
        if kind in table["machines"]:
            what = dig(after, table["machines"][kind])
            price = table["instances"].get(what)
            if kind in table["with_disk"]:
                counts["disks (GB)"] = counts.get("disks (GB)", 0) + count * variables.get("volume_gb", 200)
                each["disks (GB)"] = table["volume_gb_month"] / HOURS_PER_MONTH
        else:
            what = "aws_vpc_endpoint_interface" if kind == "aws_vpc_endpoint" else kind
            price = table["per_hour"].get(what)
        if price is None:
            raise UserError(
                f"the price of {what} is unknown: put it into the target's prices.yaml, with its date, "
                "before anything is made"
            )
        counts[what], each[what] = counts.get(what, 0) + count, price
    return [(what, counts[what], each[what]) for what in counts]


def dig(values: Any, path: str) -> Any:
    """The value at a dotted path in a resource's values. Blocks are lists; the first entry counts."""
    for name in path.split("."):
        values = values[name]
        values = values[0] if isinstance(values, list) else values
    return values
