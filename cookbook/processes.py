"""Starts processes so that none of them is left behind, whatever ends the run."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

from cookbook import UserError

MARK = (
    "COOKBOOK_RUN"  # environment variable by which the descendants of a run are known, also those that left its group
)


def _die_with_parent():
    """Asks the kernel to end this process when the driver is killed and can no longer do it itself (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def start(argv, mark, environment=None, output=subprocess.PIPE, cwd=None):
    """Starts a process in a session of its own, so that Ctrl-C reaches the driver only, which then stops all in order."""
    return subprocess.Popen(
        [str(word) for word in argv],
        env={**os.environ, **(environment or {}), MARK: mark},
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        start_new_session=True, preexec_fn=_die_with_parent,
    )  # fmt: skip


def marked(mark):
    """The living processes of a run, children or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or just gone
    return found


def has_mark(pid, mark):
    """Whether the operating system knows a living process of this run under that id."""
    try:
        return psutil.Process(pid).environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def stop(mark, grace_seconds):
    """Ends all processes of a run: SIGTERM, and SIGKILL for those that are still there after the grace period."""
    family = marked(mark)
    for process in family:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while family and time.monotonic() < deadline:
        time.sleep(0.05)
        family = [process for process in family if _alive(process)]
    while family := [process for process in marked(mark) if _alive(process)]:
        for process in family:
            _send(process, signal.SIGKILL)
        time.sleep(0.05)


def _alive(process):
    with contextlib.suppress(psutil.Error):  # it may end between two looks
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(process, number):
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def run_tool(argv, stage, log, failure, mark, environment=None):
    """Runs a helper program to its end; its lines show as the stage's progress and are kept in the file `log`.

    Raises UserError, with `failure` and the program's last lines, when it ends with another status than 0.
    """
    last = []
    with open(log, "a") as file:
        process = start(argv, mark, environment)
        try:
            for line in process.stdout:
                file.write(line)
                if line.strip():
                    last = [*last[-14:], line.rstrip()]
                    stage.update(line.strip()[:100])
            process.wait()
        finally:
            if process.poll() is None:
                stop(mark, 5)
                process.wait()
            process.stdout.close()
    if process.returncode:
        raise UserError(f"{failure} (exit status {process.returncode}):\n  " + "\n  ".join(last))
    return last
