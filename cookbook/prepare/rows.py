"""How many of a dataset's rows a run reads, and whether they are enough for its workers."""

from collections.abc import Mapping
from typing import Any

from cookbook import UserError
from cookbook.job import Settings, num_processes


def capped_rows(config: Settings, rows: Mapping[str, int]) -> int:
    """The rows that the run reads. The scale's cap is for rows to train on; all others are read whole.

    `rows`: how many rows each part of the dataset has, as its manifest says.
    """
    if "train" not in rows:
        return sum(rows.values())
    return min(rows["train"], config["scale"]["max_rows"] or rows["train"])


def check_enough_rows(config: Settings, manifest: Mapping[str, Any]) -> None:
    """Raises UserError when there are fewer rows to train on than workers: one of them would have nothing to do."""
    rows, most, num_workers = manifest["rows"].get("train"), config["scale"]["max_rows"], num_processes(config)
    if rows is None or not any(rule.startswith("rows_once") for rule in config["recipe"]["driver"]["proof"]):
        return
    if (count := capped_rows(config, manifest["rows"])) < num_workers:
        capped = f" (scale.max_rows={most} of {rows:,})" if most and most < rows else ""
        raise UserError(
            f"{count:,} training row{'s' if count != 1 else ''}{capped} for {num_workers} workers: "
            f"each needs one at least. Set cluster.num_workers={max(count, 1)}, or give it more rows"
        )
