"""Says who holds a run up, in which line, and what the others wait for.

It takes the records and what probe.py saw; nothing is asked or started here. A rank is held to be behind by the first
of these signs that some ranks show:

1. its process is gone, or stopped;
2. the others are in an exchange, and it is not;
3. all are in an exchange, and not in the same one;
4. while the run goes on: it is in an exchange far less often than the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cookbook.evidence.doing import doing_of, is_own
from cookbook.evidence.ranks import Worker, usual_line, workers_of
from cookbook.evidence.seen import Frame, Seen, seen_of
from runrecord import Record

SLOW_SHARE = 0.3  # of its time that a rank is less in exchanges than the others: then it is what they wait for


@dataclass(frozen=True)
class Diagnosis:
    says: str  # the verdict in a sentence or two
    behind: tuple[int, ...]  # the ranks that hold the others up; empty: nobody could be named
    workers: tuple[Worker, ...]
    others: tuple[Seen, ...]  # launchers, loaders and all else of the run
    notes: tuple[str, ...]  # what could not be looked at, and why


def make(
    records: Sequence[Record],
    probes: Mapping[str, Mapping[str, Any] | str],
    recipe: str,
    now: float,
    moving: bool = False,
) -> Diagnosis:
    """The diagnosis of a run.

    `probes`: machine -> what probe.py has answered there, or why it has not. `now`: seconds since 1970. `moving`:
    whether the workers still write their records.
    """
    answers = [answer for answer in probes.values() if not isinstance(answer, str)]
    notes = [f"{machine} could not be looked at: {why}" for machine, why in probes.items() if isinstance(why, str)]
    seen = {
        (answer["host"], one["pid"]): seen_of(answer["host"], one) for answer in answers for one in answer["processes"]
    }
    hosts = {answer["host"] for answer in answers}
    workers = workers_of(records, seen, hosts, recipe, now)
    ours = {(worker.host, worker.pid) for worker in workers}
    others = tuple(one for key, one in seen.items() if key not in ours)
    notes += sorted(
        {
            f"no stacks of {one.name} (pid {one.pid} on {one.host}): {one.why}"
            for one in seen.values()
            if one.why and not one.threads
        }
    )
    says, behind = _verdict(workers, others, recipe, moving)
    return Diagnosis(says, behind, workers, others, tuple(notes))


def _verdict(
    workers: Sequence[Worker], others: Sequence[Seen], recipe: str, moving: bool
) -> tuple[str, tuple[int, ...]]:
    """Who is behind, in words, and the ranks."""
    if not workers:
        started = [one for one in others if one.rank is not None]
        if not others:
            return "No process of the run was found, and no worker is at work by its record.", ()
        places = "; ".join(_of_process(one, recipe) for one in started or others)
        return f"No worker is at work by its record. What runs: {places}.", ()
    lost = [one for one in workers if one.doing.kind == "gone"] or [
        one for one in workers if one.doing.kind == "stopped"
    ]
    waiting = [one for one in workers if one.doing.kind == "exchange"]
    rest = [one for one in workers if one.doing.kind not in ("exchange", "unknown")]
    if lost:
        return _held_up(lost, waiting)
    if moving:
        return _slow(workers, recipe)
    if waiting and rest:
        return _held_up(rest, waiting)
    if len(waiting) == len(workers) and len(workers) > 1:
        return _all_in_exchanges(workers)
    return _no_exchange(workers, rest, recipe)


def _no_exchange(workers: Sequence[Worker], rest: Sequence[Worker], recipe: str) -> tuple[str, tuple[int, ...]]:
    """Nobody is in an exchange that is known here: those who have come least far are behind, if that differs."""
    telling = [one for one in rest if one.doing.kind == "busy" or (one.doing.frame and is_own(one.doing.frame, recipe))]
    if len(workers) == 1 and telling:
        (one,) = telling
        return f"{one.name} has stopped writing: {one.doing.what}{_line(one.doing.frame)}; {one.at}.", (one.rank,)
    first = min((one.position or (-1, -1) for one in telling), default=(-1, -1))
    behind = [one for one in telling if (one.position or (-1, -1)) == first]
    if behind and len(behind) < len(workers):
        return _held_up(behind, [])
    places = "; ".join(f"rank {one.rank}: {one.doing.what}{_line(one.doing.frame)}" for one in workers[:4])
    return f"No rank is in an exchange that is known here, and none is clearly behind. {places}.", ()


def _held_up(behind: Sequence[Worker], waiting: Sequence[Worker]) -> tuple[str, tuple[int, ...]]:
    says = [
        f"{one.name} holds the others up: {one.doing.what}{_line(one.doing.frame)}; {one.at}." for one in behind[:4]
    ]
    if more := behind[4:]:
        says.append(f"So do {_ranks([one.rank for one in more])}.")
    says += [_waits(waiting)] if waiting else []
    return " ".join(says), tuple(one.rank for one in behind)


def _line(frame: Frame | None) -> str:
    if not frame:
        return ""
    return f", at {frame.where}" + (f" (`{frame.source}`)" if frame.source else "")


def _waits(waiting: Sequence[Worker]) -> str:
    places = Counter((one.doing.what, one.doing.frame.where if one.doing.frame else "") for one in waiting)
    parts = []
    for (what, where), _ in places.items():
        ranks = [
            one.rank
            for one in waiting
            if (one.doing.what, one.doing.frame.where if one.doing.frame else "") == (what, where)
        ]
        parts.append(f"{_ranks(ranks)} in {what}" + (f" at {where}" if where else ""))
    return f"Who waits: {'; '.join(parts)}."


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _all_in_exchanges(workers: Sequence[Worker]) -> tuple[str, tuple[int, ...]]:
    """All ranks wait in exchanges: in different ones, or in the same one for the second time, or all in the same."""
    calls = Counter(_call(one) for one in workers)
    if len(calls) > 1:
        usual, count = calls.most_common(1)[0]
        # Without a majority nobody can say which of them is right.
        behind = [one for one in workers if _call(one) != usual or count <= len(workers) / 2]
        says = "; ".join(
            f"rank {one.rank} is in {one.doing.what}{_line(one.doing.frame)}{_last(one)}" for one in behind
        )
        rest = [one for one in workers if one not in behind]
        different = f"The ranks are in different exchanges, which wait for each other: {says}."
        return " ".join([different, *([_waits(rest)] if rest else [])]), tuple(one.rank for one in behind)
    numbers = {one.rank: one.seen.exchanges[-1].number for one in workers if one.seen and one.seen.exchanges}
    line = _line(workers[0].doing.frame)
    if len(numbers) == len(workers) and len(set(numbers.values())) > 1:
        least, most = min(numbers.values()), max(numbers.values())
        ranks = [rank for rank, number in numbers.items() if number == least]
        says = f"By the Flight Recorder {_ranks(ranks)} came to exchange number {least} only, others to number {most}"
        return f"{says}: one exchange was left out there, or called once more elsewhere{line}.", tuple(ranks)
    same = f"All ranks are in the same exchange, {workers[0].doing.what}{line}"
    return f"{same}: none of them is behind. Look at the network between them.", ()


def _call(worker: Worker) -> tuple[str, ...]:
    """What tells one exchange from another: its name and the line that calls it."""
    frame = worker.doing.frame
    return worker.doing.what, frame.where if frame else ""


def _last(worker: Worker) -> str:
    last = worker.seen.exchanges[-1] if worker.seen and worker.seen.exchanges else None
    return f", by the Flight Recorder {last.text}" if last else ""


def _slow(workers: Sequence[Worker], recipe: str) -> tuple[str, tuple[int, ...]]:
    """While the run goes on: who is seen in exchanges far less often than the others."""
    looked = [one for one in workers if one.shares]
    if len(looked) < 2:
        return "The run goes on: it writes its records. Too little was seen of its workers to compare them.", ()
    least = min(looked, key=lambda one: one.shares.get("exchange", 0.0))
    others = [one for one in looked if one is not least]
    rest = min(one.shares.get("exchange", 0.0) for one in others)
    own = least.shares.get("exchange", 0.0)
    if rest - own < SLOW_SHARE:
        return "The run goes on: it writes its records, and no rank makes the others wait clearly.", ()
    frame = usual_line(least, recipe)
    return (
        f"The run goes on, but {least.name} makes the others wait: it was in exchanges at {own:.0%} of the moments at "
        f"which it was looked at, the others at {rest:.0%} or more. Most often it is{_line(frame).lstrip(',')}.",
        (least.rank,),
    )


def _of_process(one: Seen, recipe: str) -> str:
    doing = doing_of(one, one.threads, recipe)
    rank = f"rank {one.rank}, " if one.rank is not None else ""
    return f"{one.name} ({rank}pid {one.pid} on {one.host}): {doing.what}{_line(doing.frame)}"
