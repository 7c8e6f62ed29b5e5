"""What a run, or a sweep of runs, says on the terminal at its end."""

import os
from pathlib import Path

from cookbook.console import Console, console


def shown_path(path):
    """A path as short as it can be said from here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def print_summary(content, page):
    ok, metrics, seconds = content["status"] == "ok", content["metrics"], content["seconds"]
    lines = [("result", "ok" if ok else f"FAILED: {content['reason']}")]
    if content["workers"]:
        several = len({worker.get("phase") for worker in content["workers"]}) > 1
        where = ", ".join(
            (f"phase {w['phase']} " if several else "")
            + f"rank {w['rank']}: {w['host']} pid {w['pid']}, {w['samples'] or 0:,} samples"
            for w in content["workers"]
        )
        when = ", in an earlier try of this run" if any(w.get("earlier") for w in content["workers"]) else ""
        lines.append(("workers", f"{content['world_size']} ({where}{when})"))
    if content["worlds"][1:]:
        lines.append(("worlds", " -> ".join(map(str, content["worlds"]))))
    if content["account"]:
        lines.append(("rows", "  ".join(f"{name} {count:,}" for name, count in content["account"].items())))
    lines += [("warning", text) for text in content.get("warnings", [])]
    lines += [("skipped", f"{step}: {reason}") for step, reason in content.get("skipped", {}).items()]
    if left := (content.get("dataset") or {}).get("left_out"):
        lines.append(("left out", f"{len(left):,} files below data.path were not read; the report lists them"))
    if ok:
        if content["objective"]["value"] is not None:
            lines.append((content["objective"]["name"], f"{content['objective']['value']:.4f}"))
        shown = {name: value for name, value in metrics.items() if name != content["objective"]["name"]}
        lines += [(name, f"{value:,.1f}" if value >= 100 else f"{value:.4f}") for name, value in shown.items()]
    lines.append(("seconds", "  ".join(f"{name} {value:.1f}" for name, value in seconds.items())))
    if page:
        lines.append(("report", str(page)))
    if content["workers_command"]:
        lines.append(("workers by hand", content["workers_command"]))
    console.print()
    for name, text in lines:
        console.print(f"{name:<20} {text}", markup=False)


def print_sweep(finished):
    from rich.table import Table

    table = Table(title="sweep", title_justify="left")
    name = next((c["objective"]["name"] for _, c in finished if "objective" in c), "objective")
    for column in ("overrides", "status", name, "samples/s", "seconds", "folder"):
        table.add_column(column, overflow="fold", no_wrap=column == "folder")
    for overrides, content in finished:
        value = content.get("objective", {}).get("value")
        speed = content.get("metrics", {}).get("samples_per_second")
        table.add_row(
            " ".join(word for word in overrides if not word.startswith("recipe=")), content["status"], "-" if value is None else f"{value:.4f}", "-" if speed is None else f"{speed:,.0f}",
            f"{content.get('seconds', {}).get('total', 0):.1f}", shown_path(content["folder"]) if "folder" in content else "-",
        )  # fmt: skip
    (console if console.is_terminal else Console(width=160)).print(table)
