"""The harm itself: signals, full and slow disks, altered checkpoints, cut links. The faults and the tests use it.

Each function does one thing to one thing, and says what it did to what. What is done for a time has its undoing beside
it. A process is only ever hurt if it belongs to the run that is to be hurt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from cookbook import UserError
from cookbook.processes import RUN_VARIABLE

MARK = "COOKBOOK_CHAOS"  # this variable marks all processes that descend from a driver that is to be hurt
BLKIO = Path("/sys/fs/cgroup/blkio")
TBF = ("burst", "16k", "latency", "400ms")  # of a narrow link: bytes that may pass at once, longest wait in the queue


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process. Raises ProcessLookupError when it has just ended."""
    os.kill(pid, number)


def kill(pid: int) -> None:
    """Ends a process at once, as the kernel does when memory runs out, and as a machine does that loses its power."""
    send(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """Stops a process where it is; `go_on` lets it go on."""
    send(pid, signal.SIGSTOP)


def go_on(pid: int) -> None:
    """Lets a stopped process go on. It may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        send(pid, signal.SIGCONT)


def ask_to_end(pid: int) -> None:
    """SIGTERM: what schedulers and clouds send before they take a machine away."""
    send(pid, signal.SIGTERM)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that descend from the driver with that mark, wherever they have gone."""
    return _with_variable(MARK, mark)


def of_run(run_id: str) -> list[psutil.Process]:
    """The living processes of a run."""
    return _with_variable(RUN_VARIABLE, run_id)


def _with_variable(name: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def alter(path: Path) -> str:
    """Changes 64 bytes in the middle of a file; its size stays."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(max(0, size // 2 - 32))
        block = file.read(64)
        file.seek(max(0, size // 2 - 32))
        file.write(bytes(byte ^ 0xFF for byte in block))
    return f"{len(block)} of {size:,} bytes of {path.parent.name}/{path.name} altered"


def cut(path: Path) -> str:
    """Cuts off the second half of a file."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return f"{path.parent.name}/{path.name} cut off at {size // 2:,} of {size:,} bytes"


def sh(*argv: str | Path) -> str:
    """Runs a system's tool; returns its output. Raises UserError with the tool's words."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, argv))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def cannot_mount() -> str:
    """Why no disk of its own can be made for a run on this machine; empty: it can."""
    if os.geteuid() != 0:
        return "a disk of its own is mounted for the run, which needs root"
    missing = [tool for tool in ("mkfs.ext4", "mount", "findmnt") if not shutil.which(tool, path=_path())]
    return f"{', '.join(missing)} is missing" if missing else ""


def cannot_slow_disks() -> str:
    """Why no disk can be slowed down on this machine; empty: it can."""
    limits = BLKIO / "blkio.throttle.write_bps_device"
    return cannot_mount() or ("" if limits.exists() else "the kernel's blkio controller (cgroup version 1) is missing")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Disk:
    """A disk of its own for a run: a file with a file system in it. It can be filled, and slowed down.

    Needs root. The file takes no more room on the machine's disk than what is written into it.
    """

    def __init__(self, image: Path, folder: Path, megabytes: int = 4096, slow: bool = False) -> None:
        """`slow`: whether it is to be slowed down: then each write waits for the disk, and none for a cache."""
        self.image, self.folder = image, folder
        self.ballast, self.group = folder / ".ballast", BLKIO / f"cookbook-chaos-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        sh("mkfs.ext4", "-q", "-F", "-m", "0", image)
        sh("mount", "-o", "loop,sync" if slow else "loop", image, folder)
        shutil.rmtree(folder / "lost+found")
        self.device = sh("findmnt", "-no", "MAJ:MIN", folder).strip()

    def fill(self) -> str:
        """Takes all room that is left."""
        size, taken = 1 << 30, 0
        with open(self.ballast, "wb") as file:
            while size >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), taken, size)
                    taken += size
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        return f"the run's disk is full: {self._free():,} bytes free"

    def make_room(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def slow_down(self, kilobytes_per_second: int, pids: Sequence[int]) -> str:
        """Lets these processes, and those that they start, write and read no faster than that."""
        self.group.mkdir(exist_ok=True)
        for what in ("write", "read"):
            limit = f"{self.device} {kilobytes_per_second << 10}"
            (self.group / f"blkio.throttle.{what}_bps_device").write_text(limit)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (self.group / "cgroup.procs").write_text(str(pid))
        return f"the disk gives {len(pids)} processes {kilobytes_per_second:,} KiB/s"

    def speed_up(self) -> None:
        """Full speed again."""
        if not self.group.exists():
            return
        for pid in (self.group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (BLKIO / "cgroup.procs").write_text(pid)
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.group.rmdir()
                return
            time.sleep(0.1)

    def close(self, keep: Path | None = None) -> None:
        """Takes the disk away; what is on it is copied to `keep` first."""
        try:
            self.speed_up()
            self.make_room()
            if keep:
                shutil.copytree(self.folder, keep, symlinks=True, dirs_exist_ok=True)
        finally:
            self._unmount()

    def _unmount(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                sh("umount", self.folder)
                break
            except UserError:  # somebody still looks at it
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self.image.unlink(missing_ok=True)


def cut_link(link: str) -> None:
    """Takes the plug out: nothing passes, in either direction. `link`: this machine's end of a host's cable."""
    sh("ip", "link", "set", link, "down")


def mend_link(link: str) -> None:
    sh("ip", "link", "set", link, "up")


def has_netem() -> bool:
    """Whether this kernel can delay what a network sends."""
    if os.geteuid() != 0 or not shutil.which("tc", path=_path()):
        return False
    name = f"cb-try-{os.getpid()}"
    sh("ip", "netns", "add", name)
    try:
        words = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(words, capture_output=True).returncode == 0
    finally:
        sh("ip", "netns", "delete", name)


def delay(namespace: str, milliseconds: float) -> None:
    """Lets whatever a host sends wait so long."""
    sh("tc", "-n", namespace, "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", f"{milliseconds:g}ms")


def narrow(namespace: str, megabits_per_second: float) -> None:
    """Lets a host send no faster than that."""
    rate = f"{megabits_per_second:g}mbit"
    sh("tc", "-n", namespace, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, *TBF)


def undo_traffic(namespace: str) -> None:
    """The host sends as before."""
    subprocess.run(["tc", "-n", namespace, "qdisc", "delete", "dev", "eth0", "root"], capture_output=True)


def requeue(job: str) -> None:
    """Lets Slurm end a job and put it back into its queue, as it does for a job that has to make room."""
    sh("scontrol", "requeue", job)


def processes_on(namespace: str) -> list[int]:
    """Ids of the processes of a host that is a network namespace of this machine."""
    return [int(pid) for pid in re.findall(r"\d+", sh("ip", "netns", "pids", namespace))]


def kill_host(namespace: str) -> str:
    """Ends every process of a host at once."""
    pids = processes_on(namespace)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            kill(pid)
    return f"{len(pids)} processes of {namespace} ended"
