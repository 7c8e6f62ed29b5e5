"""All processes on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cookbook import UserError, machine, processes
from cookbook.evidence.inspector import PROBE, Answers, Spec, ask
from cookbook.job import Process, Settings
from cookbook.places import Place, Watch
from cookbook.systems import System

POLL_SECONDS = 0.1


class Local(Place):
    @property
    def sees_processes(self) -> bool:
        """False where the settings name a running cluster: its processes were not started by this run."""
        return self.cluster.get(self.job.recipe["driver"].get("address", "")) is None

    @classmethod
    def check(cls, config: Settings, system: System) -> None:
        system.check(config, "local")
        machine.check_limits(config["cluster"]["num_workers"])
        check_port(config["cluster"]["port"])

    def plan(self) -> list[Process]:
        return self.system.on_local(self.job)

    def run(self, planned: Sequence[Process], watch: Watch) -> dict[str, int]:
        check_port(self.cluster["port"])
        return run_here(planned, self.job.run_dir / "logs", self.run_id, self.cluster["stop_grace_seconds"], watch)

    def probe(self, spec: Spec) -> Answers:
        return probe_here(spec)


def probe_here(spec: Spec) -> Answers:
    """See `Place.probe`."""
    found, here = ask([sys.executable, "-c", PROBE.read_text()], spec), socket.gethostname()
    return {here: found if isinstance(found, str) else found[0]}


def run_here(planned: Sequence[Process], logs: Path, run_id: str, grace_seconds: float, watch: Watch) -> dict[str, int]:
    """See `Place.run`.

    When a launcher ends well but leaves workers behind, they are waited for no longer than the grace period.
    """
    logs.mkdir(exist_ok=True)
    started: dict[str, subprocess.Popen[str]] = {}
    statuses: dict[str, int] = {}
    try:
        for process in planned:
            processes.write_files(process.files)
            with open(logs / f"{process.name}.log", "a") as log:
                started[process.name] = processes.start(process.argv, run_id, process.environment, output=log)
        while len(statuses) < len(started) and not any(statuses.values()):
            watch()
            time.sleep(POLL_SECONDS)
            statuses = {name: child.returncode for name, child in started.items() if child.poll() is not None}
        watch()
    finally:
        processes.stop(run_id, grace_seconds)
        for child in started.values():
            child.wait()
    return {name: child.returncode for name, child in started.items()}


def check_port(port: int | None) -> None:
    """Raises UserError when somebody else has the port: launchers say that late, or wait for ever."""
    if port is None:
        return
    try:
        # Not bound to loopback alone: torchrun's store listens on all addresses.
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"cluster.port={port} is taken ({error.strerror}): choose another one, or null for any that is free"
        ) from None
