"""Starts processes so that none of them is left behind, whatever ends the run.

As a program it is a run's watchdog: python -m cookbook.processes MARK GRACE_SECONDS FOLDER...; see `Watchdog`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from cookbook import ROOT, UserError, certificates, signals, surroundings

# The environment variable by which the descendants of a run are known, also those that left its group.
MARK = "COOKBOOK_RUN"
POLL_SECONDS = 0.05


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


class Watchdog:
    """A process that ends everything of a run when this one is gone, even killed by SIGKILL, and a folder for temporary files that goes with it.

    The kernel's death signal reaches only the launcher, and some launchers (mpirun, kfp) leave their workers behind. The watchdog reads
    a pipe that only this process holds open: its end without a word means that this process is gone. It is in a session of its own and
    does not carry the run's mark, so that it outlives what ends the others. Workers that are killed leave temporary files behind
    (TensorFlow, Java, torchrun): the run's TMPDIR is a folder of its own.
    """

    def __init__(self, mark, grace_seconds):
        self.mark, self.grace_seconds = mark, grace_seconds

    def __enter__(self):
        self.shared = tempfile.gettempdir()
        self.folders = [str(path) for path in surroundings.own_folder(self.mark)]
        self._use(self.folders[-1])
        words = [sys.executable, "-m", "cookbook.processes", self.mark, str(self.grace_seconds), *self.folders]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={name: value for name, value in os.environ.items() if name != MARK},
        )  # fmt: skip
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):  # it was killed itself
            self.process.communicate(b"done")
        self._use(self.shared)
        _remove(self.folders)

    def _use(self, folder):
        os.environ["TMPDIR"] = tempfile.tempdir = folder


def _remove(folders):
    for folder in folders:
        os.unlink(folder) if os.path.islink(folder) else shutil.rmtree(folder, ignore_errors=True)


def watch_over(mark, grace_seconds, folders):
    """The watchdog's own program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        stop(mark, grace_seconds)
        _remove(folders)


def end_leftovers(mark, grace_seconds):
    """Ends the living processes of an earlier try of a run; returns what they were, as text."""
    names = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} (pid {process.pid})")
    if names:
        stop(mark, grace_seconds)
    return names


def write_file(path, text, mode):
    """Writes a file that never has other permissions than `mode`, not even for a moment."""
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = f"{path}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        os.fchmod(file.fileno(), mode)  # the umask may have taken something away
        file.write(text)
    os.replace(partial, path)


def write_files(files):
    """Writes {path: content}: scripts (`#!`) for everybody to run, everything else for nobody else to read."""
    for path, content in files.items():
        write_file(path, content, 0o755 if content.startswith("#!") else 0o600)


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
    with open(log, "a") as written, open(log, errors="replace") as file:
        file.seek(0, os.SEEK_END)
        process, last, rest = start(argv, mark, environment, output=written), [], ""
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
                stop(mark, 5)
                process.wait()
    if process.returncode:
        words = "\n  ".join(last)
        raise UserError(
            "\n".join(
                filter(None, [f"{failure} (exit status {process.returncode}):\n  {words}", certificates.advice(words)])
            )
        )
    return last


if __name__ == "__main__":
    watch_over(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
