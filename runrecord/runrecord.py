"""What a worker writes down about its work: a file of JSON lines per worker process, only ever appended to.

A recipe depends on nothing else of its project. Standard library and PyYAML only, so that the file can be copied
beside a `main.py`. The reader decides from these records alone whether the run counts. A worker cannot declare a run
a success.

Events, each with `event` and `time` (seconds since 1970):

    start       rank, world_size, local_rank, host, pid, role, attempt, and facts such as device and versions; phase,
                where parts of the run (seeds, searchers) have workers of their own
    world       rank, world_size: the membership changed while this process lived (elastic training)
    restore     epoch, step, generation: the run goes on from this position; rows that earlier generations recorded
                for it and for later ones are void
    rows        epoch, step, count, sum, sum_sq: the row numbers that this worker takes through one step (or, with
                host and pid, that the worker in that process took, as it told this one); cpu: seconds of computing of
                this process so far; waited: seconds since the last rows in which it had done its own work and waited
    work        count: other pieces of work that this worker has done
    account     read, good, quarantined: what became of all rows of the input
    skip        step, reason: a part of the recipe that was not done, because the input lacks what it needs
    trial       phase, id, epochs, score: a trial of a search has ended; epochs: the list of those that it has trained
    parameters  held, total: how many of the model's parameters this worker keeps
    metric      name, value, unit, epoch, step
    progress    done, total, text
    checkpoint  epoch, step, path
    system      cpu_percent, memory_used_mb, memory_percent: of the whole machine that the worker is on (Linux)
    end         samples, digest, and error if the worker's block ended with one; or preempted: why it left before its
                work was done, with all of it saved

Beside the events, `table` writes a table for the run's report, which can also plot it. On SIGUSR2 the process writes
the stacks of all its threads into the file NAME.stacks beside its record.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import yaml

if TYPE_CHECKING:  # a recipe without NumPy keeps records, too
    from typing import Self

    from numpy import integer
    from numpy.typing import NDArray

# The exit status of a worker that has saved its work and left because its machine is taken away (EX_TEMPFAIL).
GO_ON_LATER = 75

Event = dict[str, Any]  # one line of a record: `event`, `time` and the event's own entries
Record = list[Event]  # of one worker process, in the order in which it wrote them

SYSTEM_SECONDS = 10.0  # between two looks at the machine


def load_config(argv: Sequence[str] | None = None) -> SimpleNamespace:
    """Reads `CONFIG.yaml [key=value ...]` from the command line into a flat namespace.

    Raises SystemExit when the file is missing, when an override names a key that the file lacks, or when it changes
    a number into a text.
    """
    path, *overrides = sys.argv[1:] if argv is None else argv or [""]
    if not Path(path).is_file():
        raise SystemExit(f"no config file at {path!r}; usage: python {sys.argv[0]} CONFIG.yaml [key=value ...]")
    config = yaml.safe_load(Path(path).read_text())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in config:
            raise SystemExit(f"unknown setting {override!r}; {path} has: {', '.join(sorted(config))}")
        value, default = yaml.safe_load(text), config[key]
        if not same_kind(value, default):
            raise SystemExit(f"{key}={text} is not like the default {default!r}: expected {type(default).__name__}")
        config[key] = value
    return SimpleNamespace(**config)


def same_kind(value: object, default: object) -> bool:
    """Whether an override may replace the default: same type, an int for a float, anything for a null."""
    if default is None or value is None:
        return default is None
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


class Diverged(ArithmeticError):
    """A loss or a parameter is no longer a number. More steps would be wasted, and a checkpoint would be useless."""


def check_position(path: str | Path, theirs: Mapping[str, object], mine: Mapping[str, object]) -> None:
    """Raises SystemExit when the checkpoint at `path` was made with other settings than it is read with.

    Which rows were taken before a position (epoch, step) depends on settings. `theirs` are those settings as the
    checkpoint has them, `mine` as this run has them.
    """
    other = [f"{key}={mine[key]!r} ({theirs.get(key)!r} there)" for key in mine if theirs.get(key) != mine[key]]
    if other:
        raise SystemExit(
            f"checkpoint {path} was made with other settings: {', '.join(other)}. The rows that it has taken depend on "
            "them: go on with those of the checkpoint, or use another checkpoint_dir"
        )


class Shaped(Protocol):
    """A tensor, an array or a variable, of any library."""

    @property
    def shape(self) -> Iterable[int]: ...


def check_model(path: str | Path, theirs: Mapping[str, Shaped], mine: Mapping[str, Shaped]) -> None:
    """Raises SystemExit when the checkpoint at `path` holds other parameters than the model that is to have them.

    `theirs` are the checkpoint's by name, `mine` the model's; names and shapes must be equal.
    """
    here, there = ({name: tuple(value.shape) for name, value in one.items()} for one in (mine, theirs))
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise SystemExit(
                f"checkpoint {path} is from another model: {name} is {there.get(name, 'missing')} there and "
                f"{here.get(name, 'missing')} here; use another checkpoint_dir, or the settings of that run"
            )


class RunRecord:
    """Records what one worker process does; use it as a context manager around the worker's whole work.

    A record without an `end`, or one whose `end` has an `error`, is a run that did not happen.
    """

    def __init__(
        self,
        output_dir: str | Path,
        rank: int,
        world_size: int,
        local_rank: int = 0,
        role: str = "worker",
        attempt: int = 0,
        host: str | None = None,
        pid: int | None = None,
        **facts: Any,
    ) -> None:
        """Begins the record of this process, in a new file below `output_dir`.

        `role`: worker, or what else the process is (chief, ps): only workers have ranks of the world.
        `attempt`: how often the launcher has started all workers anew before this one.
        `host`, `pid`: of a process that keeps no record itself (a Spark executor), as it told the one that does.
        `facts`: what else the start says, such as device and versions; `phase`, where parts of a run (seeds,
        searchers) have workers of their own.
        """
        self._output_dir = Path(output_dir)
        self._host, pid = host or socket.gethostname(), pid or os.getpid()
        folder = Path(output_dir) / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        # The rank alone is not unique: after an elastic restart another process has the rank of one that died.
        self._file = _new_file(folder, f"{'rank' if role == 'worker' else role}{rank}-{self._host}-{pid}")
        self._lock = threading.Lock()
        self._machine = _Machine() if pid == os.getpid() and local_rank == 0 else None
        self._samples, self._rank = 0, rank
        self._digest: str | None = None
        self._stacks = _stacks_on_signal(Path(self._file.name)) if pid == os.getpid() else None
        self._own_work_done: float | None = None  # when, while this worker waits
        self.after_exchange: Callable[[float], None] | None = None  # called after each with the seconds waited for it
        self._waited: float | None = None  # seconds since the last `rows`; None: the recipe does not say
        place = {"rank": rank, "world_size": world_size, "local_rank": local_rank, "host": self._host, "pid": pid}
        self._write("start", **place, role=role, attempt=attempt, **facts)

    def _write(self, event: str, **fields: Any) -> None:
        # Beside another event, never alone: a worker that hangs must fall silent, or nobody sees that it hangs.
        if self._machine and (figures := self._machine.look(SYSTEM_SECONDS if event != "end" else 1.0)):
            self._write("system", **figures)
        line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
        with self._lock:  # a thread that sends a checkpoint writes, too
            self._file.write(line)

    def world(self, rank: int, world_size: int) -> None:
        """Notes this process's rank in a world that has changed its members."""
        self._rank = rank
        self._write("world", rank=rank, world_size=world_size)

    def restore(self, epoch: int, step: int, generation: float) -> None:
        """Declares from which position the run goes on: at its start, after a resume, after a change of members.

        `generation` is a number that all members of the new world share and that is larger than any before, such as
        rank 0's clock, broadcast. Steps that an earlier generation took from this position on are void.
        """
        self._write("restore", epoch=epoch, step=step, generation=generation)

    def rows(self, epoch: int, step: int, ids: NDArray[integer[Any]], taken_by: tuple[str, int] | None = None) -> None:
        """Counts the dataset rows (integer array of row numbers) that this worker takes through one step.

        A coordinator reports for others: `taken_by` is the worker's host and process, as in its own record.

        Call it before the step's gradients are exchanged: then a step that took effect is always on record, even if
        a worker dies. Sum and sum of squares show lost and doubled rows without the row numbers themselves.
        """
        wide, taker = ids.astype("uint64"), dict(zip(("host", "pid"), taken_by or (), strict=False))
        self._samples += 0 if taker else len(ids)
        sums = {"count": len(ids), "sum": int(wide.sum()), "sum_sq": int((wide * wide).sum())}
        own = {} if taker else {"cpu": round(time.process_time(), 4)}
        if self._waited is not None and not taker:
            own["waited"], self._waited = round(self._waited, 6), 0.0
        self._write("rows", epoch=epoch, step=step, **sums, **taker, **own)

    def own_work_done(self) -> None:
        """Notes that this worker has done its own share of a step: from now on it only waits for the others.

        Called twice before `exchange_done`, the later one counts.
        """
        self._own_work_done = time.perf_counter()

    def exchange_done(self) -> None:
        """Notes that the exchange of a step is over. The next `rows` says how long this worker has waited for it."""
        if self._own_work_done is not None:
            waited = time.perf_counter() - self._own_work_done
            self._waited, self._own_work_done = (self._waited or 0.0) + waited, None
            if self.after_exchange:
                self.after_exchange(waited)

    def work(self, count: int) -> None:
        """Counts work that is not rows of a dataset: checks, episodes, trials."""
        self._samples += count
        self._write("work", count=count)

    def account(self, read: int, good: int, quarantined: int) -> None:
        """Notes what became of all rows of the input, whichever worker took them."""
        self._write("account", read=read, good=good, quarantined=quarantined)

    def skip(self, step: str, reason: str) -> None:
        """Notes a part of the recipe that was left out and what the input lacks: "needs a time, no line has one"."""
        self._write("skip", step=step, reason=reason)

    def trial(self, phase: str | int, id: str | int, epochs: Sequence[int], score: float) -> None:
        """Notes a trial of a search that has ended: the numbers of its epochs, in order, and its best score."""
        self._write("trial", phase=phase, id=id, epochs=epochs, score=float(score))

    def parameters(self, held: int, total: int) -> None:
        """Notes how many of the model's `total` parameters this worker keeps in its memory."""
        self._write("parameters", held=held, total=total)

    def metric(self, name: str, value: float, step: int, epoch: int | None = None, unit: str = "") -> None:
        """Notes a number at a step (steps done since the run began).

        Reduce it over the ranks first: ranks that report different values fail the run, and so does nan.
        """
        self._write("metric", name=name, value=float(value), step=step, epoch=epoch, unit=unit)

    def finite(self, value: float, epoch: int, step: int, name: str = "train/loss") -> float:
        """Returns `value`. Raises Diverged when it is nan or infinite.

        The error names the position, the rank and the last good checkpoint.
        Call it with every step's loss, and before a checkpoint is written.
        """
        if math.isfinite(value):
            return value
        raise Diverged(
            f"{name} is {float(value)} at epoch {epoch + 1}, step {step + 1} on rank {self._rank}; "
            f"{self._last_checkpoint()}. Choose a smaller learning_rate, or look at the rows of this step"
        )

    def _last_checkpoint(self) -> str:
        """The newest checkpoint that any worker of this run has written, also in an earlier try; as a clause."""
        events = [event for events in read_records(self._output_dir) for event in events]
        written = [event for event in events if event["event"] == "checkpoint"]
        if not written:
            return "no checkpoint was written before"
        last = max(written, key=lambda event: event["time"])
        return f"the last good checkpoint is {last['path']} (epoch {last['epoch']}, step {last['step']})"

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Says how far the run is, in whatever it counts: steps, stages, trials. The driver shows it."""
        self._write("progress", done=done, total=total, text=text)

    def checkpoint(self, path: str | Path, epoch: int, step: int) -> None:
        """Notes a checkpoint that is whole: the run can go on from it at that epoch (from 0), after `step` steps of it.

        Call it when the last file is there; what is noted is what the next try looks for.
        """
        self._write("checkpoint", path=str(path), epoch=epoch, step=step)

    def digest(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Keeps the SHA-256 of the final parameters (NumPy arrays, in the model's order) for the `end` of the record.

        Data-parallel ranks must agree on it.
        """
        sha = hashlib.sha256()
        for array in arrays:
            sha.update(array.tobytes())
        self._digest = sha.hexdigest()

    def table(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        x: str | None = None,
        y: Sequence[str] = (),
        log: bool = False,
    ) -> None:
        """Writes a table for the report: `rows` is a list of dictionaries with equal keys (text and numbers).

        With `x` and `y` (a key and a list of keys) the report also plots them; `log`: on logarithmic axes.
        """
        folder = self._output_dir / "tables"
        folder.mkdir(exist_ok=True)
        partial = folder / f".{name}.partial"
        partial.write_text(json.dumps({"rows": rows, "x": x, "y": list(y), "log": log}, indent=1) + "\n")
        partial.replace(folder / f"{name}.json")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = {"error": f"{kind.__name__}: {error}"} if kind else {}
        if isinstance(error, SystemExit) and error.code == GO_ON_LATER:
            failed = {"preempted": getattr(error, "reason", "")}
        self._write("end", samples=self._samples, digest=self._digest, **failed)
        self._file.close()
        if self._stacks:
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()
            with contextlib.suppress(OSError):
                if not os.path.getsize(self._stacks.name):
                    os.unlink(self._stacks.name)


class _Machine:
    """Looks at the machine now and then, in /proc: where there is none, it sees nothing."""

    def __init__(self) -> None:
        self._looked, self._times = time.monotonic(), self._cpu_times()

    @staticmethod
    def _cpu_times() -> list[int]:
        """user, nice, system, idle, iowait and so on of all cores since the machine started (proc(5)); [] elsewhere."""
        try:
            with open("/proc/stat") as file:
                return [int(word) for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return []

    def look(self, seconds: float) -> dict[str, float]:
        """What the machine did since the last look; {} when that is not `seconds` ago, or where nothing can be seen."""
        now = time.monotonic()
        if now - self._looked < seconds or not self._times:
            return {}
        before, self._times, self._looked = self._times, self._cpu_times(), now
        spent = list(map(int.__sub__, self._times, before))
        try:
            with open("/proc/meminfo") as file:
                memory = {line.partition(":")[0]: int(line.split()[1]) for line in file}
            total, free = memory["MemTotal"], memory["MemAvailable"]
        except (OSError, ValueError, IndexError, KeyError):
            return {}
        idle = spent[3] + spent[4] if len(spent) > 4 else 0
        return {
            "cpu_percent": round(100 * (1 - idle / sum(spent)), 1) if sum(spent) > 0 else 0.0,
            "memory_used_mb": round((total - free) / 1024, 1),
            "memory_percent": round(100 * (total - free) / total, 1),
        }


def _new_file(folder: Path, name: str) -> TextIO:
    """Opens a file that did not exist before.

    In a container a process often has the number that an earlier process had there, so its file may exist already.
    """
    number = 1
    while True:
        try:
            return open(folder / f"{name}{f'-{number}' if number > 1 else ''}.jsonl", "x", buffering=1)
        except FileExistsError:
            number += 1


def _stacks_on_signal(record: Path) -> TextIO | None:
    """Makes SIGUSR2 write the stacks of all threads into a file beside the record.

    Python's own code does not run for that, so it works in a program that hangs. Returns None where the system has no
    such signal, or the program uses it itself.
    """
    if not hasattr(faulthandler, "register") or signal.getsignal(signal.SIGUSR2) != signal.SIG_DFL:
        return None
    file = open(record.with_suffix(".stacks"), "a")
    faulthandler.register(signal.SIGUSR2, file, all_threads=True)
    return file


def parse_line(line: str) -> Event | None:
    """The event of one line, or None where the line is damaged."""
    try:
        event: Event = json.loads(line)
    except ValueError:
        return None
    return event


def read_records(output_dir: str | Path) -> list[Record]:
    """Returns the records of a run: for each worker process the list of its events, oldest process first.

    A line that was cut off when its process was killed, or its disk was full, is left out. So is a record that does
    not begin with its `start`: nobody knows whose it is.
    """
    records = [events for _, events, _ in _all_records(output_dir) if events and events[0]["event"] == "start"]
    return sorted(records, key=lambda events: events[0]["time"])


def damaged_records(output_dir: str | Path) -> dict[str, int]:
    """Which files of a run's records have damaged lines between whole ones: {name: number of such lines}."""
    return {name: damaged for name, _, damaged in _all_records(output_dir) if damaged}


def _all_records(output_dir: str | Path) -> Iterator[tuple[str, Record, int]]:
    """(name, events, number of damaged lines) of each file. A last line that was cut off is no damage."""
    for path in sorted(Path(output_dir).glob("workers/*.jsonl")):
        lines = path.read_text(errors="replace").rpartition("\n")[0].splitlines()
        found = [parse_line(line) for line in lines]
        events = [event for event in found if isinstance(event, dict) and "event" in event]
        yield path.name, events, len(lines) - len(events)
