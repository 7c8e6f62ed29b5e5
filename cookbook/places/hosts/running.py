"""Processes on hosts: started, followed, ended, and their records brought home."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from cookbook import UserError, processes
from cookbook.inventory import Host
from cookbook.job import Process, Settings
from cookbook.places import Status, Watch
from cookbook.places.hosts.ssh import Ssh, pull, push
from cookbook.places.local import POLL_SECONDS
from preempt import NOTICE
from storage import Checkpoints

AGAIN_SECONDS = 10.0  # between two tries to start a service that was lost with its host
Children = Mapping[str, subprocess.Popen[str]]  # name of a process -> ssh, which runs it on its host
T = TypeVar("T")


def on_each(hosts: Sequence[Host], work: Callable[[Host], T]) -> list[T]:
    """[work(host), ...], all hosts at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(work, hosts))


def run_on_hosts(
    planned: Sequence[Process], cluster: Settings, run_dir: Path, run_id: str, watch: Watch
) -> tuple[dict[str, Status], dict[str, Status]]:
    """See `SshHosts.run`. Nothing of the run is left on any host that can be reached.

    Returns (how the processes ended, {"the clean-up of NAME": why} of the hosts that could not be reached).
    """
    services = {process.name for process in planned if process.service}
    started: dict[str, subprocess.Popen[str]] = {}
    statuses: dict[str, Status] = {}
    with Ssh(cluster) as ssh:
        starter, records = Starter(ssh, cluster, run_dir, run_id, started), Records(ssh, cluster, run_dir)
        try:
            starter.start_all(planned, watch)
            while True:
                ended = {name: child.returncode for name, child in started.items() if child.poll() is not None}
                statuses = {name: status for name, status in ended.items() if name not in starter.come_back}
                if any(statuses.values()) or statuses.keys() & services or statuses.keys() >= started.keys() - services:
                    break
                starter.start_again(ended)
                watch()
                say_hello(started)
                records.bring_home_now_and_then()
                time.sleep(POLL_SECONDS)
        finally:
            ended_early = {
                name: status or 1
                for name, status in statuses.items()
                if name in services and set(started) - services - set(statuses)
            }
            records.wait()
            own = [path for process in planned for path in process.cleanup_paths]
            lost = stop(ssh, cluster, run_dir, run_id, started, [f"{run_dir}/scratch", f"{run_dir}/{NOTICE}", *own])
            watch()
    workers = {name: status for name, status in statuses.items() if name not in services}
    return workers | ended_early, {f"the clean-up of {name}": why for name, why in lost.items()}


class Starter:
    """Starts the processes on their hosts, and those again that come back: a host that is lost may return."""

    def __init__(
        self, ssh: Ssh, cluster: Settings, run_dir: Path, run_id: str, started: dict[str, subprocess.Popen[str]]
    ) -> None:
        """`started`: name -> the ssh that runs it; this class fills it."""
        self.ssh, self.cluster, self.run_dir, self.run_id, self.started = ssh, cluster, run_dir, run_id, started
        self.hosts: dict[str, Host] = {host["address"]: host for host in cluster["hosts"]}
        self.come_back: dict[str, Process] = {}
        self.tried: dict[str, float] = {}  # a process that was lost -> when it was started again
        self.logs = run_dir / "logs"
        self.logs.mkdir(exist_ok=True)

    def start_all(self, planned: Sequence[Process], watch: Watch) -> None:
        """Starts them in their order; one that others need is waited for."""
        self.come_back = {process.name: process for process in planned if process.comes_back}
        for process in planned:
            processes.write_files(process.files)
        if not self.cluster["shared"] and any(process.files for process in planned):
            on_each(self.cluster["hosts"], lambda host: push(self.ssh, host, [self.run_dir]))

        def meanwhile() -> None:
            watch(waiting=True)
            say_hello(self.started)
            time.sleep(POLL_SECONDS)

        for process in planned:
            said = processes.reader(self.logs / f"{process.name}.log")
            self._start(process)
            if process.ready:
                child, seconds = self.started[process.name], self.cluster["start_timeout_seconds"]
                processes.wait_until_ready(process, child, said, seconds, meanwhile)

    def start_again(self, ended: Iterable[str]) -> None:
        """Starts those of the ended processes that come back, each every `AGAIN_SECONDS` at most."""
        for name in self.come_back.keys() & set(ended):
            if time.monotonic() - self.tried.get(name, -math.inf) > AGAIN_SECONDS:
                self.tried[name] = time.monotonic()
                self._start(self.come_back[name])

    def _start(self, process: Process) -> None:
        with open(self.logs / f"{process.name}.log", "a") as log:
            host = self.hosts[process.host]
            self.started[process.name] = begin(self.ssh, host, process, self.cluster, self.run_id, log)


class Records:
    """Brings the hosts' records here while the run goes on; nothing is brought where all see the same files."""

    def __init__(self, ssh: Ssh, cluster: Settings, run_dir: Path) -> None:
        self.ssh, self.cluster, self.run_dir = ssh, cluster, run_dir
        # In a thread: a host that hears nothing of this one meanwhile would end its processes.
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.copying: concurrent.futures.Future[None] | None = None
        self.copied = time.monotonic()

    def bring_home_now_and_then(self) -> None:
        if self.cluster["shared"]:
            return
        if self.copying and self.copying.done():
            # Its error is ignored: the last copy, when all have ended, names the hosts that cannot be reached.
            self.copying, self.copied = None, time.monotonic()
        if not self.copying and time.monotonic() - self.copied > self.cluster["pull_seconds"]:
            self.copying = self.pool.submit(bring_home, self.ssh, self.cluster, self.run_dir)

    def wait(self) -> None:
        """Waits for the copy that is on its way."""
        self.pool.shutdown()


def bring_home(ssh: Ssh, cluster: Settings, run_dir: Path) -> None:
    """Copies records and checkpoints of all hosts to this machine; of the checkpoints only the newest stay."""
    on_each(cluster["hosts"], lambda host: pull(ssh, host, run_dir))
    Checkpoints(run_dir / "checkpoints", run_dir).remove_old()


def begin(
    ssh: Ssh, host: Host, process: Process, cluster: Settings, run_id: str, log: IO[str]
) -> subprocess.Popen[str]:
    """Starts one process by ssh.

    Its environment, with its secrets, goes through the connection: so it is in no command line.
    """
    spec = {
        "argv": [str(word) for word in process.argv],
        "environment": {**process.environment, **process.secrets},
        "run_id": run_id,
        "grace": cluster["stop_grace_seconds"],
        "silence": cluster["silence_seconds"],
    }
    child = subprocess.Popen(
        ssh.program(host, "start"),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **ssh.environment, processes.RUN_VARIABLE: run_id},
    )
    assert child.stdin  # a pipe
    with contextlib.suppress(BrokenPipeError):  # ssh has ended already; its status says so
        child.stdin.write(json.dumps(spec) + "\n")
        child.stdin.flush()
    return child


def say_hello(started: Children) -> None:
    """Tells all hosts that this machine is still there. A host that hears nothing for a while ends its processes."""
    for child in started.values():
        assert child.stdin  # a pipe
        with contextlib.suppress(OSError, ValueError):
            child.stdin.write("\n")
            child.stdin.flush()


def stop(
    ssh: Ssh,
    cluster: Settings,
    run_dir: Path,
    run_id: str,
    started: Children,
    cleanup_paths: Iterable[str | Path],
) -> dict[str, str]:
    """Ends the run's processes on all hosts, and brings the last records home.

    Returns {host: why} of the hosts that could not be reached.
    """
    lost: dict[str, str] = {}

    def end(host: Host) -> None:
        try:
            ssh.ask(host, None, "sweep", run_id, cluster["stop_grace_seconds"], *cleanup_paths)
            if not cluster["shared"]:
                pull(ssh, host, run_dir)
        except (UserError, subprocess.TimeoutExpired) as error:
            lost[host["name"]] = str(error)

    on_each(cluster["hosts"], end)
    Checkpoints(run_dir / "checkpoints", run_dir).remove_old()
    for child in started.values():
        assert child.stdin  # a pipe
        with contextlib.suppress(OSError, ValueError):
            child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
    # What still runs on this machine is ssh itself, connected to a host that does not answer.
    processes.stop(run_id, cluster["stop_grace_seconds"])
    for child in started.values():
        child.wait()
    return lost
