"""Spark, Dask or Ray clusters that stay up on the hosts of an inventory, for run after run.

Run: python -m cookbook.services up|down|status INVENTORY RECIPE [SETTING=VALUE ...]

What a recipe's launcher would start for one run is started by the same code; runs with cluster=hosts and that inventory then start
their program only. A supervisor on this machine keeps it up: the hosts end all of it when they no longer hear of that process, and it
ends the rest when a part is lost. Its files are in the inventory's folder `services`, readable by their owner alone.
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
from pathlib import Path

import psutil
from filelock import FileLock

from cookbook import ROOT, UserError, doctor, environments, inventory, systems
from cookbook.job import Job, Process
from cookbook.places import hosts as on_hosts
from cookbook.places.hosts.ssh import Ssh
from cookbook.settings import compose_recipe

FIRST_PORT = 29600  # of the first recipe's service; runs have those from 29500 on
MADE_HERE = ".cookbook-service"  # stands in folders that this module has made: no other one is ever removed
STOP_SECONDS = 60  # for the supervisor to end everything on all hosts


class Service:
    """A recipe's cluster on the hosts of an inventory, and the folder of its files. Raises UserError for a recipe that has none."""

    def __init__(self, where, recipe, overrides=()):
        names = sorted(path.stem for path in (ROOT / "conf/recipe").glob("*.yaml"))
        if recipe not in names:
            raise UserError(f"recipe {recipe!r} does not exist. There are: {', '.join(names)}")
        self.where, self.recipe, self.overrides = Path(where).resolve(), recipe, list(overrides)
        port = f"cluster.port={FIRST_PORT + names.index(recipe)}"
        words = ["cluster=hosts", f"cluster.inventory={self.where}", port, *overrides]
        self.config, _ = compose_recipe(recipe, words)
        self.config["cluster"] = inventory.with_hosts(self.config["cluster"])
        self.system = systems.load(self.config["recipe"]["driver"]["system"])
        if not self.system.has_cluster():
            raise UserError(
                f"recipe {recipe} has no cluster that could stay up: {self.system.name} starts its workers itself"
            )
        systems.require_shared_files(self.config)
        self.services = self.config["cluster"]["services"]
        self.folder = Path(self.services) / recipe
        self.access_file, self.state_file = self.folder / "access.json", self.folder / "supervisor.json"

    def lock(self):
        """Two at once on the same service: the second waits for the first."""
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(self.folder.with_suffix(".lock"))

    def state(self):
        """What its supervisor has written down: {host, pid, mark, leaves}; empty where there is none."""
        state = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        if state and state["host"] != socket.gethostname():
            raise UserError(
                f"the {self.recipe} cluster of {self.where} is kept up by a process on {state['host']}: do it there"
            )
        return state

    def up(self):
        """Starts it and waits until it is ready; does nothing where it is up."""
        with self.lock():
            if inventory.supervisor(self.state()) and self.access_file.exists():
                print(f"{self.recipe}: {inventory.access_to(self.services, self.recipe)['address']} is up")
                return
            self.clear()
            doctor.require(self.config["recipe"]["driver"]["tools"], self.recipe)
            self.folder.mkdir(mode=0o700)
            (self.folder / MADE_HERE).touch()
            with open(self.folder / "supervisor.log", "w") as log:
                words = [sys.executable, "-m", "cookbook.services", "supervise", self.where, self.recipe, *self.overrides]  # fmt: skip
                process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
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

    def down(self):
        """Ends it on all hosts, and removes its files there and here."""
        with self.lock():
            self.clear()
        self.folder.with_suffix(".lock").unlink(missing_ok=True)

    def clear(self):
        if self.folder.is_symlink() or (self.folder.exists() and not (self.folder / MADE_HERE).exists()):
            raise UserError(
                f"{self.folder} is not a folder of a service: it was not made by this command, and is left alone. Move it away, or give "
                f"the inventory another `services:` folder than {self.services}"
            )
        state = self.state()
        if not state:
            return shutil.rmtree(self.folder, ignore_errors=True)
        if process := inventory.supervisor(state):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
        # Also where it was killed: what it has left on the hosts goes.
        cluster = self.config["cluster"]
        with Ssh(cluster) as ssh:
            if lost := on_hosts.stop(ssh, cluster, self.folder, state["mark"], {}, [*state["leaves"], self.folder]):
                why = "; ".join(f"{name}: {text}" for name, text in lost.items())
                raise UserError(f"the {self.recipe} cluster may still be on hosts that could not be reached: {why}")
        return shutil.rmtree(self.folder, ignore_errors=True)

    def status(self):
        access = inventory.access_to(self.services, self.recipe)
        print(f"{self.recipe}: {access['address'] if access else 'not up'}")
        return 0 if access else 1

    def supervise(self):
        """Starts the cluster, says so, and ends it when told to, or when a part of it ends."""
        mark, told = f"service-{uuid.uuid4().hex[:12]}", []
        write(self.state_file, {"host": socket.gethostname(), "pid": os.getpid(), "mark": mark, "leaves": []})
        run_dir = self.folder / mark  # a short name: Ray makes one of it that must be
        run_dir.mkdir()
        variant = self.config["recipe"]["driver"].get("variant")
        python, _ = environments.ensure(self.recipe, self.config["cache_dir"], Lines(), mark, variant)
        job = Job(self.config, ROOT / "recipes" / self.recipe, python, run_dir)
        place = on_hosts.SshHosts(job, mark, use_services=False)
        place.prepare(self.system, None, Lines())
        processes, access = self.system.cluster_on_hosts(job, place.hosts)
        leaves = sorted({path for process in processes for path in process.cleanup_paths})
        write(self.state_file, {"host": socket.gethostname(), "pid": os.getpid(), "mark": mark, "leaves": leaves})
        # Started last: when it says that it is there, all others are.
        head = Process("head", ["sh", "-c", "echo ready; exec sleep infinity"], host=place.hosts.head.address)

        def watch(waiting=False):
            log = run_dir / "logs/head.log"
            if told:
                self.access_file.unlink(missing_ok=True)
                raise SystemExit(0)
            if not self.access_file.exists() and log.exists() and "ready" in log.read_text():
                write(self.access_file, {**access, **systems.offer(job)})
                print(f"{self.recipe}: {access['address']} is up, {len(place.hosts.nodes)} hosts", flush=True)

        # From here on there is something to clean up: it must not be cut short.
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        try:
            statuses = place.run([*processes, head], watch)
            raise UserError(f"the {self.recipe} cluster has ended: {statuses}; {run_dir}/logs")
        finally:
            self.access_file.unlink(missing_ok=True)


class Lines:
    """Progress as plain lines."""

    def update(self, text):
        print(f"{text} ...", flush=True)

    line = done = update


def write(path, content):
    """Whole or not at all, and for nobody else's eyes."""
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(content))
    partial.replace(path)


def main(argv):
    if len(argv) < 3 or argv[0] not in ("up", "down", "status", "supervise"):
        raise SystemExit("usage: python -m cookbook.services up|down|status INVENTORY RECIPE [SETTING=VALUE ...]")
    try:
        return getattr(Service(*argv[1:3], argv[3:]), argv[0])()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
