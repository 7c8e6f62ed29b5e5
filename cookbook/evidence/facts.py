"""What the records of a run's processes say, before any rule is applied."""

from collections.abc import Iterable, Sequence

from cookbook.evidence.verdict import Curves, Worker
from runrecord import Event, Record


def end_of(events: Record) -> Event | None:
    """The event of a process that ended by itself; None when it was killed, or still works."""
    return events[-1] if events[-1]["event"] == "end" else None


def preempted_by(events: Record) -> str:
    """By what a process was preempted; empty if it was not."""
    return str((end_of(events) or {}).get("preempted", ""))


def attempt_of(events: Record) -> int:
    """How often the launcher had started all workers anew before this process."""
    attempt: int = events[0].get("attempt", 0)
    return attempt


def samples_reported(records: Iterable[Record]) -> dict[tuple[str, int], int]:
    """(host, process) -> the samples that it took, as another process (a coordinator) reports."""
    reported: dict[tuple[str, int], int] = {}
    for events in records:
        for event in events:
            if event["event"] == "rows" and "pid" in event:
                taker = event["host"], event["pid"]
                reported[taker] = reported.get(taker, 0) + event["count"]
    return reported


def described(events: Record) -> Worker:
    """A process as `Verdict` has it: its first event, its newest rank and world size, and what it noted at its end."""
    start, end = events[0], end_of(events) or {}
    world = next((event for event in reversed(events) if event["event"] == "world"), start)
    facts = {key: value for key, value in start.items() if key not in ("event", "time")}
    return {
        **facts,
        "rank": world["rank"],
        "world_size": world["world_size"],
        "samples": end.get("samples"),
        "digest": end.get("digest"),
    }


def worlds_of(current: Iterable[Record]) -> list[int]:
    """World sizes in the order of time, as rank 0 saw them; repeated ones once."""
    seen = [event for events in current for event in events if event["event"] in ("start", "world")]
    sizes = sorted((event["time"], event["world_size"]) for event in seen if event["rank"] == 0)
    return [size for index, (_, size) in enumerate(sizes) if index == 0 or size != sizes[index - 1][1]]


def curves_of(records: Sequence[Record]) -> tuple[Curves, dict[str, list[float]]]:
    """The curves, and the seconds of their points, as `Verdict` has them.

    Of several ranks the lowest one counts, and of several values of a step (after a resume) the latest one.
    """
    began = min((events[0]["time"] for events in records), default=0)
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for events in sorted(records, key=lambda events: (-events[0]["rank"], events[0]["time"])):
        for event in events:
            if event["event"] == "metric":
                seconds = round(event["time"] - began, 3)
                points.setdefault(event["name"], {})[event["step"]] = event["value"], seconds
    in_order = {name: sorted(values.items()) for name, values in points.items()}
    curves = {name: [(step, value) for step, (value, _) in values] for name, values in in_order.items()}
    return curves, {name: [seconds for _, (_, seconds) in values] for name, values in in_order.items()}


def errors_of(current: Iterable[Record]) -> list[str]:
    """A sentence for each process that has ended with an error."""
    ends = [(events[0], end_of(events) or {}) for events in current]
    return [
        f"rank {start['rank']} on {start['host']} ended with {end['error'].strip()}"
        for start, end in ends
        if "error" in end
    ]


def preempted(records: Sequence[Record], current: Sequence[Record]) -> str:
    """By what the workers were preempted, and where they have saved; empty unless they were, and nothing failed.

    Workers that another start has replaced since then (Slurm has put the job back into the queue) do not count.
    """
    in_order = sorted(current, key=lambda events: events[0]["time"])
    newest = {(events[0].get("phase", 0), events[0]["rank"]): events for events in in_order}
    reasons = [reason for events in newest.values() if (reason := preempted_by(events))]
    if not reasons or errors_of(current):  # not those of a pipeline's driver, which only waited for the workers
        return ""
    saved = [event for events in records for event in events if event["event"] == "checkpoint"]
    last = max(saved, key=lambda event: event["time"], default=None)
    where = f"saved at epoch {last['epoch'] + 1} after step {last['step']}" if last else "nothing was done yet"
    first_hand = next((reason for reason in reasons if not reason.startswith("another")), reasons[0])
    return f"preempted by {first_hand}: {where}; the same command goes on from there"
