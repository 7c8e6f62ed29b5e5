"""Whether a run may go on with what an earlier one has left.

Which rows were taken before a position (epoch, step) depends on some settings: these must be the same. The number of
workers is not among them (a batch is divided anew), nor is the learning rate or the number of epochs.
"""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cookbook import UserError, redact, run_folder, systems
from cookbook.job import Settings
from runrecord import Record


def position(recipe: str, config: Settings) -> dict[str, Any]:
    """{setting: value} of all that a run's position depends on; stands in its run.json."""
    found = {"recipe": recipe, "seed": config["seed"], "scale.max_rows": config["scale"]["max_rows"]}
    found |= {f"recipe.{key}": config["recipe"][key] for key in config["recipe"]["driver"].get("position", ())}
    found |= {"recipe.mode": config["recipe"]["mode"]} if "mode" in config["recipe"] else {}
    hidden: dict[str, Any] = redact.redacted(found | {"data": config["data"]})
    return hidden


def check(folder: Path, recipe: str, config: Settings) -> None:
    """Raises UserError, with both values of each setting, when these settings cannot go on with the run in `folder`."""
    store, kept = config["cluster"]["storage"] or "", run_folder.load(folder).get("storage", "")
    if bool(store) != bool(kept) or not f"{kept}/".startswith(f"{store.rstrip('/')}/"):
        where = f"in {kept}" if kept else "in its folder"
        raise UserError(
            f"resume={folder}: the checkpoints of that run are {where}, and cluster.storage={store or 'null'} names "
            "another place: give the same one as there"
        )
    check_claim(folder, config)
    mine = position(recipe, config)
    theirs = run_folder.load(folder).get("position")
    if theirs is None:
        raise UserError(f"resume={folder}: its run.json cannot be read; choose another run, or resume=never")
    changed = [(key, theirs[key], mine[key]) for key in mine if key in theirs and key != "data"]
    data, before = mine["data"], theirs.get("data") or {}
    if before and before != data:
        names = [key for key in ("builder", "path") if before.get(key) != data.get(key)]
        parts = before.get("parameters") or {}, data.get("parameters") or {}
        changed += [(f"data.{key}", before.get(key), data.get(key)) for key in names]
        for key in sorted(parts[0].keys() | parts[1].keys()):
            changed.append((f"data.parameters.{key}", parts[0].get(key), parts[1].get(key)))
    if other := [f"{key} is {old!r} there and {new!r} here" for key, old, new in changed if old != new]:
        raise UserError(
            f"resume={folder}: which rows this run has taken was decided by settings that have changed: "
            f"{'; '.join(other)}. Give the values from there, or start afresh with resume=never"
        )


def check_claim(folder: Path, config: Settings) -> None:
    """Raises UserError when pods are to go on with checkpoints that are not on their claim, or others with those."""
    if config["cluster"]["storage"]:  # all places find them there
        return
    kind, is_there = config["cluster"]["kind"], (folder / run_folder.IN_CLUSTER).exists()
    on_pods = kind == "kubernetes" and not systems.load(config["recipe"]["driver"]["system"]).is_kubernetes_client
    if is_there != on_pods:
        where = "are on the claim of a Kubernetes cluster" if is_there else "are not on a Kubernetes cluster's claim"
        raise UserError(
            f"resume={folder}: the checkpoints of that run {where}, and cluster={kind} would not find them: go on "
            "where it began, or start afresh with resume=never"
        )


def check_clock(records: Iterable[Record], folder: Path, now: float) -> None:
    """Raises UserError when an earlier try of the run, whose records these are, began later than `now`.

    Which of two tries took a step again is told by the clock.
    """
    moments = [event["generation"] for events in records for event in events if event["event"] == "restore"]
    if moments and (last := max(moments)) > now:
        there, here = (datetime.datetime.fromtimestamp(moment).isoformat(" ", "seconds") for moment in (last, now))
        raise UserError(
            f"{folder} cannot be resumed: an earlier try of it began at {there}, and this machine's clock says {here}: "
            "it was set back. Set it right (timedatectl), or start afresh with resume=never"
        )


def check_dataset(before: Mapping[str, Any] | None, data_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError when the dataset is not the one that the earlier try (its `dataset` in run.json) has read."""
    if not before:
        return
    rows = ", ".join(f"{count:,} {part}" for part, count in manifest["rows"].items())
    if before["rows"] != manifest["rows"]:
        there = ", ".join(f"{count:,} {part}" for part, count in before["rows"].items())
        raise UserError(
            f"{folder} cannot be resumed: the dataset has {rows} rows now and had {there} rows there. Start "
            "afresh with resume=never"
        )
    if Path(before["folder"]).name != Path(data_dir).name:
        raise UserError(
            f"{folder} cannot be resumed: the dataset is {Path(data_dir).name} now and was "
            f"{Path(before['folder']).name} there ({rows} rows each): its files, its settings or its builder have "
            "changed. Start afresh with resume=never"
        )
