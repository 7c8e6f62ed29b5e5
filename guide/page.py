"""The page over the results: the decision table first, then what it rests on."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cookbook.report import pages, pictures
from guide import advice, killed, training
from guide.measure import Place
from guide.results import Run
from guide.tasks import TASKS, lines_of


def write(folder: Path, runs: Sequence[Run], place: Place, problems: Sequence[str]) -> Path:
    """Writes <folder>/index.html over the runs of this machine, and those of recipes beside it; returns its path."""
    trained = training.read(folder.parent, place.machine)
    path = folder / "index.html"
    partial = folder / ".index.html.partial"
    hurt = killed.read(folder.parent, place.machine)
    partial.write_text(text_of(runs, place.commit, pages.machine(), problems, time.time(), trained, hurt, folder))
    partial.replace(path)
    return path


def text_of(
    runs: Sequence[Run],
    commit: str,
    machine: str,
    problems: Sequence[str],
    now: float,
    trained: Sequence[training.Training] = (),
    hurt: Sequence[killed.Killed] = (),
    folder: Path = Path(),
) -> str:
    """The page as HTML."""
    measured = [found for task in TASKS if (found := advice.Measured(task, runs)).all]
    environment = pages.environment()
    environment.filters["day"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    return environment.get_template("guide.html").render(
        tasks=[_section(one) for one in measured],
        missing=[task for task in TASKS if task.name not in {one.task.name for one in measured}],
        runs=sorted(runs, key=lambda run: (run.task, run.rows, run.system, run.workers, run.launch)),
        commit=commit,
        machine=machine,
        problems=problems,
        now=now,
        groups=[
            {"runs": group, "advice": training.advice_of(group), "unequal": training.unequal(group)}
            for group in training.groups_of(trained)
        ],
        report=lambda one: one.report(folder),
        busy=sum(run.was_busy for run in runs),
        compare=training.COMMAND,
        hurt=hurt,
        chaos=killed.COMMAND,
        others=sorted({run.commit[:10] for run in runs if run.commit != commit}),
    )


def _section(measured: advice.Measured) -> dict[str, Any]:
    """What the template shows of one task."""
    return {
        "task": measured.task,
        "row": advice.decision_row(measured),
        "evens": measured.break_evens(),
        "plots": _plots(measured),
        "figures": _figures(measured),
        "equal": _equal(measured),
        "errors": _errors(measured),
    }


def _plots(measured: advice.Measured) -> list[str]:
    """Seconds and memory over size, a line for each system with its most workers."""
    found = []
    for title, figure in (
        ("seconds to the first result", advice.first),
        ("seconds of the work, done again", advice.steady),
        ("peak memory of all processes in MB", advice.peak),
    ):
        series = []
        for way in measured.most:
            values = [(rows, measured.median(way, rows, figure)) for rows in measured.sizes(way)]
            points = [(float(rows), value) for rows, value in values if value]
            if points:
                series.append((advice.named(way), points))
        if series:
            name = f"{measured.task.name}: {title}"
            found.append(pictures.plot(name, series, measured.task.unit, log=True))
    return found


def _figures(measured: advice.Measured) -> list[dict[str, Any]]:
    """A row for each size and way: medians over the launches, and the runs."""
    rows = []
    for size in sorted({run.rows for run in measured.good}):
        for way in measured.ways:
            runs = measured.of(way, size)
            if not runs:
                continue
            system = measured.task.system(way[0])
            code, distributed = lines_of(system.path)
            again, one = measured.median(way, size, advice.steady), measured.median((way[0], 1), size, advice.steady)
            rows.append(
                {
                    "rows": size,
                    "system": system,
                    "workers": way[1],
                    "start": measured.median(way, size, lambda run: run.start_seconds),
                    "first": measured.median(way, size, advice.first),
                    "rate": size / again if again else None,
                    "gain": one / again if one and again and way[1] > 1 else None,
                    "peak": measured.median(way, size, advice.peak),
                    "code": code,
                    "distributed": distributed,
                    "runs": runs,
                }
            )
    return rows


def _equal(measured: advice.Measured) -> list[dict[str, Any]]:
    """Of each size: which systems gave which result."""
    found = []
    for size in sorted({run.rows for run in measured.good}):
        runs = [run for run in measured.good if run.rows == size]
        systems = list(dict.fromkeys(run.system for run in runs))
        result = runs[0].result
        shown = ", ".join(f"{name} {value}" for name, value in result.items())
        found.append({"rows": size, "systems": systems, "runs": runs, "shown": shown})
    return found


def _errors(measured: advice.Measured) -> list[dict[str, Any]]:
    """Of each way with three sizes or more: the line's errors at points that were left out of its fit."""
    found = []
    for way in measured.most:
        errors = advice.held_out_errors(measured.points(way))
        line = measured.line(way)
        if line:
            found.append({"way": advice.named(way), "line": line, "errors": errors, "runs": measured.of(way)})
    return found
