"""Sends a run's metrics while it goes, from a process of its own beside the driver.

A process, not a thread of the driver: a tracker's library may hang, crash, or need seconds to be imported, and none of
that may hold up the driver. It runs at a low priority and reads only what is written down anyway, the run record.

It reads its settings from standard input, which only the driver holds open. A second line there says how the run has
ended. When the input ends without it, the driver was killed: then the rest is sent within LAST_SECONDS.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from cookbook import ROOT
from cookbook.files import read_json, write_whole
from cookbook.report import sinks
from cookbook.report.feeder import FOLDER, Feeder, FeederThread
from cookbook.report.sinks import Run, Settings

LAST_SECONDS = 5.0  # to send the rest when the driver was killed
INTERRUPTED_SECONDS = 10.0  # the same when the run was interrupted: somebody waits for its end
LOW_PRIORITY = 5  # as nice(1) counts


class Tailer:
    """The driver's side: starts the process, and ends it."""

    def __init__(self, tracking: Settings, run: Run, without: str) -> None:
        """`without`: an environment variable that the process must not have, for it is not one of the run's."""
        self.wanted = [dict(one) for one in sinks.chosen(tracking)]
        self.folder = run.folder / FOLDER
        self.wait_seconds: float = max(one["wait_seconds"] for one in self.wanted)
        for one in self.wanted:  # what an earlier try of this run came to is no longer true
            path = self.folder / f"{sinks.key(one)}.json"
            if state := read_json(path):
                write_whole(path, json.dumps(state | {"ended": ""}), 0o644)
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {name: value for name, value in os.environ.items() if name != without} | {"PYTHONPATH": paths}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cookbook.report.tailer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # libraries print addresses with passwords in them
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        about = {"sinks": self.wanted, "folder": str(run.folder), "recipe": run.recipe, "sweep": run.sweep}
        self._say(about)

    def _say(self, content: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; what it did not send is reported at the end
            self.process.stdin.write(json.dumps(content).encode() + b"\n")
            self.process.stdin.flush()

    def finish(self, status: str, seconds: float, hurried: Callable[[], bool]) -> list[tuple[str, str]]:
        """Waits until all is sent, `seconds` at most, or until `hurried()` is true. Leaves no process behind.

        Returns [(kind of sink, why it has not got all), ...]. `status`: ok, failed or interrupted.
        """
        self._say({"status": status, "seconds": seconds})
        deadline = time.monotonic() + seconds + 1  # it ends by itself before
        while self.process.poll() is None and time.monotonic() < deadline and not hurried():
            time.sleep(0.02)
        crashed = f"its process ended with status {self.process.returncode}" if self.process.poll() else ""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        problems, late = [], f"it had not taken all within {seconds:.0f} s"
        for one in self.wanted:
            state = read_json(self.folder / f"{sinks.key(one)}.json")
            if state.get("ended") != status:
                problems.append((one["kind"], state.get("error") or crashed or late))
        return problems


def start_feeders(about: dict[str, Any]) -> list[FeederThread]:
    run = Run(Path(about["folder"]), about["recipe"], about["sweep"])
    threads = [FeederThread(Feeder(one, run)) for one in about["sinks"]]
    for thread in threads:
        thread.start()
    return threads


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the driver says so, or is gone
    os.nice(LOW_PRIORITY)
    with contextlib.suppress(OSError):  # where each session has a share of its own, nice alone says nothing
        Path("/proc/self/autogroup").write_text(str(LOW_PRIORITY))
    about = json.loads(sys.stdin.buffer.readline())
    folder = Path(about["folder"]) / FOLDER
    folder.mkdir(exist_ok=True)
    # The tailer of an earlier try, whose driver was killed, may still send its last points.
    with FileLock(folder / ".lock", timeout=2 * LAST_SECONDS):
        threads = start_feeders(about)
        line = sys.stdin.buffer.readline()
        ending: dict[str, Any] = json.loads(line) if line else {"status": "interrupted", "seconds": LAST_SECONDS}
        deadline = time.monotonic() + ending["seconds"]
        for thread in threads:
            thread.finish(ending["status"])
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(0)  # a library's thread that hangs must not keep it alive


if __name__ == "__main__":
    main()
