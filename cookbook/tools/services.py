"""Spark, Dask or Ray clusters that stay up on the hosts of an inventory, for run after run.

Run: make services-up|services-down|services-status RECIPE=dask INVENTORY=hosts.yaml [ARGS="key=value"]

A cluster is started by the code that starts one for a single run. Runs with cluster=hosts and that inventory then start
their program only. A process on this machine, the supervisor, keeps the cluster up. When the hosts no longer hear from
the supervisor, they end the cluster. When a part of the cluster ends, the supervisor ends the rest. The files of a
cluster are in the inventory's folder `services`, and only their owner can read them.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from filelock import FileLock

from cookbook import ROOT, UserError, inventory, recipes, require_recipe, systems
from cookbook.files import write_whole
from cookbook.job import Job, Process, Settings
from cookbook.places.hosts import SshHosts
from cookbook.places.hosts.running import stop
from cookbook.places.hosts.ssh import Ssh
from cookbook.prepare import doctor, environments
from cookbook.programs import run_program
from cookbook.report.console import Stage
from cookbook.settings import compose_recipe

FIRST_PORT = 29600  # of the first recipe's service; runs have those from 29500 on
MADE_HERE = ".cookbook-service"  # a file in each folder that this module has made: no other folder is ever removed
STOP_SECONDS = 60  # for the supervisor to end everything on all hosts


class Service:
    """A recipe's cluster on the hosts of an inventory, and the folder of its files."""

    def __init__(self, where: str | Path, recipe: str, overrides: Sequence[str] = ()) -> None:
        """Raises UserError for a recipe that has no such cluster. `where`: the inventory."""
        require_recipe(recipe)
        self.where, self.recipe, self.overrides = Path(where).resolve(), recipe, list(overrides)
        port = f"cluster.port={FIRST_PORT + recipes().index(recipe)}"
        self.config, _ = compose_recipe(recipe, ["cluster=hosts", f"cluster.inventory={self.where}", port, *overrides])
        self.config["cluster"] = inventory.with_hosts(self.config["cluster"])
        self.system = systems.load(self.config["recipe"]["driver"]["system"])
        if not self.system.has_cluster():
            raise UserError(
                f"recipe {recipe} has no cluster that could stay up: {self.system.name} starts its workers itself"
            )
        self.system.check(self.config, "hosts")
        self.services: str = self.config["cluster"]["services"]
        self.folder = Path(self.services) / recipe
        self.access_file, self.state_file = self.folder / "access.json", self.folder / "supervisor.json"

    def lock(self) -> FileLock:
        """Makes a second command for the same service wait until the first has ended."""
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(self.folder.with_suffix(".lock"))

    def state(self) -> dict[str, Any]:
        """The content of supervisor.json: {host, pid, run_id, cleanup_paths}; empty where there is none.

        `cleanup_paths` are the folders to remove on the hosts.
        """
        state: dict[str, Any] = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        if state and state["host"] != socket.gethostname():
            raise UserError(
                f"the {self.recipe} cluster of {self.where} is kept up by a process on {state['host']}: do it there"
            )
        return state

    def up(self) -> None:
        """Starts the cluster and waits until it is ready; does nothing where it is up."""
        with self.lock():
            running = inventory.supervisor(self.state()) and self.access_file.exists()
            if running and (access := inventory.access_to(self.services, self.recipe)):
                print(f"{self.recipe}: {access['address']} is up")
                return
            self.clear()
            doctor.require(self.config["recipe"]["driver"]["tools"], self.recipe)
            self.folder.mkdir(mode=0o700)
            (self.folder / MADE_HERE).touch()
            with open(self.folder / "supervisor.log", "w") as log:
                argv = [sys.executable, "-m", "cookbook.tools.services", "supervise"]
                process = subprocess.Popen(
                    [*argv, str(self.where), self.recipe, *self.overrides],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                with open(self.folder / "supervisor.log") as log:
                    while not self.access_file.exists() and process.poll() is None:
                        print(log.read(), end="", flush=True)
                        time.sleep(0.2)
                    print(log.read(), end="", flush=True)
            except BaseException:
                process.terminate()
                process.wait(STOP_SECONDS)
                raise
            if process.poll() is not None:
                raise UserError(f"the {self.recipe} cluster could not be started: {self.folder}/supervisor.log")

    def down(self) -> None:
        """Ends the cluster on all hosts, and removes its files there and here."""
        with self.lock():
            self.clear()
        self.folder.with_suffix(".lock").unlink(missing_ok=True)

    def clear(self) -> None:
        """Ends what runs of the cluster, and removes its folder. Raises UserError for a folder of something else."""
        if self.folder.is_symlink() or (self.folder.exists() and not (self.folder / MADE_HERE).exists()):
            raise UserError(
                f"{self.folder} is not a folder of a service: it was not made by this command, and is left alone. Move "
                f"it away, or give the inventory another `services:` folder than {self.services}"
            )
        if state := self.state():
            self._end(state)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, state: Settings) -> None:
        if process := inventory.supervisor(state):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
        # A supervisor that was killed has left things on the hosts.
        cluster = self.config["cluster"]
        with Ssh(cluster) as ssh:
            if lost := stop(ssh, cluster, self.folder, state["run_id"], {}, [*state["cleanup_paths"], self.folder]):
                why = "; ".join(f"{name}: {text}" for name, text in lost.items())
                raise UserError(f"the {self.recipe} cluster may still be on hosts that could not be reached: {why}")

    def status(self) -> int:
        """Says whether the cluster is up; returns the command's exit status."""
        access = inventory.access_to(self.services, self.recipe)
        print(f"{self.recipe}: {access['address'] if access else 'not up'}")
        return 0 if access else 1

    def supervise(self) -> NoReturn:
        """The supervisor: starts the cluster, and ends it on SIGTERM or when a part of it ends."""
        run_id = f"service-{uuid.uuid4().hex[:12]}"
        signals: list[int] = []  # that have come
        state = {"host": socket.gethostname(), "pid": os.getpid(), "run_id": run_id, "cleanup_paths": []}
        write_whole(self.state_file, json.dumps(state), 0o600)
        run_dir = self.folder / run_id  # a short name: Ray makes a name of it that must be short
        run_dir.mkdir()
        variant = self.config["recipe"]["driver"].get("variant")
        stage = Stage("services")
        python, _ = environments.ensure(self.recipe, self.config["cache_dir"], stage, run_id, variant)
        job = Job(self.config, ROOT / "recipes" / self.recipe, python, run_dir)
        place = SshHosts(job, run_id, self.system, use_services=False)
        place.prepare(None, stage)
        processes, access = self.system.cluster_on_hosts(job, place.hosts)
        cleanup_paths = sorted({path for process in processes for path in process.cleanup_paths})
        write_whole(self.state_file, json.dumps(state | {"cleanup_paths": cleanup_paths}), 0o600)
        # It is started last: when it writes that it is ready, all others are.
        head = Process("head", ["sh", "-c", "echo ready; exec sleep infinity"], host=place.hosts.head.address)

        def watch(waiting: bool = False) -> None:
            log = run_dir / "logs/head.log"
            if signals:
                self.access_file.unlink(missing_ok=True)
                raise SystemExit(0)
            if not self.access_file.exists() and log.exists() and "ready" in log.read_text():
                write_whole(self.access_file, json.dumps({**access, **systems.offer(job)}), 0o600)
                print(f"{self.recipe}: {access['address']} is up, {len(place.hosts.nodes)} hosts", flush=True)

        def note(number: int, frame: FrameType | None) -> None:
            signals.append(number)

        # From here on a signal is only noted: there is something to clean up, and that must not be cut short.
        signal.signal(signal.SIGTERM, note)
        try:
            statuses = place.run([*processes, head], watch)
            raise UserError(f"the {self.recipe} cluster has ended: {statuses}; {run_dir}/logs")
        finally:
            self.access_file.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> int | None:
    if len(argv) < 3 or argv[0] not in ("up", "down", "status", "supervise") or not (argv[1] and argv[2]):
        raise SystemExit("usage: make services-up|services-down|services-status RECIPE=dask INVENTORY=hosts.yaml")
    command: Callable[[], int | None] = getattr(Service(argv[1], argv[2], argv[3:]), argv[0])
    return command()


if __name__ == "__main__":
    run_program(main)
