"""The history of nightly runs: a file of JSON lines, and the judgement of a run's figures by the runs before it.

A figure is compared with the last runs of the same recipe with the same settings on the same class of machine. Their
median and their spread decide; there are no fixed bounds.
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cookbook import ROOT, UserError
from cookbook.prepare.environments import lock_of, pins
from cookbook.report import pages
from cookbook.tools.provenance import lock_age, machine_class

WINDOW = 10  # how many earlier good runs are a figure's history
LEAST = 4  # with fewer of them nothing is judged
FACTOR = 4.0  # a figure that is more spreads than this from the median has fallen out of its history
OLD_LOCK_DAYS = 90
STALE_DAYS = 2.5  # a recipe whose last run is this much older than the newest run of all is missing
RECENT = 20  # how many runs are searched for flakes
MAD_TO_SIGMA = 1.4826  # a median absolute deviation as the standard deviation of a normal distribution


class Figure(NamedTuple):
    """A number that is judged against its history."""

    value: float
    more_is_better: bool
    least_spread: float  # as a share of the median


@dataclass(frozen=True)
class Entry:
    """One run of one recipe: a line of the history."""

    recipe: str
    time: float  # when it began, in seconds since 1970
    commit: str
    machine: str  # its class: processor, cores, memory
    settings: str  # the overrides; only runs with equal ones are compared
    status: str  # ok or failed
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # package: version, as locked, and as the workers said
    seconds: dict[str, float] = field(default_factory=dict)  # stage: seconds
    objective: str = ""
    direction: str = "maximize"
    value: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    lock_age_days: float | None = None  # None: a shallow clone does not know
    ratios: dict[str, float] = field(default_factory=dict)  # of a benchmark

    def figures(self) -> dict[str, Figure]:
        """{name: figure}, without those that are not known."""
        found = {f"ratio {name}": Figure(value, True, 0.03) for name, value in self.ratios.items()}
        for name, value, more_is_better, least_spread in (
            (self.objective or "objective", self.value, self.direction == "maximize", 0.01),
            ("samples/s", self.samples_per_second, True, 0.05),
            ("seconds of the run", self.seconds.get("run"), False, 0.05),
            ("peak memory in MB", self.peak_memory_mb, False, 0.05),
        ):
            if value is not None:
                found[name] = Figure(value, more_is_better, least_spread)
        return found


@dataclass(frozen=True)
class Judgement:
    """What a figure is, compared with its history."""

    name: str
    value: float
    median: float
    spread: float
    count: int  # of earlier runs
    state: str  # new (too few earlier runs), usual, better, worse

    def __str__(self) -> str:
        return (
            f"{self.name} {pages.number(self.value)}, {self.state} than the last {self.count} runs: "
            f"median {pages.number(self.median)}, spread {pages.number(self.spread)}"
        )


@dataclass(frozen=True)
class Spell:
    """Failed runs in a row."""

    failed: tuple[Entry, ...]
    before: Entry | None  # the last good run before them
    after: Entry | None  # the first good run after them; None: the recipe still fails

    @property
    def is_flake(self) -> bool:
        """Whether the recipe ran well again without a change of commit or versions. A break that lasts is no flake."""
        bad, good = self.failed[-1], self.after
        clean = re.fullmatch(r"[0-9a-f]+", bad.commit)
        return bool(good and clean and (good.commit, good.versions) == (bad.commit, bad.versions))

    def changes(self) -> list[str]:
        """What changed between the last good run and the first failed one, as texts."""
        if self.before is None:
            return ["it never ran well in this history"]
        bad, good = self.failed[0], self.before
        found: list[str] = []
        if good.commit != bad.commit:
            found.append(f"commit {good.commit[:10]} -> {bad.commit[:10]}")
        for name in sorted(good.versions.keys() | bad.versions.keys()):
            old, new = good.versions.get(name, "absent"), bad.versions.get(name, "absent")
            if old != new:
                found.append(f"{name} {old} -> {new}")
        if good.machine != bad.machine:
            found.append(f"machine {good.machine} -> {bad.machine}")
        return found or ["neither the commit nor a version changed"]


@dataclass(frozen=True)
class Row:
    """What the page says of one recipe (and one choice of settings)."""

    recipe: str
    settings: str
    state: str  # ok, failed, warning
    notes: tuple[str, ...]
    entries: tuple[Entry, ...]
    spells: tuple[Spell, ...]
    judgements: tuple[Judgement, ...]
    flaky: str
    lock_age_days: float | None

    @property
    def newest(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


class History(NamedTuple):
    """What a file of the history has, oldest first."""

    runs: list[Entry]
    benches: list[Entry]
    canaries: list[dict[str, Any]]
    problems: list[str]  # about lines that cannot be read


def read(path: str | Path) -> History:
    """Reads a history.

    Lines that are equal count once: a night's file may contain the history that it began with.
    """
    found = History([], [], [], [])
    if not Path(path).is_file():
        raise UserError(f"HISTORY={path} is not a file; expected JSON lines, as `make nightly-record` writes them")
    seen = {""}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if line.strip() in seen:
            continue
        seen.add(line.strip())
        try:
            _take(json.loads(line), found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"line {number} cannot be read ({type(error).__name__}: {error}): {line[:80]}"
            found.problems.append(text)
    for entries in (found.runs, found.benches):
        entries.sort(key=lambda entry: entry.time)
    found.canaries.sort(key=lambda content: content["time"])
    return found


def _take(content: dict[str, Any], history: History) -> None:
    """Adds a line to the history. Raises one of several errors where it is none."""
    kind = content.pop("kind")
    if kind == "canary":
        history.canaries.append(content)
    else:
        {"run": history.runs, "bench": history.benches}[kind].append(_entry(content))


def _entry(content: dict[str, Any]) -> Entry:
    entry = Entry(**content)
    if entry.status not in ("ok", "failed") or not isinstance(entry.time, int | float):
        raise ValueError(f"status={entry.status!r}, time={entry.time!r}: expected ok or failed, and seconds since 1970")
    return entry


def append(path: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Appends one line. It is one write, so that two processes do not mix their lines."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"kind": kind, **content}, sort_keys=True) + "\n")


def variant_of(recipe: str, overrides: Iterable[str]) -> str | None:
    """The mode that these overrides choose. It may have a lock of its own."""
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    if "modes" not in own["driver"]:
        return None
    chosen = {name: value for name, _, value in (word.partition("=") for word in overrides)}
    variant: str | None = chosen.get("recipe.mode", own["mode"])
    return variant


def entry_of(content: Mapping[str, Any], commit: str, now: float) -> Entry:
    """A run.json as an entry of the history."""
    lock = lock_of(content["recipe"], variant_of(content["recipe"], content["overrides"]))
    metrics = content["metrics"]
    peaks = [value for name, value in metrics.items() if name.endswith("peak_mb")]
    settings = [word for word in content["overrides"] if not re.match(r"(recipe|output_root|resume|cache_dir)=", word)]
    value = content["objective"]["value"]
    return Entry(
        recipe=content["recipe"],
        time=content["started"],
        commit=commit,
        machine=machine_class(content["machine"]),
        settings=" ".join(sorted(settings)),
        status="ok" if content["status"] == "ok" else "failed",
        reason=content["reason"],
        versions=pins(lock.read_text()) | content["versions"],
        seconds=content["seconds"],
        objective=content["objective"]["name"],
        direction=content["objective"]["direction"],
        value=value if value is not None and math.isfinite(value) else None,
        samples_per_second=metrics.get("samples_per_second"),
        peak_memory_mb=max(peaks, default=None),
        lock_age_days=lock_age(lock, now),
    )


def judge(entry: Entry, earlier: Iterable[Entry]) -> list[Judgement]:
    """Judgements of an entry's figures against earlier entries.

    Failed entries, and those with other settings or of another machine, do not count.
    """
    alike = [one for one in earlier if _group(one) == _group(entry) and one.machine == entry.machine]
    good = [one for one in alike if one.status == "ok" and one.time < entry.time]
    found = []
    for name, (value, more_is_better, least) in entry.figures().items():
        past = [one.figures()[name].value for one in good if name in one.figures()][-WINDOW:]
        if len(past) < LEAST:
            found.append(Judgement(name, value, math.nan, math.nan, len(past), "new"))
            continue
        median = statistics.median(past)
        deviation = statistics.median(abs(one - median) for one in past)
        spread = max(MAD_TO_SIGMA * deviation, least * abs(median), sys.float_info.min)
        distance = (value - median) / spread * (1 if more_is_better else -1)
        state = "worse" if distance < -FACTOR else "better" if distance > FACTOR else "usual"
        found.append(Judgement(name, value, median, spread, len(past), state))
    return found


def _group(entry: Entry) -> tuple[str, str]:
    return entry.recipe, entry.settings


def spells_of(entries: Iterable[Entry]) -> list[Spell]:
    """The spells of failed runs, oldest first."""
    found: list[Spell] = []
    failed: list[Entry] = []
    before: Entry | None = None
    for entry in entries:
        if entry.status == "failed":
            failed.append(entry)
            continue
        if failed:
            found.append(Spell(tuple(failed), before, entry))
            failed = []
        before = entry
    return [*found, Spell(tuple(failed), before, None)] if failed else found


def flakiness(entries: Sequence[Entry]) -> str:
    """Why a recipe counts as flaky, as a text; empty if it does not."""
    recent = entries[-RECENT:]
    spells = spells_of(recent)
    flakes = [spell for spell in spells if spell.is_flake]
    if flakes:
        return f"{len(flakes)} of {len(recent)} runs failed and went well again without any change"
    changes = sum(one.status != other.status for one, other in pairwise(recent))
    return f"changed between ok and failed {changes} times in {len(recent)} runs" if changes >= 4 else ""


def rows_of(entries: Sequence[Entry], recipes: Collection[str], now: float) -> list[Row]:
    """A row for each recipe and choice of settings in the history, and one for each recipe that has no run."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_group(entry), []).append(entry)
    for recipe in set(recipes) - {recipe for recipe, _ in groups}:
        groups[recipe, ""] = []
    newest_of_all = max((entry.time for entry in entries), default=now)
    return [
        _row(recipe, settings, groups[recipe, settings], recipes, newest_of_all) for recipe, settings in sorted(groups)
    ]


def _row(recipe: str, settings: str, entries: Sequence[Entry], recipes: Collection[str], newest_of_all: float) -> Row:
    if not entries:
        return Row(recipe, settings, "warning", ("no run in this history",), (), (), (), "", None)
    last, spells = entries[-1], spells_of(entries)
    notes: list[str] = []
    judgements = judge(last, entries) if last.status == "ok" else []
    flaky = flakiness(entries)
    if last.status == "failed":
        nights = len(spells[-1].failed)
        notes.append(f"failed {nights} times in a row: {last.reason.splitlines()[0] if last.reason else 'no reason'}")
    notes += [str(one) for one in judgements if one.state == "worse"]
    if flaky:
        notes.append(f"flaky: {flaky}")
    if last.lock_age_days is not None and last.lock_age_days > OLD_LOCK_DAYS:
        notes.append(f"its lock is {last.lock_age_days:.0f} days old (make lock RECIPE={recipe})")
    if (days := (newest_of_all - last.time) / 86400) > STALE_DAYS:
        notes.append(f"no run for {days:.0f} days")
    if recipe not in recipes:
        notes.append("no longer among the recipes")
    state = "failed" if last.status == "failed" else "warning" if notes else "ok"
    said = tuple(notes), tuple(entries), tuple(spells), tuple(judgements)
    return Row(recipe, settings, state, *said, flaky, last.lock_age_days)
