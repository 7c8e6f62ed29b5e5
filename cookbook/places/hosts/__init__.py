"""Processes on several hosts by ssh.

The hosts are looked at, they get the run's files, the processes are started and followed, and nothing stays there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cookbook import ROOT, UserError, access, inventory, processes
from cookbook.evidence.inspector import PROBE, Answers, Spec, ask
from cookbook.inventory import Host
from cookbook.job import Hosts, Job, Node, Process
from cookbook.places import Place, Status, Watch
from cookbook.places.hosts.running import begin, on_each, run_on_hosts, say_hello
from cookbook.places.hosts.ssh import Ssh, in_one_line, push
from cookbook.places.local import POLL_SECONDS
from cookbook.prepare import stores
from cookbook.report.console import Progress
from cookbook.systems import System
from preempt import NOTICE

NEEDED_BYTES = 500 << 20  # free on a host, beyond what is copied there


@dataclass(frozen=True)
class Findings:
    """What remote.py has found out about a host."""

    interface: str  # the network interface that has the host's address; empty: none has it
    files: str  # the hash of the sources as they are there
    free: Mapping[str, int]  # folder -> free bytes
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
                    self._bring_dataset(ssh, data_dir, store, stage)
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

    def _bring_dataset(self, ssh: Ssh, data_dir: Path, store: str, stage: Progress) -> None:
        """Puts the dataset into the object store unless it is there; each host that lacks it takes it from there.

        Raises UserError, with the end of what was said, when that does not work.
        """
        log, python = self.job.run_dir / "logs/data.log", self.job.python
        address = stores.put(data_dir, store, stores.Tool(python, stage, log, self.run_id))
        argv = [str(python), "-m", "storage", "get", address, str(data_dir)]
        stage.update(f"{len(self.cluster['hosts'])} hosts take {data_dir.name} from {address}")

        def take(host: Host) -> None:
            own = log.with_name(f"data-{host['name']}.log")
            process = Process("data", argv, self.job.environment(**self.access.environment), host=host["address"])
            with open(own, "a") as output:
                child = begin(ssh, host, process, self.cluster, self.run_id, output)
            while child.poll() is None:
                say_hello({"data": child})
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
                found = ask(ssh.argv(host, "python3", "-c", in_one_line(PROBE)), spec, ssh.environment)
                return found if isinstance(found, str) else found[0]

            answers = on_each(self.cluster["hosts"], look)
        return {host["name"]: answer for host, answer in zip(self.cluster["hosts"], answers, strict=True)}


def files_of_the_user(data_dir: Path) -> list[Path]:
    """The files outside the dataset's folder that its manifest names: its readers open them where they are."""
    manifest = json.loads((data_dir / "manifest.json").read_text())
    return [Path(path) for path in manifest.get("paths", []) if "://" not in path]
