"""Reads a run record while it grows, and makes points of it: name, value, step, time.

The same record gives the same points, however often and in whatever pieces it is read. So a reader that was ended goes
on where it stopped: see `Tail`.
"""

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from cookbook.report.points import Batch, Now, Point, Trial, Worker
from runrecord import Event, parse_line

RATE_SECONDS = 10.0  # of a rank's work that make one point of its rates
MOST_BYTES = 1 << 20  # of a file that are read at once
Place = Mapping[str, list[int]]  # file name -> [checksum of its first line, bytes that were read]


class Tail:
    """Reads what is new in a run's record.

    `place` says how far each file was read. A new Tail that is given it reads everything before it again without
    giving it out: it knows all that it must, and gives out the rest. A half line waits for its other half. A file that
    was replaced by another of its name is read from its start.
    """

    def __init__(self, run_dir: Path, place: Place | None = None) -> None:
        self.folder = run_dir / "workers"
        self.now = Now()
        self.place: dict[str, list[int]] = {}
        self._files: dict[str, Worker] = {}
        self._said: dict[str, set[tuple[int, int]]] = {}  # metric -> (generation, step) that was given out
        if place:
            self._again(place)

    def _again(self, place: Place) -> None:
        for name, (head, size) in place.items():
            path = self.folder / name
            if _head(path) != head:
                continue  # another file has this name now: it is read from its start
            self.place[name] = [head, 0]
            before = -1
            while before < self.place[name][1] < size:
                before = self.place[name][1]
                list(self._events(path, size))

    def read(self, most: int = 1000) -> Batch:
        """Up to about `most` new points; an empty batch when there is nothing new."""
        batch = Batch()
        for path in sorted(self.folder.glob("*.jsonl")):
            head = _head(path)
            if head is None:
                continue  # its first line is not whole yet
            known = self.place.get(path.name)
            if known is None or known[0] != head or path.stat().st_size < known[1]:
                self.place[path.name] = [head, 0]
            while len(batch.points) < most:
                before = self.place[path.name][1]
                for made in list(self._events(path)):
                    if isinstance(made, Trial):
                        batch.trials.append(made)
                    else:
                        batch.points.append(made)
                if self.place[path.name][1] == before:
                    break
        return batch

    def _events(self, path: Path, until: int | None = None) -> Iterator[Point | Trial]:
        """Reads the next piece of a file; gives what its events make. The place moves when all of it was taken."""
        entry = self.place[path.name]
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(entry[1])
            data = file.read(min(MOST_BYTES, MOST_BYTES if until is None else until - entry[1]))
            if b"\n" not in data and len(data) == MOST_BYTES:
                data += file.readline()
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.decode(errors="replace").splitlines():
                if (event := parse_line(line)) and isinstance(event, dict) and "event" in event:
                    yield from self._take(path.name, event)
            entry[1] += len(whole)

    def _take(self, name: str, event: Event) -> Iterator[Point | Trial]:
        now, kind, time = self.now, event["event"], event.get("time", 0.0)
        now.last_event = max(now.last_event, time)
        if kind == "start":
            self._start(name, event)
            return
        worker = self._files.get(name)
        if worker is None:
            return  # a record without a start: nobody knows whose it is
        if kind == "world":
            worker.rank, worker.world_size = event["rank"], event["world_size"]
        elif kind == "restore":
            worker.generation = event["generation"]
        elif kind == "rows":
            yield from self._rows(worker, event)
        elif kind == "work":
            worker.num_rows += event["count"]
            worker.last = max(worker.last, time)
        elif kind == "metric":
            yield from self._metric(worker, event)
        elif kind == "progress":
            now.done, now.total, now.text = event["done"], event["total"], event["text"]
            if now.share is not None and self._is_new("progress", worker, event["done"]):
                yield Point("progress", now.share, event["done"], time)
        elif kind == "checkpoint":
            now.num_checkpoints += 1
            now.last_checkpoint = max(now.last_checkpoint, time)
        elif kind == "trial":
            yield Trial(str(event["phase"]), str(event["id"]), tuple(event["epochs"]), event["score"], time)
        elif kind == "system":
            values = {key: value for key, value in event.items() if key not in ("event", "time")}
            now.nodes.setdefault(worker.host, {}).update(values)
            seconds = int(time - now.began)
            for key, value in values.items():
                yield Point(f"system/{key}", value, seconds, time, worker.host)
        elif kind == "end":
            worker.ended, worker.error = time, event.get("error", "")
            yield from self._rates(worker, time)

    def _start(self, name: str, event: Event) -> None:
        role, phase = event.get("role", "worker"), event.get("phase")
        label = f"{'rank' if role == 'worker' else role}_{event['rank']}"
        label = label if phase is None else f"phase_{phase}_{label}"
        worker = Worker(
            label,
            event["rank"],
            role,
            event["host"],
            event["pid"],
            event["time"],
            event["world_size"],
            phase,
        )
        self.now.began = min(self.now.began or event["time"], event["time"])
        self._files[name] = worker
        if label not in self.now.workers or self.now.workers[label].started <= worker.started:
            self.now.workers[label] = worker

    def _rows(self, worker: Worker, event: Event) -> Iterator[Point]:
        if "pid" in event:  # a coordinator says what another process took: that one has a record, too
            worker.last = max(worker.last, event["time"])
            return
        worker.window = worker.window or (event["time"], worker.num_steps, worker.num_rows)
        if event["time"] - worker.window[0] >= RATE_SECONDS:
            yield from self._rates(worker, event["time"])
        worker.epoch, worker.step = event["epoch"], event["step"]
        worker.num_steps += 1
        worker.num_rows += event["count"]
        worker.last = event["time"]
        worker.recent.append(event["time"])

    def _rates(self, worker: Worker, time: float) -> Iterator[Point]:
        """The rates since the window began, as points at the number of steps that this process has taken."""
        if worker.window is None:
            return
        began, steps, rows = worker.window
        seconds, taken = time - began, worker.num_steps - steps
        worker.window = (time, worker.num_steps, worker.num_rows)
        if seconds > 0 and taken:
            for name, count in (("steps_per_second", taken), ("rows_per_second", worker.num_rows - rows)):
                yield Point(name, count / seconds, worker.num_steps, time, worker.label)

    def _is_new(self, name: str, worker: Worker, step: int) -> bool:
        """Whether no rank has said this before, since the worker last went on from a checkpoint."""
        said, key = self._said.setdefault(name, set()), (worker.generation, step)
        is_new = key not in said
        said.add(key)
        return is_new

    def _metric(self, worker: Worker, event: Event) -> Iterator[Point]:
        """Ranks that note the same metric agree on it, or the run fails: the first one is given out."""
        name, step = event["name"], event["step"]
        if not self._is_new(name, worker, step):
            return
        point = Point(name, event["value"], step, event["time"], unit=event.get("unit", ""))
        self.now.metrics[name] = point
        self.now.curves.setdefault(name, {})[step] = event["value"]
        yield point


def _head(path: Path) -> int | None:
    """What tells a file from another that takes its name: its first line's checksum; None while that is not whole."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    return zlib.crc32(line) if line.endswith(b"\n") else None
