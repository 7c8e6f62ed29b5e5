"""Starts processes so that none of them is left behind, whatever ends the run.

As a program it is a run's watchdog: python -m cookbook.processes RUN_ID GRACE_SECONDS FOLDER...; see `Watchdog`.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from cookbook import ROOT, UserError, certificates, signals, surroundings
from cookbook.files import write_whole
from cookbook.job import Process
from cookbook.report.console import Progress

# This environment variable has the run's id. By it a run's processes are found, also those that left its process group.
RUN_VARIABLE = "COOKBOOK_RUN"
POLL_SECONDS = 0.05


def die_with_parent() -> None:
    """Asks the kernel to end this process when the driver is killed and can no longer do it itself (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def start(
    argv: Sequence[str | Path],
    run_id: str,
    environment: Mapping[str, str] | None = None,
    output: int | IO[str] = subprocess.PIPE,
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts a process in a session of its own. So Ctrl-C reaches the driver only, which then stops all in order."""
    return subprocess.Popen(
        [str(word) for word in argv],
        env={**os.environ, **(environment or {}), RUN_VARIABLE: run_id},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def of_run(run_id: str) -> list[psutil.Process]:
    """The living processes of a run, children or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == run_id and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or just gone
    return found


def belongs_to(pid: int, run_id: str) -> bool:
    """Whether the operating system knows a living process of this run under that process id."""
    try:
        return psutil.Process(pid).environ().get(RUN_VARIABLE) == run_id
    except (psutil.Error, OSError):
        return False


def stop(run_id: str, grace_seconds: float) -> None:
    """Ends all processes of a run: SIGTERM, and SIGKILL for those that are still there after the grace period."""
    family = of_run(run_id)
    for process in family:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while family and time.monotonic() < deadline:
        time.sleep(0.05)
        family = [process for process in family if _alive(process)]
    while family := [process for process in of_run(run_id) if _alive(process)]:
        for process in family:
            _send(process, signal.SIGKILL)
        time.sleep(0.05)


class Watchdog:
    """Leaves nothing of a run behind when this process ends, even if SIGKILL ends it.

    The kernel's death signal reaches only the launcher, and some launchers (mpirun, kfp) leave their workers behind. So
    a second process, the watchdog, reads a pipe that only this process holds open. When the pipe ends without a word,
    this process is gone, and the watchdog ends all processes of the run. The watchdog is in a session of its own, and
    its environment does not have the run's id, so it outlives what ends the others.

    Workers that are killed leave temporary files behind (TensorFlow, Java, torchrun). So the run has a TMPDIR of its
    own, which is removed at the end.
    """

    def __init__(self, run_id: str, grace_seconds: float) -> None:
        self.run_id, self.grace_seconds = run_id, grace_seconds

    def __enter__(self) -> Self:
        self.shared = tempfile.gettempdir()
        self.folders = [str(path) for path in surroundings.own_folder(self.run_id)]
        self._use(self.folders[-1])
        argv = [sys.executable, "-m", "cookbook.processes", self.run_id, str(self.grace_seconds), *self.folders]
        self.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != RUN_VARIABLE},
        )
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # it was killed itself
            self.process.communicate(b"done")
        self._use(self.shared)
        _remove(self.folders)

    def _use(self, folder: str) -> None:
        os.environ["TMPDIR"] = tempfile.tempdir = folder


def _remove(folders: Iterable[str]) -> None:
    for folder in folders:
        os.unlink(folder) if os.path.islink(folder) else shutil.rmtree(folder, ignore_errors=True)


def watch_over(run_id: str, grace_seconds: float, folders: Sequence[str]) -> None:
    """The watchdog's own program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        stop(run_id, grace_seconds)
        _remove(folders)


def end_leftovers(run_id: str, grace_seconds: float) -> list[str]:
    """Ends the living processes of an earlier try of a run; returns what they were, as text."""
    names = []
    for process in of_run(run_id):
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} (pid {process.pid})")
    if names:
        stop(run_id, grace_seconds)
    return names


def write_files(files: Mapping[str, str]) -> None:
    """Writes {path: content}. A script (`#!`) is for everybody to run; any other file only its owner can read."""
    for path, content in files.items():
        write_whole(path, content, 0o755 if content.startswith("#!") else 0o600)


def wait_until_ready(
    process: Process,
    child: subprocess.Popen[str],
    said: Callable[[], str],
    seconds: float,
    meanwhile: Callable[[], None],
) -> None:
    """Waits until a service has written the words that `process.ready` looks for.

    `said`: what it has written since its start. `meanwhile` is called again and again. Raises UserError, with the last
    lines of its log, when it ends before, or takes longer.
    """
    deadline = time.monotonic() + seconds
    while not re.search(process.ready, said()):
        if child.poll() is not None or time.monotonic() > deadline:
            last = said().strip().splitlines()[-5:]
            raise UserError(f"{process.name} on {process.host} is not ready after {seconds} s: " + " / ".join(last))
        meanwhile()


def reader(log: Path) -> Callable[[], str]:
    """A function that returns what is written into a log from now on."""
    start = log.stat().st_size if log.exists() else 0

    def said() -> str:
        with open(log, errors="replace") as file:
            file.seek(start)
            return file.read()

    return said


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it may end between two looks
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def run_tool(
    argv: Sequence[str | Path],
    stage: Progress,
    log: str | Path,
    failure: str,
    run_id: str,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs a helper program to its end, and returns its last lines.

    Its lines show as the stage's progress and are kept in the file `log`. Raises UserError, with `failure` and the
    last lines, when it ends with another status than 0.
    """
    last: list[str] = []
    rest = ""
    with open(log, "a") as written, open(log, errors="replace") as file:
        file.seek(0, os.SEEK_END)
        process = start(argv, run_id, environment, output=written)
        try:
            while process.poll() is None:
                *lines, rest = (rest + file.read()).split("\n")
                last = [*last, *(line.rstrip() for line in lines if line.strip())][-15:]
                if lines and last:
                    stage.update(last[-1].strip()[:100])
                signals.check()
                time.sleep(POLL_SECONDS)
            last = [*last, *(line.rstrip() for line in (rest + file.read()).split("\n") if line.strip())][-15:]
        finally:
            if process.poll() is None:
                stop(run_id, 5)
                process.wait()
    if process.returncode:
        text = "\n  ".join(last)
        message = f"{failure} (exit status {process.returncode}):\n  {text}"
        raise UserError("\n".join(filter(None, [message, certificates.advice(text)])))
    return last


if __name__ == "__main__":
    watch_over(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
