"""Follows the records of a run while its workers write them."""

import contextlib
import time

import psutil

from cookbook import UserError
from cookbook.processes import has_mark, marked
from runrecord import parse_line

LOOK_SECONDS = 0.5  # between two looks at all processes of the machine, until the first worker has spoken


class Watcher:
    """Shows the workers' progress, asks the operating system about every process that says it is a worker, and notices
    when all have fallen silent."""

    def __init__(self, run_dir, mark, stage, num_workers, stall_timeout_seconds):
        self.folder, self.mark, self.stage, self.num_workers = run_dir / "workers", mark, stage, num_workers
        self.stall_timeout_seconds = stall_timeout_seconds
        self.seen_pids, self.first_start = set(), None
        self._numbers, self._last_news, self._looked = {}, time.monotonic(), 0.0
        self._who, self._where = {}, {}  # record -> its start; process -> (epoch, step) of its last rows
        # What an earlier try of this run wrote is not news.
        self._offsets = {path: path.stat().st_size for path in self.folder.glob("*.jsonl")}

    def __call__(self):
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
        silence = time.monotonic() - self._last_news
        if silence > self.stall_timeout_seconds:
            raise UserError(self._stall(silence))

    def _look_around(self):
        """Sees the run's processes before they say anything: one with little to do may be gone when its first words are read."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.seen_pids |= {process.pid for process in marked(self.mark)}
            self._looked = time.monotonic()

    def _take(self, path, event):
        if event["event"] == "start":
            self.first_start = self.first_start or event["time"]
            self._who[path] = event
            if has_mark(event["pid"], self.mark):
                self.seen_pids.add(event["pid"])
        elif event["event"] == "rows":
            # A coordinator notes rows for the process that took them.
            taker = event.get("pid") or self._who.get(path, {}).get("pid")
            self._where[taker] = event["epoch"], event["step"]
        elif event["event"] == "end":
            self._who.pop(path, None)
        elif event["event"] == "metric":
            self._numbers[event["name"]] = event["value"]
        elif event["event"] == "progress":
            loss = self._numbers.get("train/loss")
            text = event["text"] + (f"  loss {loss:.4f}" if loss is not None else "")
            self.stage.update(text, event["done"], event["total"])

    def _stall(self, silence):
        """Who is behind: the others wait for that rank, in an exchange that needs all of them."""
        found = []
        for start in [start for start in self._who.values() if start["role"] == "worker"]:
            with contextlib.suppress(psutil.Error):
                state, where = psutil.Process(start["pid"]).status(), self._where.get(start["pid"])
                at = "before its first step" if where is None else f"epoch {where[0] + 1}, step {where[1] + 1}"
                line = f"rank {start['rank']} (pid {start['pid']} on {start['host']}, {state}): {at}"
                found.append((where or (-1, -1), state != psutil.STATUS_STOPPED, line))
        lines = [line for *_, line in sorted(found)]
        hindmost = f"hindmost first: {'; '.join(lines)}" if lines else f"none of {self.num_workers} ever started"
        return (
            f"no worker has written anything for {silence:.0f} s, {hindmost}. A slower machine or a longer step needs a "
            "larger cluster.stall_timeout_seconds"
        )
