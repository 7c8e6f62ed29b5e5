"""What the runs say: which system for what, and from which size another one pays. Nothing here is an opinion.

A sentence of advice has the runs that it rests on. With fewer than two of them it says "not measured here".
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cookbook.report.pages import number
from guide.results import Run
from guide.tasks import Task, lines_of

NOT_MEASURED = "not measured here"
LEAST_RUNS = 2


class Linked(Protocol):
    """A run that the page can link to."""

    @property
    def id(self) -> str: ...

    @property
    def system(self) -> str: ...

    @property
    def workers(self) -> int: ...

    @property
    def size(self) -> str: ...

    @property
    def launch(self) -> int: ...


@dataclass(frozen=True)
class Advice:
    """A sentence, and the runs that it rests on."""

    said: str
    runs: tuple[Linked, ...] = ()

    @property
    def is_measured(self) -> bool:
        return len({run.id for run in self.runs}) >= LEAST_RUNS

    @property
    def text(self) -> str:
        return self.said if self.is_measured else NOT_MEASURED


@dataclass(frozen=True)
class Line:
    """Seconds over rows, as a fixed cost and one per row: seconds = fixed + per_row * rows."""

    fixed: float
    per_row: float

    def at(self, rows: float) -> float:
        return self.fixed + self.per_row * rows

    def crossing(self, other: "Line") -> float:
        """The rows from which `other` takes less time; infinite if it never does."""
        if other.per_row >= self.per_row:
            return math.inf
        return max(0.0, (other.fixed - self.fixed) / (self.per_row - other.per_row))


@dataclass(frozen=True)
class BreakEven:
    """From which size on one way takes less time to its first result than another."""

    task: str
    before: str  # "pandas", or "dask, 1 worker"
    after: str
    kind: str  # measured, extrapolated, always, never
    text: str
    runs: tuple[Run, ...]
    rows: float | None = None  # where the two lines cross
    spread: tuple[float, float] | None = None  # of that, over the launches

    @property
    def advice(self) -> Advice:
        return Advice(self.text, self.runs)


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The line through (rows, seconds) with the least relative errors; its fixed cost is not below zero.

    Raises ValueError for fewer than two sizes.
    """
    if len({rows for rows, _ in points}) < 2:
        raise ValueError(f"{points}: expected two sizes or more")
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_rows = sum(w * rows for w, (rows, _) in zip(weights, points, strict=True)) / total
    mean_seconds = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    covariance = sum(w * (r - mean_rows) * (s - mean_seconds) for w, (r, s) in zip(weights, points, strict=True))
    variance = sum(w * (r - mean_rows) ** 2 for w, (r, _) in zip(weights, points, strict=True))
    slope = max(0.0, covariance / variance)
    return Line(max(0.0, mean_seconds - slope * mean_rows), slope)


def held_out_errors(points: Sequence[tuple[float, float]]) -> list[float]:
    """Relative errors of the line at each inner point, from a fit to the others; empty for fewer than three sizes."""
    ordered = sorted(points)
    found = []
    for left_out in range(1, len(ordered) - 1):
        rows, seconds = ordered[left_out]
        found.append(fit(ordered[:left_out] + ordered[left_out + 1 :]).at(rows) / seconds - 1)
    return found


class Measured:
    """The runs of one task on one machine that ended well, and the questions that they answer."""

    def __init__(self, task: Task, runs: Iterable[Run]) -> None:
        self.task = task
        self.all = [run for run in runs if run.task == task.name]
        self.good = [run for run in self.all if run.status == "ok"]

    @property
    def ways(self) -> list[tuple[str, int]]:
        """(system, workers) of all that was measured, in the order of the task's systems."""
        there = {(run.system, run.workers) for run in self.good}
        return [
            (system.name, workers)
            for system in self.task.systems
            for workers in (1, 2, 3, 4, 8)
            if (system.name, workers) in there
        ]

    @property
    def most(self) -> list[tuple[str, int]]:
        """Each system with the most workers that it was measured with."""
        return list(dict(self.ways).items())

    def of(self, way: tuple[str, int], rows: int | None = None) -> list[Run]:
        return [run for run in self.good if (run.system, run.workers) == way and rows in (None, run.rows)]

    def sizes(self, *ways: tuple[str, int]) -> list[int]:
        """The sizes, in rows, that all these ways were measured at, ascending."""
        each = [{run.rows for run in self.of(way)} for way in ways]
        return sorted(set.intersection(*each)) if each else []

    def median(self, way: tuple[str, int], rows: int, figure: Callable[[Run], float | None]) -> float | None:
        values = [value for run in self.of(way, rows) if (value := figure(run)) is not None]
        return statistics.median(values) if values else None

    def points(self, way: tuple[str, int]) -> list[tuple[float, float]]:
        """[(rows, seconds to the first result), ...], medians over the launches."""
        return [(rows, self.median(way, rows, first) or 0.0) for rows in self.sizes(way)]

    def line(self, way: tuple[str, int]) -> Line | None:
        points = self.points(way)
        return fit(points) if len(points) > 1 else None

    def best(self, rows: int, figure: Callable[[Run], float | None], unit: str, family: str = "") -> Advice:
        """Which system has the least of a figure at a size, and which one comes next."""
        ranked = self.ranked(rows, figure, family)
        if len(ranked) < 2:
            return Advice("")
        (value, way), (second, next_way) = ranked[0], ranked[1]
        said = f"{named(way)}: {number(value)} {unit}; next {named(next_way)}: {number(second)} {unit}"
        return Advice(said, (*self.of(way, rows), *self.of(next_way, rows)))

    def ranked(
        self, rows: int, figure: Callable[[Run], float | None], family: str = ""
    ) -> list[tuple[float, tuple[str, int]]]:
        """[(value, way), ...] of the systems with their most workers, the least first."""
        found = [
            (value, way)
            for way in self.most
            if family in ("", self.task.system(way[0]).family) and (value := self.median(way, rows, figure)) is not None
        ]
        return sorted(found)

    def fewest_lines(self, distributed: bool) -> Advice:
        """Which system needs the fewest lines, of all or of those that are distributed."""
        ways = [way for way in self.most if self.task.system(way[0]).distributed is distributed]
        ranked = sorted((lines_of(self.task.system(name).path)[0], (name, workers)) for name, workers in ways)
        if len(ranked) < 2:
            return Advice("")
        (least, way), (second, next_way) = ranked[0], ranked[1]
        said = f"{way[0]}: {least} lines; next {next_way[0]}: {second} lines"
        return Advice(said, (*self.of(way)[:1], *self.of(next_way)[:1]))

    def break_even(self, before: tuple[str, int], after: tuple[str, int]) -> BreakEven:
        """From which size `after` has its first result earlier than `before`."""
        sizes = self.sizes(before, after)
        runs = tuple(run for rows in sizes for way in (before, after) for run in self.of(way, rows))
        names = (self.task.name, named(before), named(after))
        if len(sizes) < 2:
            return BreakEven(*names, "never", "", ())
        gains = [(self.median(before, rows, first) or 0) - (self.median(after, rows, first) or 0) for rows in sizes]
        spread = self._spread(before, after, sizes)
        crossing = self._lines(before, sizes).crossing(self._lines(after, sizes))
        unit, last = self.task.unit, sizes[-1]
        if all(gain > 0 for gain in gains):
            text = f"{names[2]} is faster than {names[1]} at each measured size, from {sizes[0]:,} {unit} on"
            return BreakEven(*names, "always", text, runs)
        if gains[-1] > 0:
            lower = max(rows for rows, gain in zip(sizes, gains, strict=True) if gain <= 0)
            upper = min(rows for rows in sizes if rows > lower)
            text = f"{names[2]} is faster than {names[1]} from a size between {lower:,} and {upper:,} {unit} (measured)"
            return BreakEven(*names, "measured", text, runs, min(max(crossing, lower), upper), spread)
        if math.isinf(crossing):
            text = (
                f"{names[2]} is slower than {names[1]} at each measured size up to {last:,} {unit}, "
                "and also for each further row"
            )
            return BreakEven(*names, "never", text, runs)
        beyond = max(crossing, float(last))
        text = (
            f"{names[2]} is slower than {names[1]} up to {last:,} {unit} (measured); it would be faster from about "
            f"{number(float(f'{beyond:.2g}'))} {unit} on (extrapolated)"
        )
        return BreakEven(*names, "extrapolated", text, runs, beyond, spread)

    def _lines(self, way: tuple[str, int], sizes: Sequence[int]) -> Line:
        return fit([(rows, self.median(way, rows, first) or 0.0) for rows in sizes])

    def _spread(
        self, before: tuple[str, int], after: tuple[str, int], sizes: Sequence[int]
    ) -> tuple[float, float] | None:
        """The least and the largest crossing, over all pairs of launches; None for one launch."""

        def lines(way: tuple[str, int]) -> list[Line]:
            launches = {run.launch for run in self.of(way)}
            each = [[run for run in self.of(way) if run.launch == launch] for launch in sorted(launches)]
            return [
                fit([(run.rows, run.first_seconds or 0.0) for run in runs])
                for runs in each
                if {run.rows for run in runs} >= set(sizes)
            ]

        found = [one.crossing(other) for one, other in itertools.product(lines(before), lines(after))]
        return (min(found), max(found)) if len(found) > 1 else None

    def break_evens(self) -> list[BreakEven]:
        """The second worker of each system, and each distributed system against the best of one process."""
        found = []
        for name in dict(self.ways):
            if (name, 1) in self.ways and (name, 2) in self.ways:
                found.append(self.break_even((name, 1), (name, 2)))
        alone = [way for way in self.most if not self.task.system(way[0]).distributed]
        for way in [way for way in self.most if self.task.system(way[0]).distributed]:
            found += [self.break_even(other, way) for other in alone]
        return [one for one in found if one.runs]


def first(run: Run) -> float | None:
    return run.first_seconds


def steady(run: Run) -> float | None:
    """Seconds of the work, done again."""
    return statistics.median(run.work_seconds) if run.work_seconds else None


def peak(run: Run) -> float | None:
    return run.peak_mb


def named(way: tuple[str, int]) -> str:
    name, workers = way
    return f"{name}, {workers} worker{'s' if workers > 1 else ''}"


@dataclass(frozen=True)
class Row:
    """A row of the decision table."""

    task: Task
    cells: dict[str, tuple[Advice, ...]]


def decision_row(measured: Measured) -> Row:
    """What to take for a task, by size, memory, framework, team and hardware."""
    task = measured.task
    sizes = sorted({run.rows for run in measured.good})
    small, large = (sizes[0], sizes[-1]) if sizes else (0, 0)
    evens = measured.break_evens()
    distributed = [
        one for one in evens if " worker" in one.before and one.before.split(",")[0] != one.after.split(",")[0]
    ]
    second = [one for one in evens if one not in distributed]
    families = dict.fromkeys(system.family for system in task.systems)
    by_family = {family: measured.best(large, first, "s", family) for family in families}
    return Row(
        task,
        {
            f"size: {small:,} {task.unit}" if sizes else "small": (measured.best(small, first, "s"),),
            f"size: {large:,} {task.unit}" if len(sizes) > 1 else "large": (
                measured.best(large, first, "s") if len(sizes) > 1 else Advice(""),
            ),
            "the same data again and again": (measured.best(large, steady, "s each time"),),
            "hardware: memory is tight": (measured.best(large, peak, "MB"),),
            "hardware: a second core pays": tuple(one.advice for one in second) or (Advice(""),),
            "hardware: a cluster pays": tuple(one.advice for one in _nearest(distributed)) or (Advice(""),),
            "hardware: several hosts, GPUs": (Advice(""),),
            "framework": tuple(
                Advice(f"those who know {family}: {advice.said}", advice.runs)
                for family, advice in by_family.items()
                if advice.is_measured
            )
            or (Advice(""),),
            "team: least to read": (measured.fewest_lines(False), measured.fewest_lines(True)),
        },
    )


def _nearest(evens: Sequence[BreakEven]) -> list[BreakEven]:
    """Of each distributed system the comparison that is hardest for it: it pays only when it beats all of them."""
    order = {"never": 3, "extrapolated": 2, "measured": 1, "always": 0}
    hardest: dict[str, BreakEven] = {}
    for one in evens:
        held = hardest.get(one.after)
        rank = (order[one.kind], one.rows or 0)
        if held is None or rank > (order[held.kind], held.rows or 0):
            hardest[one.after] = one
    return list(hardest.values())
