"""What each rank of a run wrote last, and what its process does: its record and what probe.py saw, laid together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cookbook.evidence.doing import Doing, doing_of, thread_of
from cookbook.evidence.seen import Frame, Seen
from runrecord import Event, Record


@dataclass(frozen=True)
class Worker:
    """A rank: what it wrote last, and what it does."""

    rank: int
    host: str
    pid: int
    position: tuple[int, int] | None  # epoch and step of its last rows, from 0
    last_event: str  # that it wrote, as a text
    seconds_ago: float  # since it wrote that
    doing: Doing
    seen: Seen | None  # its process as probe.py saw it; None: gone, or its machine could not be looked at
    shares: Mapping[str, float] = field(default_factory=dict)  # kind -> share of the moments at which it was looked at

    @property
    def name(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"

    @property
    def at(self) -> str:
        """Its position as people count, from 1."""
        if not self.position:
            return "before its first step"
        return f"epoch {self.position[0] + 1}, step {self.position[1] + 1}"


def workers_of(
    records: Sequence[Record], seen: Mapping[tuple[str, int], Seen], hosts: set[str], recipe: str, now: float
) -> tuple[Worker, ...]:
    """The workers that have not ended, by rank.

    `seen`: (host, process id) -> what probe.py saw of it. `hosts`: those that could be looked at. `now`: seconds since
    1970.
    """
    return tuple(_worker(events, seen, hosts, recipe, now) for events in _current(records))


def _current(records: Sequence[Record]) -> list[Record]:
    """Of each rank the newest record, unless it has ended."""
    newest: dict[tuple[Any, int], Record] = {}
    for events in records:
        start = events[0]
        if start["event"] == "start" and start.get("role", "worker") == "worker":
            newest[start.get("phase", 0), start["rank"]] = events
    return [
        events
        for _, events in sorted(newest.items(), key=lambda item: item[1][0]["rank"])
        if events[-1]["event"] != "end"
    ]


def _worker(events: Record, seen: Mapping[tuple[str, int], Seen], hosts: set[str], recipe: str, now: float) -> Worker:
    start, last = events[0], events[-1]
    rows = next((event for event in reversed(events) if event["event"] == "rows"), None)
    process = seen.get((start["host"], start["pid"]))
    shares: dict[str, float] = {}
    if process:
        doing = doing_of(process, process.threads, recipe)
        kinds = Counter(doing_of(process, threads, recipe).kind for threads in process.samples)
        shares = {kind: count / len(process.samples) for kind, count in kinds.most_common()}
        if doing.kind == "loading":
            doing = _of_child(process, doing, seen, recipe)
    elif start["host"] in hosts:
        doing = Doing("gone", "its process is gone, and it has not noted its end", None)
    else:
        doing = Doing("unknown", "its machine could not be looked at", None)
    return Worker(
        rank=start["rank"],
        host=start["host"],
        pid=start["pid"],
        position=(rows["epoch"], rows["step"]) if rows else None,
        last_event=_shown(last),
        seconds_ago=max(0.0, now - last["time"]),
        doing=doing,
        seen=process,
        shares=shares,
    )


def _shown(event: Event) -> str:
    details = [f"{key} {event[key] + 1}" for key in ("epoch", "step") if isinstance(event.get(key), int)]
    return " ".join([event["event"], str(event.get("name", "")), *details]).replace("  ", " ").strip()


def _of_child(parent: Seen, waits: Doing, seen: Mapping[tuple[str, int], Seen], recipe: str) -> Doing:
    """What the process does for which a worker waits (a data loader's, Spark's Python): the stopped or busiest one."""
    family = {parent.pid}
    for _ in range(2):  # Spark's Python is the child of a daemon
        family |= {pid for (host, pid), one in seen.items() if host == parent.host and one.ppid in family}
    children = [seen[parent.host, pid] for pid in family - {parent.pid} if seen[parent.host, pid].threads]
    if not children:
        return waits
    child = max(children, key=lambda one: (one.state in "Tt", one.cpu_share))
    doing = doing_of(child, child.threads, recipe)
    what = f"{waits.what} (pid {child.pid}), and {doing.what.replace('it ', 'that ', 1)}"
    return Doing("loading", what, doing.frame)


def usual_line(worker: Worker, recipe: str) -> Frame | None:
    """The line of the recipe in which a worker is most often when it is in no exchange."""
    lines: Counter[Frame] = Counter()
    for threads in worker.seen.samples if worker.seen else ():
        doing, thread = doing_of(worker.seen, threads, recipe), thread_of(threads, recipe)  # type: ignore[arg-type]
        if thread and doing.kind != "exchange" and doing.frame:
            lines[doing.frame] += 1
    return lines.most_common(1)[0][0] if lines else None
