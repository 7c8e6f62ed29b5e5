"""What a history of nightly runs says: which figure fell out of its past, what changed before a failure, who is flaky.

A figure is compared with the last runs of the same recipe with the same settings on the same class of machine. Their
median and their spread decide; there are no fixed bounds.
"""

import math
import re
import statistics
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cookbook.report import pages
from cookbook.tools.history import Entry

WINDOW = 10  # how many earlier good runs are a figure's history
LEAST = 4  # with fewer of them nothing is judged
FACTOR = 4.0  # a figure that is more spreads than this from the median has fallen out of its history
OLD_LOCK_DAYS = 90
STALE_DAYS = 2.5  # a recipe whose last run is this much older than the newest run of all is missing
RECENT = 20  # how many runs are searched for flakes
MAD_TO_SIGMA = 1.4826  # a median absolute deviation as the standard deviation of a normal distribution


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
