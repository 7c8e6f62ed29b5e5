"""What a run says on the terminal of its dataset and at its end, and what a sweep says of its runs."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cookbook.files import read_log
from cookbook.report.console import Progress, console, print_table


def shown_path(path: str | Path) -> str:
    """A path below the current folder relative to it, any other path as it is."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def show_dataset(dataset: Mapping[str, Any], stage: Progress) -> None:
    """The closing lines of the stage that has prepared a dataset. `dataset` is that part of run.json."""
    rows = ", ".join(f"{count:,} {part}" for part, count in dataset["rows"].items())
    stage.done(f"{dataset['name']}: {rows} rows")
    for line in dataset["left_out"][:5]:
        stage.line(f"left out: {line['file']}: {line['reason']}")
    if more := dataset["left_out"][5:]:
        stage.line(f"left out: {len(more):,} more, listed in the report")
    for note in dataset["notes"]:
        stage.line(f"note: {note}")


def print_summary(content: Mapping[str, Any], page: Path | None) -> None:
    """Prints the table at the end of a run. `content` is its run.json, `page` its report."""
    ok, metrics, seconds = content["status"] == "ok", content["metrics"], content["seconds"]
    said = {"ok": "ok", "preempted": content["reason"]}
    lines = [("result", said.get(content["status"], f"FAILED: {content['reason']}"))]
    if content["workers"]:
        several = len({worker.get("phase") for worker in content["workers"]}) > 1
        where = ", ".join(_worker(worker, several) for worker in content["workers"])
        when = ", in an earlier try of this run" if any(w.get("earlier") for w in content["workers"]) else ""
        lines.append(("workers", f"{content['world_size']} ({where}{when})"))
    if content["worlds"][1:]:
        lines.append(("worlds", " -> ".join(map(str, content["worlds"]))))
    if content["account"]:
        lines.append(("rows", "  ".join(f"{name} {count:,}" for name, count in content["account"].items())))
    lines += [(one["outcome"], f"{one['rule']}: {one['says']}") for one in content.get("findings", [])]
    lines += [("warning", text) for text in content.get("warnings", [])]
    lines += [("skipped", f"{step}: {reason}") for step, reason in content.get("skipped", {}).items()]
    if left := (content.get("dataset") or {}).get("left_out"):
        lines.append(("left out", f"{len(left):,} files below data.path were not read; the report lists them"))
    if ok:
        if content["objective"]["value"] is not None:
            lines.append((content["objective"]["name"], f"{content['objective']['value']:.4f}"))
        shown = {name: value for name, value in metrics.items() if name != content["objective"]["name"]}
        lines += [(name, f"{value:,.1f}" if value >= 100 else f"{value:.4f}") for name, value in shown.items()]
    if content.get("paces", {}).get("slow_rank") is not None:
        lines.append(("slow", content["paces"]["says"]))
    lines.append(("seconds", "  ".join(f"{name} {value:.1f}" for name, value in seconds.items())))
    if page:
        lines.append(("report", str(page)))
    if content["workers_command"]:
        lines.append(("workers by hand", content["workers_command"]))
    console.print()
    for name, text in lines:
        console.print(f"{name:<20} {text}", markup=False)


def _worker(worker: Mapping[str, Any], with_phase: bool) -> str:
    phase = f"phase {worker['phase']} " if with_phase else ""
    place = f"rank {worker['rank']}: {worker['host']} pid {worker['pid']}"
    if worker.get("device") not in (None, "cpu"):
        place += f" on {worker['device']}"
    return f"{phase}{place}, {worker['samples'] or 0:,} samples"


def print_end_of_log(folder: Path, name: str) -> None:
    """Prints the last lines of a process's log, for a run that has failed. `folder`: of the run."""
    lines = read_log(folder / f"logs/{name}.log").splitlines()
    # Launchers tag a worker's lines. These say more than the launcher's own traceback, which follows them.
    tagged = [line for line in lines if re.search(r"<stderr>|^\[(default\d+|\w+:\d+)\]|^tfrun: ", line)]
    title = f"--- from {shown_path(folder)}/logs/{name}.log"
    console.print(title, *(tagged or lines)[-20:], "---", sep="\n", markup=False)


def print_sweep(finished: Iterable[tuple[Sequence[str], Mapping[str, Any]]]) -> None:
    """Prints a line for each run of a sweep: its overrides and its run.json."""
    finished = list(finished)
    table = Table(title="sweep", title_justify="left")
    name = next((content["objective"]["name"] for _, content in finished if "objective" in content), "objective")
    for column in ("overrides", "status", name, "samples/s", "seconds", "folder"):
        table.add_column(column, overflow="fold", no_wrap=column == "folder")
    several = len({word for overrides, _ in finished for word in overrides if word.startswith("recipe=")}) > 1
    for overrides, content in finished:
        value = content.get("objective", {}).get("value")
        speed = content.get("metrics", {}).get("samples_per_second")
        table.add_row(
            " ".join(word for word in overrides if several or not word.startswith("recipe=")),
            content["status"],
            "-" if value is None else f"{value:.4f}",
            "-" if speed is None else f"{speed:,.0f}",
            f"{content.get('seconds', {}).get('total', 0):.1f}",
            shown_path(content["folder"]) if "folder" in content else "-",
        )
    print_table(table, width=160)
