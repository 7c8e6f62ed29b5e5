"""Processes on several hosts by ssh.

The hosts are looked at, they get the run's files, the processes are started and followed, and nothing stays there.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from cookbook import ROOT, UserError, access, inventory, processes
from cookbook.evidence.inspector import PROBE, Answers, Spec, ask
from cookbook.inventory import Host
from cookbook.job import Hosts, Job, Node, Process, Settings
from cookbook.places import Place, Status, Watch
from cookbook.places.hosts.ssh import Ssh, pull, push
from cookbook.places.local import POLL_SECONDS
from cookbook.report.console import Progress
from cookbook.systems import System
from preempt import NOTICE
from storage import Checkpoints

AGAIN_SECONDS = 10.0  # between two tries to start a service that was lost with its host
NEEDED_BYTES = 500 << 20  # free on a host, beyond what is copied there
Children = Mapping[str, subprocess.Popen[str]]  # name of a process -> ssh, which runs it on its host
T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What remote.py has found out about a host."""

    interface: str  # the network interface that has the host's address; empty: none has it
    files: str  # the hash of the sources as they are there
    free: Mapping[str, int]  # folder -> free bytes
    host: str  # the name that it gives itself
    interpreter: bool  # whether it has the Python that the environment needs


class SshHosts(Place):
    """The hosts of an inventory."""

    def __init__(self, job: Job, run_id: str, system: System, use_services: bool | None = None) -> None:
        super().__init__(job, run_id, system)
        self.use_services = job.cluster["use_services"] if use_services is None else use_services
        self.hosts = Hosts(())
        self.access = access.Access()

    @property
    def num_hosts(self) -> int:
        """All loopback addresses count as one host: they are this machine."""
        addresses = [host["address"] for host in self.cluster["hosts"]]
        return len({"127" if address.startswith("127.") else address for address in addresses})

    def prepare(self, data_dir: Path | None, stage: Progress) -> None:
        """Looks at every host, and brings it what the run needs.

        Raises UserError, which names the host, when one cannot take part.
        """
        job, cluster = self.job, self.cluster
        service = inventory.access_to(cluster["services"], job.recipe_dir.name) if self.use_services else None
        if service:
            stage.line(f"on the running cluster {service['address']}")
        sources = sorted([*(ROOT / "runrecord").glob("*.py"), *job.recipe_dir.glob("*.py")])
        here = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        with Ssh(cluster) as ssh:

            def look(host: Host) -> Findings:
                spec = {
                    "address": host["address"],
                    "paths": [str(job.run_dir)],
                    "files": [str(path) for path in sources],
                    "interpreter": str(job.python.resolve()),
                }
                return Findings(**ssh.ask(host, spec, "look"))

            stage.update(f"looking at {len(cluster['hosts'])} hosts")
            found = on_each(cluster["hosts"], look)
            for host, findings in zip(cluster["hosts"], found, strict=True):
                self._check(host, findings, here)
            store = cluster["storage"]
            if store:
                self.access = access.to_store(store, job.run_dir / "scratch/secrets")
                processes.write_files(self.access.files)
            if not cluster["shared"]:
                wanted = [job.python.parent.parent, ROOT / "recipes", ROOT / "runrecord", job.run_dir]
                wanted += [data_dir] if data_dir and not store else []
                wanted += files_of_the_user(data_dir) if data_dir else []
                stage.update(f"bringing {len(wanted)} folders to {len(cluster['hosts'])} hosts")
                on_each(cluster["hosts"], lambda host: push(ssh, host, wanted))
                if store and data_dir:
                    self._bring_dataset(ssh, data_dir, f"{store.rstrip('/')}/datasets/{data_dir.name}", stage)
        known = cluster["ssh"].get("known_hosts")
        self.hosts = Hosts(
            nodes=tuple(
                Node(host["name"], host["address"], host["slots"], findings.interface)
                for host, findings in zip(cluster["hosts"], found, strict=True)
            ),
            ssh_port=cluster["ssh"].get("port"),
            known_hosts=Path(known).read_text() if known else None,
            service=service,
        )

    def _bring_dataset(self, ssh: Ssh, data_dir: Path, address: str, stage: Progress) -> None:
        """Puts the dataset into the object store unless it is there; each host that lacks it takes it from there.

        Raises UserError, with the end of what was said, when that does not work.
        """
        log, python = self.job.run_dir / "logs/data.log", self.job.python
        stage.update(f"bringing {data_dir.name} to {address}")
        failure = f"{data_dir} could not be brought to {address}"
        processes.run_tool([python, "-m", "storage", "put", data_dir, address], stage, log, failure, self.run_id)
        argv = [str(python), "-m", "storage", "get", address, str(data_dir)]
        stage.update(f"{len(self.cluster['hosts'])} hosts take {data_dir.name} from {address}")

        def take(host: Host) -> None:
            own = log.with_name(f"data-{host['name']}.log")
            process = Process("data", argv, self.job.environment(**self.access.environment), host=host["address"])
            with open(own, "a") as output:
                child = begin(ssh, host, process, self.cluster, self.run_id, output)
            while child.poll() is None:
                _say_hello({"data": child})
                time.sleep(POLL_SECONDS)
            if child.returncode:
                said = " ".join(own.read_text(errors="replace").split())[-400:]
                raise UserError(
                    f"host {host['name']} ({host['address']}) cannot take the dataset from {address}: {said}"
                )

        on_each(self.cluster["hosts"], take)

    def _check(self, host: Host, findings: Findings, here: str) -> None:
        """Raises UserError for a host that cannot take part. `here`: the hash of the sources on this machine."""
        who, free = f"host {host['name']} ({host['address']})", findings.free[str(self.job.run_dir)]
        if not findings.interpreter:
            raise UserError(
                f"{who} has no {self.job.python.resolve()}: the environment that is brought there needs the same "
                "Python at the same path as here"
            )
        if not findings.interface:
            raise UserError(
                f"{who}: no network interface of it has that address; expected the one that the hosts reach each "
                "other by"
            )
        if free < NEEDED_BYTES:
            raise UserError(
                f"{who} has {free >> 20} MiB free where the run writes, expected at least {NEEDED_BYTES >> 20}: "
                "make room there, or set output_root to another disk"
            )
        if self.cluster["shared"] and findings.files != here:
            raise UserError(
                f"{who} has another version of recipes/{self.job.recipe_dir.name} or runrecord than this machine: "
                "bring its checkout to the same commit, or leave `shared` out of the inventory, and the files are "
                "brought there"
            )

    def plan(self) -> list[Process]:
        return [
            replace(
                process,
                environment={**process.environment, **self.access.environment},
                files={**process.files, **self.access.files},
            )
            for process in self.system.on_hosts(self.job, self.hosts)
        ]

    def give_notice(self, reason: str) -> None:
        """See `Place.give_notice`: on each host, since they need not share a disk."""
        super().give_notice(reason)
        path = self.job.run_dir / NOTICE
        with Ssh(self.cluster) as ssh:
            on_each(self.cluster["hosts"], lambda host: ssh.ask(host, None, "notice", path, reason))

    def run(self, planned: Sequence[Process], watch: Watch) -> dict[str, Status]:
        """See `Place.run`.

        Services are a scheduler, or a worker of a cluster that was made for this run. They are ended when all other
        processes have ended. A service that ends earlier fails the run, unless it may come back. In elastic training
        a host may also be gone for good.
        """
        statuses, lost = run_on_hosts(planned, self.cluster, self.job.run_dir, self.run_id, watch)
        if not self.job.recipe.get("elastic", False):
            return statuses | lost
        self.warnings += [f"{what} was not possible: {why}" for what, why in lost.items()]
        return statuses

    def probe(self, spec: Spec) -> Answers:
        """See `Place.probe`. A host that shares no files is sent py-spy, and does not keep it."""
        spec = {**spec, "own_network": True}
        if not self.cluster["shared"] and Path(spec["py_spy"]).exists():
            spec["sent_py_spy"] = base64.b64encode(Path(spec["py_spy"]).read_bytes()).decode()
        with Ssh(self.cluster) as ssh:

            def look(host: Host) -> Mapping[str, Any] | str:
                found = ask(ssh.argv(host, "python3", "-c", PROBE.read_text()), spec, ssh.environment)
                return found if isinstance(found, str) else found[0]

            answers = on_each(self.cluster["hosts"], look)
        return {host["name"]: answer for host, answer in zip(self.cluster["hosts"], answers, strict=True)}


def files_of_the_user(data_dir: Path) -> list[Path]:
    """The files outside the dataset's folder that its manifest names: its readers open them where they are."""
    manifest = json.loads((data_dir / "manifest.json").read_text())
    return [Path(path) for path in manifest.get("paths", []) if "://" not in path]


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
    logs = run_dir / "logs"
    logs.mkdir(exist_ok=True)
    hosts: dict[str, Host] = {host["address"]: host for host in cluster["hosts"]}
    services = {process.name for process in planned if process.service}
    come_back = {process.name: process for process in planned if process.comes_back}
    tried: dict[str, float] = {}  # service that was lost -> when it was started again
    started: dict[str, subprocess.Popen[str]] = {}
    statuses: dict[str, Status] = {}
    # A thread brings the records back. The loop goes on meanwhile: a host that hears nothing ends its processes.
    with Ssh(cluster) as ssh, concurrent.futures.ThreadPoolExecutor(1) as puller:
        pulled = time.monotonic()
        pulling: concurrent.futures.Future[None] | None = None
        try:
            for process in planned:
                processes.write_files(process.files)
            if not cluster["shared"] and any(process.files for process in planned):
                on_each(cluster["hosts"], lambda host: push(ssh, host, [run_dir]))
            for process in planned:
                path = logs / f"{process.name}.log"
                with open(path, "a") as log:
                    started[process.name] = begin(ssh, hosts[process.host], process, cluster, run_id, log)
                if process.ready:
                    wait_until_ready(process, started, path, cluster["start_timeout_seconds"], watch)
            while True:
                ended = {name: child.returncode for name, child in started.items() if child.poll() is not None}
                statuses = {name: status for name, status in ended.items() if name not in come_back}
                if any(statuses.values()) or statuses.keys() & services or statuses.keys() >= started.keys() - services:
                    break
                for name in ended.keys() & come_back.keys():
                    if time.monotonic() - tried.get(name, -math.inf) > AGAIN_SECONDS:
                        tried[name], process = time.monotonic(), come_back[name]
                        with open(logs / f"{name}.log", "a") as log:
                            started[name] = begin(ssh, hosts[process.host], process, cluster, run_id, log)
                watch()
                _say_hello(started)
                if pulling and pulling.done():
                    # Its error is ignored: when a host is gone for good, its processes end, and that fails the run.
                    pulling, pulled = None, time.monotonic()
                if not cluster["shared"] and not pulling and time.monotonic() - pulled > cluster["pull_seconds"]:
                    pulling = puller.submit(bring_home, ssh, cluster, run_dir)
                time.sleep(POLL_SECONDS)
        finally:
            ended_early = {
                name: status or 1
                for name, status in statuses.items()
                if name in services and set(started) - services - set(statuses)
            }
            if pulling:
                concurrent.futures.wait([pulling])
            cleanup_paths = [
                f"{run_dir}/scratch",
                f"{run_dir}/{NOTICE}",
                *(path for process in planned for path in process.cleanup_paths),
            ]
            lost = stop(ssh, cluster, run_dir, run_id, started, cleanup_paths)
            watch()
    workers = {name: status for name, status in statuses.items() if name not in services}
    return workers | ended_early, {f"the clean-up of {name}": why for name, why in lost.items()}


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


def _say_hello(started: Children) -> None:
    """Tells all hosts that this machine is still there. A host that hears nothing for a while ends its processes."""
    for child in started.values():
        assert child.stdin  # a pipe
        with contextlib.suppress(OSError, ValueError):
            child.stdin.write("\n")
            child.stdin.flush()


def wait_until_ready(process: Process, started: Children, log: Path, seconds: float, watch: Watch) -> None:
    """Waits until a service has written the words that `process.ready` looks for."""
    deadline, child = time.monotonic() + seconds, started[process.name]
    while not re.search(process.ready, log.read_text(errors="replace")):
        if child.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise UserError(f"{process.name} on {process.host} is not ready after {seconds} s: " + " / ".join(last))
        watch(waiting=True)
        _say_hello(started)
        time.sleep(POLL_SECONDS)


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
