"""The history of nightly runs, and one static page over it.

    make nightly-record RECIPE=horovod HISTORY=history.jsonl    runs the recipe, appends a line, judges it
    make health HISTORY=history.jsonl                           writes outputs/health/index.html (or: TO=folder)

A history is a file of JSON lines. A figure is compared with the last runs of the same recipe with the same settings on
the same class of machine. Their median and their spread decide; there are no fixed bounds. A recipe whose run fails is
red. A recipe that ran but fell out of its own history, that is missing, or that has an old lock, is amber.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from cookbook import ROOT, UserError, recipes, require_recipe, run_folder
from cookbook.files import write_whole
from cookbook.prepare.locks import lock_of, pins
from cookbook.programs import run_program
from cookbook.report import pages
from cookbook.tools.history import Entry, append, entry_of, read
from cookbook.tools.provenance import commit_of, machine_class
from cookbook.tools.trends import LEAST, OLD_LOCK_DAYS, WINDOW, Row, judge, rows_of


def sparkline(entries: Sequence[Entry], name: str, width: int = 150, height: int = 34) -> str:
    """The figure `name` over the entries as an inline SVG; a failed run is a red bar."""
    if not entries:
        return ""
    values = [entry.figures()[name].value if name in entry.figures() else None for entry in entries]
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0, 1)
    step = (width - 8) / max(1, len(entries) - 1)
    parts: list[str] = []
    line: list[str] = []
    for number, (entry, value) in enumerate(zip(entries, values, strict=True)):
        x = 4 + number * step
        if entry.status == "failed":
            title = f"<title>{day(entry.time)}: failed</title>"
            parts.append(f'<rect class="bad" x="{x - 1.5:.1f}" y="2" width="3" height="{height - 4}">{title}</rect>')
        if value is not None and entry.status == "ok":
            y = height - 4 - (height - 8) * ((value - low) / (high - low) if high > low else 0.5)
            line.append(f"{x:.1f},{y:.1f}")
    if len(line) == 1:
        left, _, top = line[0].partition(",")
        parts.append(f'<circle class="line" cx="{left}" cy="{top}" r="2"/>')
    elif line:
        parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    label = f"{name}: {pages.number(low)} to {pages.number(high)}" if known else f"{name}: no figures"
    label = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    size = f'width="{width}" height="{height}"'
    return f'<svg class="spark" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def page(history: str | Path, recipes: Collection[str], now: float) -> tuple[str, list[Row], list[str]]:
    """Returns (the page as HTML, rows, problems)."""
    entries, benches, canaries, problems = read(history)
    rows = rows_of(entries, recipes, now)
    spells = [(row, spell) for row in rows for spell in row.spells]
    newest_bench = {entry.recipe: entry for entry in benches}
    newest_canary = {content["recipe"]: content for content in canaries}
    environment = pages.environment()
    environment.filters |= {"day": day}
    environment.globals |= {"sparkline": sparkline, "OLD_LOCK_DAYS": OLD_LOCK_DAYS}
    rule = f"median and spread of the last {WINDOW} good runs on the same class of machine"
    text = environment.get_template("health.html").render(
        rows=rows,
        spells=sorted(spells, key=lambda pair: pair[1].failed[0].time, reverse=True),
        benches=[(entry, judge(entry, benches)) for entry in newest_bench.values()],
        canaries=list(newest_canary.values()),
        machines=Counter(entry.machine for entry in entries),
        entries=entries,
        problems=problems,
        now=now,
        counts=Counter(row.state for row in rows),
        machine=pages.machine(),
        rule=f"{rule}; fewer than {LEAST} judge nothing",
    )
    return text, rows, problems


def write_page(
    history: str | Path, target: str | Path, recipes: Collection[str], now: float
) -> tuple[Path, list[Row], list[str]]:
    """Writes <target>/index.html with the history beside it; returns (path, rows, problems)."""
    text, rows, problems = page(history, recipes, now)
    target = Path(target)
    write_whole(target / "index.html", text)
    if Path(history).resolve() != (target / "history.jsonl").resolve():
        shutil.copy(history, target / "history.jsonl")
    return target / "index.html", rows, problems


def record(recipe: str, history: str | Path, overrides: Sequence[str]) -> int:
    """Runs a recipe and appends its line.

    Returns the exit status: of the run, or 1 when a figure fell out of its history.
    """
    root = next((word.partition("=")[2] for word in overrides if word.startswith("output_root=")), "outputs")
    folders, started = set(Path(ROOT, root, recipe).glob("*/")), time.time()
    argv = [sys.executable, "-m", "cookbook", f"recipe={recipe}", *overrides, "resume=never"]
    status = subprocess.run(argv, cwd=ROOT).returncode
    made = [folder for folder in set(Path(ROOT, root, recipe).glob("*/")) - folders if folder.name != "latest"]
    commit = commit_of()
    if len(made) == 1 and (content := run_folder.load(made[0])).get("status") in ("ok", "failed"):
        entry = entry_of(content, commit, time.time())
    else:
        reason = f"the driver ended with status {status} and left no finished run; its words are in the job's log"
        settings = " ".join(sorted(overrides))
        machine, versions = machine_class(pages.machine()), pins(lock_of(recipe).read_text())
        entry = Entry(recipe, started, commit, machine, settings, "failed", reason, versions)
    earlier = read(history).runs if Path(history).is_file() else []
    append(history, "run", asdict(entry))
    return max(status, int(_say(entry, earlier)))


def record_ratios(recipe: str, machine: str, ratios: dict[str, float], history: str | Path) -> bool:
    """Appends a benchmark's ratios; returns whether one of them fell out of its history."""
    machine = machine_class(machine)
    entry = Entry(recipe, time.time(), commit_of(), machine, "bench", "ok", ratios=ratios)
    earlier = read(history).benches if Path(history).is_file() else []
    append(history, "bench", asdict(entry))
    return _say(entry, earlier)


def _say(entry: Entry, earlier: Iterable[Entry]) -> bool:
    """Prints the judgements; returns whether a figure is worse than its history."""
    judgements = judge(entry, earlier)
    for one in judgements:
        if one.state != "new":
            print(f"history      {one}")
    if new := [one.name for one in judgements if one.state == "new"]:
        print(f"history      fewer than {LEAST} earlier runs on this class of machine: not judged: {', '.join(new)}")
    return any(one.state == "worse" for one in judgements)


def main(argv: Sequence[str]) -> int:
    command, *arguments = argv or [""]
    if command == "record" and len(arguments) >= 2:
        recipe, history, *overrides = arguments
        require_recipe(recipe)
        if not history or Path(history).is_dir():  # said now, not after the run
            raise UserError(f"HISTORY={history}: expected a file for the history, such as HISTORY=history.jsonl")
        return record(recipe, os.path.abspath(history), overrides)
    if command != "page" or len(arguments) != 2 or not all(arguments):
        raise SystemExit(
            "usage: make health HISTORY=history.jsonl [TO=folder], make nightly-record RECIPE=name HISTORY=..."
        )
    path, rows, problems = write_page(arguments[0], arguments[1], recipes(), time.time())
    for row in rows:
        name = f"{row.recipe} {row.settings}".strip()
        print(f"{row.state:<8} {name:<14} {'; '.join(row.notes)}".rstrip())
    for problem in problems:
        print(f"warning  {problem}")
    print(f"page     {path}")
    return 0


if __name__ == "__main__":
    run_program(main)
