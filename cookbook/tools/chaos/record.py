"""Reads the record of a run while the run goes on: how far it is, and which process is which worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from runrecord import Event, Record, parse_line

NEWS = ("rows", "progress", "checkpoint")  # events that show that work goes on


@dataclass
class RunSoFar:
    """What the worker processes of one run folder have written so far. `read` takes in what is new."""

    folder: Path
    records: dict[Path, Record] = field(default_factory=dict)
    began: float = 0.0  # events before this time belong to an earlier try (seconds since 1970, this machine's clock)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def read(self) -> None:
        """Reads the lines that were written since the last call. A line that is not whole yet waits."""
        for path in sorted(self.folder.glob("workers/*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._offsets.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offsets[path] = self._offsets.get(path, 0) + len(whole + newline)
            events = [event for line in whole.decode(errors="replace").splitlines() if (event := parse_line(line))]
            self.records.setdefault(path, []).extend(events)

    @property
    def events(self) -> list[Event]:
        """All events, of all processes."""
        return [event for events in self.records.values() for event in events]

    @property
    def is_working(self) -> bool:
        """Whether this try, not only an earlier one, has done something."""
        return any(event["event"] in NEWS and event["time"] >= self.began for event in self.events)

    @property
    def num_checkpoints(self) -> int:
        return len({(event["epoch"], event["step"]) for event in self.events if event["event"] == "checkpoint"})

    def step(self, rank: int | None = None) -> int:
        """How many steps the run has begun, over all its tries; `rank`: that worker, where it counts its own.

        A step is what the record counts: a batch where workers note their rows, else a stage, a trial's epoch or an
        iteration, as the run reports its progress.
        """
        if rank is not None and (own := _positions(events for events in self._of(rank))):
            return len(own)
        if found := _positions(self.records.values()):
            return len(found)
        return max((int(event["done"]) for event in self.events if event["event"] == "progress"), default=0)

    def alive(self, rank: int, role: str = "worker") -> Event | None:
        """The `start` of the newest process with that role and rank that has not noted its end; None without one."""
        found = [events[0] for events in self._of(rank, role) if events[-1]["event"] != "end"]
        starts = [start for start in found if start["event"] == "start" and start["time"] >= self.began]
        return max(starts, key=lambda start: float(start["time"]), default=None)

    def _of(self, rank: int, role: str = "worker") -> list[Record]:
        records = [events for events in self.records.values() if events]
        return [
            events for events in records if events[0].get("rank") == rank and events[0].get("role", "worker") == role
        ]


def _positions(records: Iterable[Record]) -> set[tuple[object, int, int]]:
    """(phase, epoch, step) of all rows; the phase is that of searches and the like, which count anew in each."""
    return {
        (events[0].get("phase"), event["epoch"], event["step"])
        for events in records
        for event in events
        if event["event"] == "rows"
    }


def steps_of(folders: Iterable[Path]) -> tuple[int, int] | None:
    """(steps taken, steps that count) of the busiest worker over all tries; None where no worker notes its rows.

    A step that a later try took again was taken twice and counts once.
    """
    taken: dict[tuple[str, int, str, int], list[tuple[object, int, int]]] = {}
    for folder in folders:
        run = RunSoFar(folder)
        run.read()
        for events in run.records.values():
            start = events[0] if events else {}
            for event in events:
                if event["event"] == "rows" and start.get("event") == "start":
                    who = str(start.get("role", "worker")), int(start["rank"])
                    by = str(event.get("host", "")), int(event.get("pid", 0))
                    taken.setdefault((*who, *by), []).append((start.get("phase"), event["epoch"], event["step"]))
    if not taken:
        return None
    wasted = max(taken.values(), key=lambda steps: (len(steps) - len(set(steps)), len(steps)))
    return len(wasted), len(set(wasted))


def newest_checkpoint(run: RunSoFar) -> Path | None:
    """The newest file of the newest checkpoint that the record names and that is there; the largest of several."""
    written = sorted((e for e in run.events if e["event"] == "checkpoint"), key=lambda e: float(e["time"]))
    for event in reversed(written):
        path = Path(event["path"])
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        files = [file for file in files if file.name not in ("checkpoint.json", "damaged.txt")]
        if files:
            newest = max(file.stat().st_mtime for file in files) - 1.0
            return max((file for file in files if file.stat().st_mtime >= newest), key=lambda file: file.stat().st_size)
    return None
