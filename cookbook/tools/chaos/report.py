"""What came out of disturbed runs: on the terminal, as a page, and as the documents' table FAULT x RECIPE."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cookbook import recipes
from cookbook.files import read_block, read_json, write_block, write_whole
from cookbook.report import pages, pictures
from cookbook.report.console import console, print_table
from cookbook.report.summary import shown_path
from cookbook.tools.chaos.fault import Fault, Scene
from cookbook.tools.chaos.faults import FAULTS
from cookbook.tools.chaos.outcome import Outcome

ROW = re.compile(r"^\| `(\w+)` (\|.*)$", re.MULTILINE)  # of a table: a recipe, and its cells
RUN_ON = re.compile(r"Run on (.+? Commits: [^.]*\.)")


def word_of(outcome: Outcome) -> str:
    if outcome.cannot:
        return "cannot happen"
    return "recovered" if outcome.recovered else "NOT RECOVERED"


def lines_of(outcome: Outcome) -> list[tuple[str, str]]:
    """What is to be said of a disturbed run, line by line: (name, text)."""
    if outcome.cannot:
        return [("faults", " ".join(outcome.faults)), ("outcome", f"cannot happen: {outcome.cannot}")]
    steps = "the recipe's workers note no steps"
    if outcome.steps_taken is not None:
        steps = f"{outcome.steps_lost} of {outcome.steps_taken} steps taken by the busiest worker do not count"
    lines = [
        ("outcome", word_of(outcome)),
        *(("problem", text) for text in outcome.problems),
        *(("fault", f"at step {hit.at_step}, in try {hit.in_try}: {hit.says}") for hit in outcome.hits),
        *((f"try {number}", said_of(one)) for number, one in enumerate(outcome.tries, 1)),
        (
            "seconds lost",
            f"{outcome.seconds_lost:.1f} ({outcome.undisturbed_seconds:.1f} without, {outcome.seconds:.1f} with)",
        ),
        ("steps lost", steps),
        ("goodput", f"{outcome.goodput:.2f} (seconds of the undisturbed run / seconds of the disturbed one)"),
        ("result", outcome.result or "none to compare"),
        ("rows", outcome.rows or "none to compare"),
        ("left behind", "; ".join(outcome.left) or "no process, no file in TMPDIR, /dev/shm or the run folder"),
        *(("note", text) for text in outcome.notes),
    ]
    return lines


def said_of(one: Any) -> str:
    first = textwrap.shorten(one.reason.splitlines()[0], 200, placeholder=" ...") if one.reason else ""
    afresh = ", begun afresh" if one.afresh else ""
    return f"{one.status}{afresh}, {one.seconds:.1f} s{': ' if first else ''}{first}"


def show(outcome: Outcome) -> None:
    """Prints what became of a run."""
    console.print()
    for name, text in lines_of(outcome):
        console.print(f"{name:<20} {text}", markup=False)
    console.print(f"{'again':<20} {outcome.command}", markup=False)


def show_all(outcomes: Sequence[Outcome]) -> None:
    """Prints a line for each of several disturbed runs."""
    table = Table(title="chaos", title_justify="left")
    for column in ("faults", "outcome", "tries", "seconds lost", "steps lost", "goodput", "result"):
        table.add_column(column, overflow="fold")
    for one in outcomes:
        figures = ["–"] * 4
        if not one.cannot:
            lost = "–" if one.steps_lost is None else str(one.steps_lost)
            figures = [str(len(one.tries)), f"{one.seconds_lost:.1f}", lost, f"{one.goodput:.2f}"]
        table.add_row(" ".join(one.faults), word_of(one), *figures, one.cannot or "; ".join(one.problems) or one.result)
    print_table(table, width=160)


def write_page(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Writes <folder>/report.html over the outcomes of one command; returns the path."""
    shown = []
    for one in outcomes:
        picture = pictures.timeline(Path(one.run)) if one.run and Path(one.run).is_dir() else ""
        shown.append({"outcome": one, "lines": lines_of(one), "word": word_of(one), "timeline": picture})
    template = pages.environment().get_template("chaos.html")
    text = template.render(
        recipe=outcomes[0].recipe,
        shown=shown,
        rows=[row_of(one) for one in outcomes],
        machine=outcomes[0].machine,
        commit=outcomes[0].commit,
        all_recovered=all(one.recovered or one.cannot for one in outcomes),
    )
    path = folder / "report.html"
    write_whole(path, text)
    return path


def row_of(one: Outcome) -> dict[str, str | int | float | None]:
    """A row of the page's table."""
    is_run = not one.cannot
    return {
        "faults": " ".join(one.names),
        "outcome": word_of(one),
        "tries": len(one.tries) if is_run else None,
        "seconds lost": one.seconds_lost if is_run else None,
        "steps lost": one.steps_lost,
        "goodput": one.goodput if is_run else None,
        "result": one.cannot or one.result or None,
    }


# ---- the table of the documents


def results(root: Path) -> list[dict[str, Any]]:
    """The content of every chaos.json below `root`, oldest first."""
    found: list[dict[str, Any]] = [read_json(path) for path in root.glob("*/*/chaos.json")]
    return sorted((one for one in found if one), key=lambda one: float(one["time"]))


def cell(one: Mapping[str, Any]) -> str:
    """What the table says of a result of one fault: seconds lost and, where workers note them, steps lost.

    A disturbed run that happened to be faster than the undisturbed one has lost nothing.
    """
    if one["cannot"]:
        return "–"
    if not one["recovered"]:
        return "**not**"
    figures = f"{max(0.0, one['seconds_lost']):+.0f} s"
    return figures if one["steps_lost"] is None else f"{figures}, {one['steps_lost']}"


def usual_scene(recipe: str, fault: type[Fault]) -> Scene:
    """Where a fault happens to a recipe: on this machine, or on hosts of it."""
    here = Scene(recipe, "local", 2)
    return here if not fault.impossible(here) else Scene(recipe, "hosts", 2, own_hosts=True)


# Of the documents' table: what can happen to runs of this machine and of its hosts.
COLUMNS = tuple(name for name, kind in FAULTS.items() if not kind.impossible(usual_scene("", kind)))


def table(found: Sequence[Mapping[str, Any]], names: Sequence[str], before: str = "") -> str:
    """The table FAULT x RECIPE, in Markdown, from results on disk. The newest of a cell counts.

    Costs are those of runs with a single fault. "in a plan": a run with several faults recovered from this one, too.
    `before`: an earlier table. Its rows of recipes that have no result on this disk stay, and are called earlier.
    """
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    together: set[tuple[str, str]] = set()  # what a run with several faults has recovered from
    for one in found:
        for name in set(one["names"]) & set(COLUMNS):
            if one["place"] != usual_scene(one["recipe"], FAULTS[name]).place:
                continue
            if len(one["names"]) == 1 and one["seed"] is None:
                newest[name, one["recipe"]] = one
            elif one["recovered"]:
                together.add((name, one["recipe"]))
    # A row for each recipe: a row for each fault would be too long to be read as text.
    lines = ["| recipe | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    broken: list[str] = []
    cannot: list[str] = []
    hurt = {recipe for _, recipe in [*newest, *together]}
    kept = {name: row for name, row in ROW.findall(before) if name not in hurt} if lines[0] in before else {}
    for recipe in (name for name in names if name in hurt or name in kept):
        if recipe in kept:
            lines.append(f"| `{recipe}` {kept[recipe]}")
            continue
        cells = []
        for fault in COLUMNS:
            result = newest.get((fault, recipe))
            in_plan = "in a plan" if (fault, recipe) in together else "not run"
            cells.append(in_plan if result is None else cell(result))
            if result and not result["recovered"]:
                text = result["cannot"] or "; ".join(result["problems"])
                (cannot if result["cannot"] else broken).append(f"- `{fault}`, `{recipe}`: {text.splitlines()[0]}")
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    runs = [*newest.values()]
    done = [one for one in runs if not one["cannot"]]
    recovered = sum(one["recovered"] for one in done)
    parts = ["\n".join(lines), f"{recovered} of {len(done)} runs with one fault recovered."]
    if left := [f"`{name}`" for name in names if name not in hurt and name not in kept]:
        parts.append(f"Not run: {', '.join(left)}.")
    drawn = [one for one in found if one["seed"] is not None and not one["cannot"]]
    if drawn:
        good = sum(one["recovered"] for one in drawn)
        faults = sum(len(one["hits"]) for one in drawn)
        which = ", ".join(f"`{name}`" for name in sorted({one["recipe"] for one in drawn}))
        parts.append(f"Random plans: {good} of {len(drawn)} recovered, with {faults} faults, over {which}.")
        bad = [one for one in drawn if not one["recovered"]]
        broken += [f"- `{one['command']}`: {'; '.join(one['problems']).splitlines()[0]}" for one in bad]
    plans = [one for one in found if len(one["names"]) > 1 and one["seed"] is None]
    if plans:
        good = sum(one["recovered"] for one in plans)
        parts.append(f"Plans of several faults: {good} of {len(plans)} recovered.")
        bad = [one for one in plans if not one["recovered"]]
        broken += [f"- `{one['command']}`: {'; '.join(one['problems']).splitlines()[0]}" for one in bad]
    if broken:
        parts.append("Not recovered:\n\n" + "\n".join(broken))
    if cannot:
        parts.append("Cannot happen (–) at this scale:\n\n" + "\n".join(cannot))
    counted = [*runs, *drawn, *plans]
    if counted:
        machines = "; ".join(sorted({one["machine"] for one in counted}))
        commits = ", ".join(
            sorted({one["commit"][:10] + ("+" if one["commit"].endswith("+") else "") for one in counted})
        )
        days = sorted({time.strftime("%Y-%m-%d", time.gmtime(one["time"])) for one in counted})
        parts.append(f"Run on {', '.join(days)} on: {machines}. Commits: {commits}.")
    if kept:
        rows = ", ".join(f"`{name}`" for name in names if name in kept)
        earlier = " ".join(dict.fromkeys(f"Run on {said}" for said in RUN_ON.findall(before)))
        parts.append(f"Of earlier results, which are not on this disk: {rows}. {earlier}")
    return "\n\n".join(parts)


def write_table(root: Path, to: Path | None) -> str:
    """The documents' table from the results below `root`; it is put between the marks in the file `to`, if given."""
    text = table(results(root), recipes(), read_block(to, "chaos-table") if to else "")
    if to:
        write_block(to, "chaos-table", text)
    return text


def say_where(outcomes: Iterable[Outcome], page: Path) -> None:
    for one in outcomes:
        console.print(f"{'result':<20} {shown_path(Path(one.folder) / 'chaos.json')}", markup=False)
    console.print(f"{'report':<20} {page}", markup=False)
