"""What this machine has (cores, memory, disk, limits), and whether that is enough for a run. Standard library only."""

from __future__ import annotations

import contextlib
import math
import os
import pwd
import re
import resource
import shutil
import socket
from collections.abc import Collection
from pathlib import Path

from cookbook import UserError

LOADER_BYTES = 8 << 20  # of shared memory, for each process that reads ahead
FIRST_GPU = Path("/dev/nvidia0")
FILE_BYTES = 64 << 20  # that a run must be able to write into one file
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# (limit, what is used) of memory, in bytes, as cgroups of version 2 and 1 name them
MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def check_object_store(megabytes: int, available: int) -> None:
    """Raises UserError for an object store of Ray's that would not fit into so many bytes of memory."""
    if megabytes << 20 > available * 0.8:
        raise UserError(
            f"recipe.object_store_mb={megabytes}: this machine has {available >> 20} MB of memory for everything; "
            f"expected at most {int(available * 0.8) >> 20}"
        )


def idle_gpu(devices: Collection[str | None]) -> list[str]:
    """A warning when all workers, whose devices these are, computed on the CPU of a machine that has a GPU."""
    if set(devices) == {"cpu"} and FIRST_GPU.exists():
        return ["this machine has an NVIDIA GPU, and the workers computed on its CPU: docs/gpus.md says when they do"]
    return []


def num_cores() -> int:
    """The processors that this process may use: fewer than there are under taskset, or in a container with a quota."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group in control_groups("cpu"):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                quota, period = (int(word) for name in names for word in (group / name).read_text().split())
                found += [math.ceil(quota / period)] if quota > 0 else []
    return max(1, min(found))


def control_groups(controller: str) -> list[Path]:
    """The folders with the limits of this process: its own control group and those above it.

    In a container the first one is the container's. In a step of Slurm's, or a service of systemd's, it lies deeper.
    """
    found = [CGROUPS, CGROUPS / controller]
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if names == "" or controller in names.split(","):
            below = Path(path.lstrip("/"))
            top = CGROUPS / controller if names else CGROUPS
            found += [top / one for one in (below, *below.parents) if ".." not in one.parts]
    return list(dict.fromkeys(found))


def check_limits(num_workers: int) -> None:
    """Raises UserError for a shell's limit that no run can keep: of open files (pipes to workers), of a file's size.

    A checkpoint that such a limit cuts off ends in an error of its library that does not name it.
    """
    wanted = 32 + 16 * num_workers
    if 0 <= (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < wanted:
        raise UserError(
            f"this shell allows {limit} open files, and {num_workers} workers need {wanted}: ulimit -n 1024"
        )
    if 0 <= (limit := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) < FILE_BYTES:
        raise UserError(
            f"this shell allows files of {limit:,} bytes, and a run writes larger ones "
            f"(expected at least {FILE_BYTES >> 20} MB): ulimit -f unlimited"
        )


def memory_bytes() -> int:
    """The memory of this machine, or what its container may use of it."""
    limits = [most for most, _ in memory_limits()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def check_shared_memory(num_loaders: int, place: str | Path = "/dev/shm") -> None:
    """Raises UserError where so many processes that read ahead could not hand over their rows."""
    if not Path(place).is_dir():
        return
    free = shutil.disk_usage(place).free
    if free < num_loaders * LOADER_BYTES:
        raise UserError(
            f"{place} has {free >> 10} kB free, and {num_loaders} processes that read ahead hand their rows over in "
            f"it: expected at least {num_loaders * LOADER_BYTES >> 20} MB. Make it larger (docker run --shm-size=1g; "
            f"mount -o remount,size=1g {place}), or say recipe.num_loader_workers=0"
        )


def check_user(number: int) -> None:
    """Raises UserError for a user without a name (docker run --user 1234): Spark's Hadoop asks Java for it."""
    try:
        pwd.getpwuid(number)
    except KeyError:
        raise UserError(
            f"user {number} has no name on this machine, and Spark ends with an error without one: add the line "
            f"`me:x:{number}:0::/tmp:/bin/sh` to /etc/passwd (of the container, say), or run as a user who has one"
        ) from None


def check_localhost() -> None:
    """Raises UserError when the name localhost does not lead to loopback."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo("localhost", None, socket.AF_INET)}
    except OSError:
        found = set()
    if not any(address.startswith("127.") for address in found):
        what = f"leads to {', '.join(sorted(found))}" if found else "does not resolve"
        raise UserError(
            f"the name localhost {what} on this machine, and this launcher starts its workers by it: "
            "add the line `127.0.0.1 localhost` to /etc/hosts"
        )


def may_run_programs(folder: str | Path) -> bool:
    """Whether programs and libraries in a folder may run; not where its disk is mounted noexec, as /tmp may be."""
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def can_be_made(folder: Path) -> bool:
    """Whether files can be written in a folder, which may have to be made first; a read-only one must be there."""
    if folder.is_dir():
        return True
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def free_disk_mb(folder: Path) -> int:
    """Megabytes that are free where a folder is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // 2**20


def number_in(path: Path) -> int | None:
    """The number that a file of the system holds; None where it holds none ("max"), or is not there."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def free_memory_mb() -> int | None:
    """Megabytes that are left for new processes, in this container if it is one; None: the system does not tell."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (line := re.search(r"^MemAvailable: +(\d+) kB", meminfo.read_text(encoding="utf-8"), re.M)):
        found.append(int(line[1]) // 1024)
    found += [max(0, most - now) // 2**20 for most, now in memory_limits() if most < 2**60]
    return min(found) if found else None


def memory_limits() -> list[tuple[int, int]]:
    """[(limit, what is used)] in bytes of the control groups that this process is in."""
    pairs = [
        (number_in(group / limit), number_in(group / used))
        for group in control_groups("memory")
        for limit, used in MEMORY
    ]
    return [(most, now) for most, now in pairs if most is not None and now is not None]
