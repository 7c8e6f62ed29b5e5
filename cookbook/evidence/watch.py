"""Follows the records of a run while its workers write them."""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from cookbook import UserError
from cookbook.evidence import causes
from cookbook.evidence.inspector import Inspector
from cookbook.processes import belongs_to, of_run
from cookbook.report.console import Stage
from runrecord import Event, parse_line

HELD_UP_SECONDS = 2.0  # a longer pause between two looks may hide the whole life of a worker
LOOK_SECONDS = 0.5  # between two looks at all processes of the machine, until the first worker has spoken


class Watcher:
    """Follows a run's workers while they work.

    It shows their progress, asks the operating system about every process that says it is a worker, and raises
    UserError when no worker starts, or when all have fallen silent.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        stage: Stage,
        num_workers: int,
        cluster: Mapping[str, Any],
        sees_processes: bool = True,
        inspector: Inspector | None = None,
    ) -> None:
        """`sees_processes`: whether the workers are processes of this machine, as `Place.sees_processes` says.

        `inspector`: looks at them when they fall silent, and when somebody asks.
        """
        self.inspector = inspector
        self.diagnose_after_seconds: float = cluster.get("diagnose_after_seconds", math.inf)
        self._inspected: float | None = None  # since when there was no news when they were looked at last
        self._stalled: float | None = None  # the silence at which the run was given up
        self.sees_processes = sees_processes
        self.folder, self.run_id, self.stage, self.num_workers = run_dir / "workers", run_id, stage, num_workers
        self.stall_timeout_seconds: float = cluster["stall_timeout_seconds"]
        self.start_timeout_seconds: float = cluster["start_timeout_seconds"]
        self.logs, self.log_sizes = run_dir / "logs", causes.sizes(run_dir / "logs")
        self.seen_pids: set[int] = set()
        self.unwatched_pids: set[int] = set()  # came and went while this process was held up (stopped, or starved)
        self._held_up, self._last_look = False, time.monotonic()
        self.first_start: float | None = None  # on this machine's monotonic clock, when it was noticed
        self.num_started = 0
        self._numbers: dict[str, float] = {}  # metric -> its newest value
        self._last_news, self._looked = time.monotonic(), 0.0
        self._launched = time.monotonic()
        self._who: dict[Path, Event] = {}  # record -> its start
        # (host, process) -> (epoch, step) of its last rows
        self._where: dict[tuple[str | None, int | None], tuple[int, int]] = {}
        # What an earlier try of this run wrote is not news.
        self._offsets = {path: path.stat().st_size for path in self.folder.glob("*.jsonl")}

    def __call__(self, waiting: bool = False) -> None:
        """Reads what is new.

        `waiting`: the run waits for a machine, or for a service that comes first. Then the time until the first
        worker must have started is not counted.
        """
        self._held_up = time.monotonic() - self._last_look > HELD_UP_SECONDS
        self._last_look = time.monotonic()
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path) as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            whole = text.rpartition("\n")[0]
            self._offsets[path] = self._offsets.get(path, 0) + len((whole + "\n").encode() if whole else b"")
            for line in whole.splitlines():
                if event := parse_line(line):
                    self._last_news = time.monotonic()
                    self._take(path, event)
        if not self.first_start:
            self.stage.update(f"starting {self.num_workers} workers")
            self._look_around()
            self._launched = time.monotonic() if waiting else self._launched
            if (seconds := time.monotonic() - self._launched) > self.start_timeout_seconds:
                raise UserError(self._nobody(seconds))
        silence = time.monotonic() - self._last_news
        self._inspect(silence)
        if self.first_start and silence > self.stall_timeout_seconds:
            if self._stalled is None:
                self._stalled = silence
                if self.inspector:
                    self.inspector.begin()  # this loop goes on: a host that hears nothing ends its processes
            if not self.inspector or not self.inspector.busy:
                raise UserError(self._stall(self._stalled))

    def _inspect(self, silence: float) -> None:
        """Has the processes looked at when somebody asks, and once when they fall silent; shows what was seen."""
        if not self.inspector:
            return
        self.inspector.poll(silence)
        if self.first_start and silence > self.diagnose_after_seconds and self._inspected != self._last_news:
            self._inspected = self._last_news
            self.stage.line(f"no worker has written anything for {silence:.0f} s: looking at them")
            self.inspector.begin()
        if text := self.inspector.news():
            for line in text.splitlines():
                self.stage.line(line)

    def _look_around(self) -> None:
        """Looks for the run's processes before they write anything: a short one may be gone when its record is read."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.seen_pids |= {process.pid for process in of_run(self.run_id)}
            self._looked = time.monotonic()

    def _take(self, path: Path, event: Event) -> None:
        if event["event"] == "start":
            self.first_start = self.first_start or time.monotonic()
            self._who[path] = event
            self.num_started += event.get("role", "worker") == "worker"
            if belongs_to(event["pid"], self.run_id):
                self.seen_pids.add(event["pid"])
            elif self._held_up:
                self.unwatched_pids.add(event["pid"])
        elif event["event"] == "rows":
            # A coordinator notes rows for the process that took them.
            taker = event if "pid" in event else self._who.get(path, {})
            self._where[taker.get("host"), taker.get("pid")] = event["epoch"], event["step"]
        elif event["event"] == "end":
            self._who.pop(path, None)
        elif event["event"] == "metric":
            self._numbers[event["name"]] = event["value"]
        elif event["event"] == "progress":
            loss = self._numbers.get("train/loss")
            text = event["text"] + (f"  loss {loss:.4f}" if loss is not None else "")
            self.stage.update(text, event["done"], event["total"])

    def _nobody(self, seconds: float) -> str:
        """Why nobody has started, as far as the logs say."""
        said = self._said() or "the launcher has written nothing"
        return (
            f"none of {self.num_workers} workers has started within {seconds:.0f} s: {said}. "
            f"The whole logs are in {self.logs}; if this machine is only slow, raise cluster.start_timeout_seconds"
        )

    def _said(self) -> str:
        """What the logs say about the reason."""
        return causes.cause_of(self.logs, self.log_sizes) or causes.last_words(self.logs, self.log_sizes)

    def _stall(self, silence: float) -> str:
        """Which rank is behind: the others wait for it, in an exchange that needs all of them."""
        found: list[tuple[tuple[int, int], bool, str]] = []
        for start in [start for start in self._who.values() if start["role"] == "worker"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                # This machine knows nothing of another machine's process, though it may have one of the same number.
                state = psutil.Process(start["pid"]).status() if self.sees_processes else ""
                where = self._where.get((start["host"], start["pid"]))
                at = "before its first step" if where is None else f"epoch {where[0] + 1}, step {where[1] + 1}"
                process = f"pid {start['pid']} on {start['host']}" + (f", {state}" if state else "")
                line = f"rank {start['rank']} ({process}): {at}"
                found.append((where or (-1, -1), state != psutil.STATUS_STOPPED, line))
        silent = f"no worker has written anything for {silence:.0f} s"
        if not self.num_started:  # more patience is no help
            said = self._said() or "the logs are empty"
            return f"{silent}, none of {self.num_workers} ever started: {said}. The whole logs are in {self.logs}"
        lines = [line for *_, line in sorted(found)]
        behind = f"slowest first: {'; '.join(lines)}" if lines else "all of them have ended, but the launcher has not"
        if self.inspector and self.inspector.says:
            behind += f". {self.inspector.says.rstrip('.')}"
        return f"{silent}, {behind}. A slower machine or a longer step needs a larger cluster.stall_timeout_seconds"
