"""What a worker writes down about its work: a file of JSON lines per worker process, only ever appended to.

A recipe depends on nothing else of its project. Standard library and PyYAML only, so that the file can be copied beside
a `main.py`. Who reads the records decides from them alone whether the run counts; a worker never says "all went well".

Events, each with `event` and `time` (seconds since 1970):

    start       rank, world_size, local_rank, host, pid, role, attempt, and facts such as device and versions; phase, where parts of
                the run (seeds, searchers) have workers of their own
    world       rank, world_size: the membership changed while this process lived (elastic training)
    restore     epoch, step, generation: the run goes on from this position; rows that earlier generations recorded for
                it and for later ones are void
    rows        epoch, step, count, sum, sum_sq: the row numbers that this worker takes through one step (or, with pid,
                that the worker in that process took, as it told this one)
    work        count: other pieces of work that this worker has done
    account     read, good, quarantined: what became of all rows of the input
    skip        step, reason: a part of the recipe that was not done, because the input lacks what it needs
    trial       phase, id, epochs, score: a trial of a search has ended; epochs: the list of those that it has trained
    parameters  held, total: how many of the model's parameters this worker keeps
    metric      name, value, unit, epoch, step
    progress    done, total, text
    checkpoint  epoch, step, path
    end         samples, digest, and error if the worker's block ended with one

Beside the events, `table` leaves a table, and a plot of it if asked for, for the run's report.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import yaml


def load_config(argv=None):
    """Reads `CONFIG.yaml [key=value ...]` from the command line into a flat namespace.

    Raises SystemExit when the file is missing, an override names a key that the file lacks, or changes a number into a text.
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


def same_kind(value, default):
    """Whether an override may stand where the default stands: same type, an int for a float, anything for a null."""
    if default is None or value is None:
        return default is None
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


class Diverged(ArithmeticError):
    """A loss or a parameter is no longer a number: going on is a waste, and a checkpoint would be spoilt."""


def check_position(path, theirs, mine):
    """Raises SystemExit when the checkpoint at `path` was made with other settings than it is read with.

    A position (epoch, step) says which rows were taken only together with the settings that it depends on: `theirs`, stored in the
    checkpoint, and `mine` are dictionaries of them. What an older checkpoint lacks is not compared.
    """
    other = [
        f"{key}={mine[key]!r} ({theirs[key]!r} there)" for key in mine if key in theirs and theirs[key] != mine[key]
    ]
    if other:
        raise SystemExit(
            f"checkpoint {path} was made with other settings: {', '.join(other)}. The rows that it has taken depend on them: go on "
            "with those of the checkpoint, or use another checkpoint_dir"
        )


class RunRecord:
    """Records what one worker process does; use it as a context manager around the worker's whole work.

    A record without an `end`, or one whose `end` has an `error`, is a run that did not happen.
    """

    def __init__(
        self, output_dir, rank, world_size, local_rank=0, role="worker", attempt=0, host=None, pid=None, **facts
    ):
        """`role`: worker, or what else the process is (chief, ps): only workers have ranks of the world.
        `attempt`: how often the launcher has started all workers anew before this one.
        `host`, `pid`: of a process that keeps no record itself (a Spark executor), as it told the one that does.
        """
        self._output_dir = Path(output_dir)
        self._host, pid = host or socket.gethostname(), pid or os.getpid()
        folder = Path(output_dir) / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        # Rank alone would not do: after an elastic restart another process has the rank of one that died.
        self._file = _new_file(folder, f"{'rank' if role == 'worker' else role}{rank}-{self._host}-{pid}")
        self._samples, self._digest, self._rank = 0, None, rank
        place = {"rank": rank, "world_size": world_size, "local_rank": local_rank, "host": self._host, "pid": pid}
        self._write("start", **place, role=role, attempt=attempt, **facts)

    def _write(self, event, **fields):
        self._file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def world(self, rank, world_size):
        """Notes this process's rank in a world that has changed its members."""
        self._rank = rank
        self._write("world", rank=rank, world_size=world_size)

    def restore(self, epoch, step, generation):
        """Declares from which position the run goes on: at its start, after a resume, after a change of members.

        `generation` is a number that all members of the new world share and that is larger than any before, such as
        rank 0's clock, broadcast. Steps that an earlier generation took from this position on are void.
        """
        self._write("restore", epoch=epoch, step=step, generation=generation)

    def rows(self, epoch, step, ids, pid=None):
        """Counts the dataset rows (integer array of row numbers) that this worker takes through one step.

        A coordinator reports for workers that run no Python of their own: `pid` is what the worker's process said it is.

        Call it before the step's gradients are exchanged: then a step that took effect is always on record, whoever dies.
        Sum and sum of squares let the reader see lost and doubled rows without keeping the numbers themselves.
        """
        wide, taker = ids.astype("uint64"), {} if pid is None else {"pid": pid}
        self._samples += 0 if taker else len(ids)
        sums = {"count": len(ids), "sum": int(wide.sum()), "sum_sq": int((wide * wide).sum())}
        self._write("rows", epoch=epoch, step=step, **sums, **taker)

    def work(self, count):
        """Counts work that is not rows of a dataset: checks, episodes, trials."""
        self._samples += count
        self._write("work", count=count)

    def account(self, read, good, quarantined):
        """What became of the rows of the input, all of them, whichever worker took them."""
        self._write("account", read=read, good=good, quarantined=quarantined)

    def skip(self, step, reason):
        """Notes that a part of the recipe was not done, and what of the input it would need: "needs a time, and no line has one"."""
        self._write("skip", step=step, reason=reason)

    def trial(self, phase, id, epochs, score):
        """A trial of a search as it has ended: the numbers of its epochs, in order, and its best score."""
        self._write("trial", phase=phase, id=id, epochs=epochs, score=float(score))

    def parameters(self, held, total):
        """How many parameters this worker keeps in its memory, of the whole model's `total`."""
        self._write("parameters", held=held, total=total)

    def metric(self, name, value, step, epoch=None, unit=""):
        """A number at a step. Reduce it over the ranks first: ranks that report different values fail the run."""
        self._write("metric", name=name, value=float(value), step=step, epoch=epoch, unit=unit)

    def finite(self, value, epoch, step, name="train/loss"):
        """Returns `value`. Raises Diverged when it is nan or infinite, naming the position, the rank and the last good checkpoint.

        Call it with every step's loss, and before a checkpoint is written.
        """
        if math.isfinite(value):
            return value
        raise Diverged(
            f"{name} is {float(value)} at epoch {epoch + 1}, step {step + 1} on rank {self._rank}; {self._last_checkpoint()}. "
            "Choose a smaller learning_rate, or look at the rows of this step"
        )

    def _last_checkpoint(self):
        """What any worker of this run, also of an earlier try, has written last."""
        events = [event for events in read_records(self._output_dir) for event in events]
        written = [event for event in events if event["event"] == "checkpoint"]
        if not written:
            return "no checkpoint was written before"
        last = max(written, key=lambda event: event["time"])
        return f"the last good checkpoint is {last['path']} (epoch {last['epoch']}, step {last['step']})"

    def progress(self, done, total, text=""):
        self._write("progress", done=done, total=total, text=text)

    def checkpoint(self, path, epoch, step):
        self._write("checkpoint", path=str(path), epoch=epoch, step=step)

    def digest(self, arrays):
        """SHA-256 of the final parameters (NumPy arrays, in the model's order): data-parallel ranks must agree on it."""
        sha = hashlib.sha256()
        for array in arrays:
            sha.update(array.tobytes())
        self._digest = sha.hexdigest()

    def table(self, name, rows, x=None, y=(), log=False):
        """Leaves a table for the report: `rows` is a list of dictionaries with equal keys (text and numbers).

        With `x` and `y` (a key and a list of keys) the report also plots them; `log`: on logarithmic axes.
        """
        folder = self._output_dir / "tables"
        folder.mkdir(exist_ok=True)
        partial = folder / f".{name}.partial"
        partial.write_text(json.dumps({"rows": rows, "x": x, "y": list(y), "log": log}, indent=1) + "\n")
        partial.replace(folder / f"{name}.json")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        failed = {"error": f"{kind.__name__}: {error}"} if kind else {}
        self._write("end", samples=self._samples, digest=self._digest, **failed)
        self._file.close()


def _new_file(folder, name):
    """A file that nobody has written to: in containers a process often has the number of one that was there before it."""
    for number in itertools.count(1):
        try:
            return open(folder / f"{name}{f'-{number}' if number > 1 else ''}.jsonl", "x", buffering=1)
        except FileExistsError:
            continue


def parse_line(line):
    """The event of one line, or None where the line is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def read_records(output_dir):
    """Returns the records of a run: for each worker process the list of its events, oldest process first.

    A line that was cut off when its process was killed, or its disk was full, is left out.
    """
    records = []
    for path in Path(output_dir).glob("workers/*.jsonl"):
        whole = path.read_text().rpartition("\n")[0]
        events = [event for line in whole.splitlines() if (event := parse_line(line))]
        if events:
            records.append(events)
    return sorted(records, key=lambda events: events[0]["time"])
