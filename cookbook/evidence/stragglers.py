"""Who was slow: for each rank its seconds for a step, and what the record says of its waiting.

In synchronous training all ranks have the same seconds for a step: the fast ones wait for the slowest. So the length of
a step names nobody. Three other things do, as far as a record has them:

- the seconds that a rank waited after its own share of the step (`waited`): the slowest one waits least;
- how much later than the first rank it began each step, where all ranks share one clock (one host);
- the seconds of computing of its process (`cpu`): a hint only, because some libraries compute while they wait.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runrecord import Event, Record

FEWEST_STEPS = 5  # with fewer nothing is said
ALIKE = 1.15  # ranks whose median steps differ by less than this factor wait for each other
SLOW_SHARE = 0.25  # of a step that the others spend waiting: then a rank is clearly slow
SLOW_FACTOR = 1.5  # between two ranks that do not wait for each other
OFTEN = 0.7  # share of the steps in which the same rank must be the slowest
Position = tuple[int, int]  # epoch, step


@dataclass(frozen=True)
class Pace:
    """How one rank went through its steps. All seconds are medians for one step; None: the record does not say."""

    rank: int
    host: str
    steps: int
    step_seconds: float
    waiting_seconds: float | None
    late_seconds: float | None  # after the first rank's begin of the same step
    cpu_seconds: float | None
    slowest_in: int | None  # in how many steps this rank was the slowest


@dataclass(frozen=True)
class Stragglers:
    """The paces of all ranks, and who was slow."""

    ranks: tuple[Pace, ...] = ()
    slow_rank: int | None = None  # None: nobody is clearly slow, or it cannot be told
    says: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"ranks": [asdict(rank) for rank in self.ranks], "slow_rank": self.slow_rank, "says": self.says}


@dataclass
class _Steps:
    """What one rank's records say, step by step."""

    host: str
    began: dict[Position, float] = field(default_factory=dict)
    seconds: dict[Position, float] = field(default_factory=dict)
    waited: dict[Position, float] = field(default_factory=dict)
    cpu: dict[Position, float] = field(default_factory=dict)


def find(records: Sequence[Record]) -> Stragglers:
    """Reads the paces from a run's records, as `runrecord.read_records` gives them."""
    steps: dict[int, _Steps] = {}
    phases = {events[0].get("phase", 0) for events in records if events[0]["event"] == "start"}
    for events in records:
        start = events[0]
        if start["event"] == "start" and start.get("role", "worker") == "worker":
            _take(events, steps.setdefault(start["rank"], _Steps(start["host"])))
    steps = {rank: one for rank, one in sorted(steps.items()) if len(one.seconds) >= FEWEST_STEPS}
    if len(phases) > 1 or not steps:
        return Stragglers(says="The workers noted too few steps, or worked in several phases: no paces to compare.")
    lateness = _lateness(steps)
    slowest = _slowest(steps, lateness)
    ranks = tuple(
        Pace(
            rank=rank,
            host=one.host,
            steps=len(one.seconds),
            step_seconds=_median(one.seconds.values()) or 0.0,
            waiting_seconds=_median(one.waited.values()),
            late_seconds=_median(lateness.get(rank, {}).values()),
            cpu_seconds=_median(one.cpu.values()),
            slowest_in=list(slowest.values()).count(rank) if slowest else None,
        )
        for rank, one in steps.items()
    )
    return _judge(ranks, len(slowest))


def _take(events: Record, steps: _Steps) -> None:
    """Takes the steps of one process. A step ends where the next one of the same epoch begins."""
    last: Event | None = None
    for event in events:
        if event["event"] in ("restore", "checkpoint", "world"):
            last = None  # what lies between is not a step alone
        if event["event"] != "rows" or "pid" in event:
            continue
        position = event["epoch"], event["step"]
        steps.began[position] = event["time"]
        if last and (last["epoch"], last["step"] + 1) == position:
            before = last["epoch"], last["step"]
            steps.seconds[before] = event["time"] - last["time"]
            if "waited" in event:
                steps.waited[before] = event["waited"]
            if "cpu" in event and "cpu" in last:
                steps.cpu[before] = event["cpu"] - last["cpu"]
        last = event


def _lateness(steps: Mapping[int, _Steps]) -> dict[int, dict[Position, float]]:
    """rank -> step -> seconds after the first rank's begin. Empty where hosts, and so clocks, are several."""
    if len(steps) < 2 or len({one.host for one in steps.values()}) > 1:
        return {}
    shared = set.intersection(*(set(one.began) for one in steps.values()))
    first = {position: min(one.began[position] for one in steps.values()) for position in shared}
    return {rank: {at: one.began[at] - first[at] for at in shared} for rank, one in steps.items()}


def _slowest(steps: Mapping[int, _Steps], lateness: Mapping[int, Mapping[Position, float]]) -> dict[Position, int]:
    """step -> the rank for which the others waited. Empty where no record says it."""
    if len(steps) < 2:
        return {}
    if all(one.waited for one in steps.values()):
        shared = set.intersection(*(set(one.waited) for one in steps.values()))
        return {at: min(steps, key=lambda rank: steps[rank].waited[at]) for at in shared}
    if _alike([_median(one.seconds.values()) or 0.0 for one in steps.values()]):
        shared = set.intersection(*(set(late) for late in lateness.values())) if lateness else set()
        return {at: max(lateness, key=lambda rank: lateness[rank][at]) for at in shared}
    return {}  # each at its own pace: its own step says all


def _judge(ranks: tuple[Pace, ...], num_compared: int) -> Stragglers:
    """Who is clearly slow, and in which words."""
    if len(ranks) < 2:
        return Stragglers(ranks, None, "One rank alone: there is nobody to compare it with.")
    seconds = [one.step_seconds for one in ranks]
    if not _alike(seconds):
        slow = max(ranks, key=lambda one: one.step_seconds)
        rest = statistics.median(one.step_seconds for one in ranks if one is not slow)
        if slow.step_seconds < SLOW_FACTOR * rest:
            return Stragglers(ranks, None, "The ranks do not wait for each other, and none is clearly slower.")
        says = f"rank {slow.rank} on {slow.host} takes {shown(slow.step_seconds)} for a step, the others {shown(rest)}"
        return Stragglers(ranks, slow.rank, says)
    together = "All ranks take the same time for a step, because they wait for each other"
    if all(one.waiting_seconds is not None for one in ranks):
        named = max(ranks, key=lambda one: one.slowest_in or 0)
        others = statistics.median(one.waiting_seconds or 0.0 for one in ranks if one is not named)
        own, what = named.waiting_seconds or 0.0, "wait for it for"
    elif num_compared:
        named = max(ranks, key=lambda one: one.slowest_in or 0)
        others, what = named.late_seconds or 0.0, "begin each step before it by"
        own = statistics.median(one.late_seconds or 0.0 for one in ranks if one is not named)
    else:
        hint = _hint_of_cpu(ranks)
        return Stragglers(
            ranks,
            None,
            f"{together}. Who is slow cannot be told from this record: its recipe does not note when a rank begins to "
            f"wait, and the clocks of several hosts differ.{hint}",
        )
    step, share = statistics.median(seconds), (others - own) / max(statistics.median(seconds), 1e-9)
    if num_compared and (named.slowest_in or 0) >= OFTEN * num_compared and share >= SLOW_SHARE:
        says = (
            f"rank {named.rank} on {named.host} is the slowest in {named.slowest_in} of {num_compared} steps: the "
            f"others {what} {shown(others)} of the {shown(step)} that a step takes"
        )
        return Stragglers(ranks, named.rank, says)
    if what.startswith("begin"):
        return Stragglers(
            ranks,
            None,
            f"{together}. None begins its steps clearly later than the others. That a rank computes more slowly within "
            f"a step cannot be told from this record: its recipe does not note when a rank begins to wait."
            f"{_hint_of_cpu(ranks)}",
        )
    return Stragglers(ranks, None, f"{together}; none is clearly slower than the others.")


def _hint_of_cpu(ranks: Sequence[Pace]) -> str:
    """What the seconds of computing suggest, as a sentence; empty where they are alike, or not known."""
    known = [(one.cpu_seconds, one.rank) for one in ranks if one.cpu_seconds is not None]
    if len(known) < len(ranks) or max(known)[0] < SLOW_FACTOR * max(min(known)[0], 1e-3):
        return ""
    most = max(known)
    return f" A hint: rank {most[1]} computes most, {shown(most[0])} for a step."


def _alike(values: Iterable[float]) -> bool:
    values = list(values)
    return max(values) <= ALIKE * min(values) + 1e-3


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(statistics.median(values), 6) if values else None


def shown(seconds: float) -> str:
    """Seconds as a person would say them."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
