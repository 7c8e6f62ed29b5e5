"""Runs the driver as a user would, in a process of its own."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from pathlib import Path

from filelock import FileLock

from cookbook import access, bootstrap, places, systems
from cookbook.bootstrap import uv_environment
from cookbook.job import Hosts, Job, Node
from cookbook.places.hosts import SshHosts
from cookbook.places.kubernetes import Kubernetes
from cookbook.pods import KEYS, InStore, Pods
from cookbook.prepare.tools import uv
from cookbook.settings import compose_recipe
from cookbook.tools.chaos import inject
from cookbook.tools.chaos.record import RunSoFar

ROOT = Path(__file__).resolve().parent.parent

# What a launcher sets must not reach the driver, should the tests themselves run under one.
CLEAN = {
    name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
}


def recipes():
    """Names of all recipes, from their folders."""
    found = sorted(path.parent.name for path in ROOT.glob("recipes/*/main.py"))
    assert found, "no recipe was found"
    return found


def short_words(recipe):
    """Settings of the short run that serves many tests."""
    return compose_recipe(recipe)[0]["recipe"]["driver"].get("short", ["recipe.num_epochs=4"])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition, seconds=60):
    """Calls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        time.sleep(0.05)
    return found


def python_of(name, lock):
    """The Python of an environment for tests, which is made if it is not there. `lock`: its requirements.txt."""
    folder = bootstrap.cache_dir() / f"environments/{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not bootstrap.complete(folder).exists():
            shutil.rmtree(folder, ignore_errors=True)
            environment = {**CLEAN, **uv_environment()}
            subprocess.run([uv(), "venv", "-q", "--python", "3.11", folder], check=True, env=environment)
            install = [uv(), "pip", "install", "-q", "--python", folder / "bin/python", "-r", lock]
            subprocess.run(install, check=True, env=environment)
        bootstrap.mark_as_used(folder)
    return folder / "bin/python"


def copy_checkout(to):
    """Copies what git knows of this checkout, as it is now; returns the copy's folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def latest(output_root, recipe):
    """(content of run.json, its folder) of the newest run."""
    folder = (Path(output_root) / recipe / "latest").resolve()
    return json.loads((folder / "run.json").read_text()), folder


def plan(config, recipe_dir, python, run_dir, service=None):
    """The processes that a run would start: places are not looked at, but taken to be as they usually are."""
    job = Job(config, Path(recipe_dir), Path(python), Path(run_dir))
    cluster, system = config["cluster"], systems.load(job.system)
    kind = places.load(cluster["kind"])
    kind.check(config, system)
    place = kind(job, "run-id", system)
    if isinstance(place, SshHosts):
        nodes = [Node(h["name"], h["address"], h["slots"], h.get("interface", "eth0")) for h in cluster["hosts"]]
        place.hosts = Hosts(tuple(nodes), ssh_port=cluster["ssh"].get("port"), service=service)
    elif isinstance(place, Kubernetes):
        dataset, store = "digits-0123456789ab", cluster["storage"]
        in_store = InStore(f"{store}/datasets/{dataset}", access.to_store(store, Path(KEYS))) if store else None
        place.pods = Pods(job, "seed: 0\n", dataset, {"ray": "2.60.0", "pyspark": "4.3.0"}, in_store)
    return place.plan()


class Driver:
    """A driver in the background, that can be watched, hurt and looked at when it has ended."""

    def __init__(self, *words, output_root, environment=None, checkout=ROOT):
        self.output_root, self.test_mark = Path(output_root), uuid.uuid4().hex
        # For this driver's temporary files, so that one sees what is left of them. It goes when the test forgets the
        # driver. (Ray's sockets need a short path: pytest's own folders are too deep.)
        self.temporary = Path(tempfile.mkdtemp(prefix="cookbook-test-"))
        weakref.finalize(self, shutil.rmtree, self.temporary, ignore_errors=True)
        self.recipe = next((word.removeprefix("recipe=") for word in words if word.startswith("recipe=")), "")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cookbook", *words, f"output_root={output_root}"],
            cwd=checkout,
            text=True,
            env={**CLEAN, inject.MARK: self.test_mark, "TMPDIR": str(self.temporary), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_until(self, condition, seconds=600):
        """Calls `condition` until it returns something true, and returns that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, IndexError):
                if found := condition():
                    return found
            if self.process.poll() is not None:
                raise AssertionError(f"the driver ended too early:\n{self.process.communicate()[0]}")
            time.sleep(0.02)
        raise AssertionError(f"nothing happened for {seconds} s")

    def so_far(self):
        """What the workers have written so far."""
        found = RunSoFar((self.output_root / self.recipe / "latest").resolve())
        found.read()
        return found

    def events(self):
        """All events that the workers have written so far."""
        return self.so_far().events

    def pid_of(self, rank, role="worker"):
        """The process of the worker that started last with this rank, and has not ended."""
        start = self.so_far().alive(rank, role)
        assert start, f"no {role} {rank} is at work"
        return start["pid"]

    # What `make chaos` does to a run, the tests do by the same functions.

    def kill(self, rank, role="worker"):
        """SIGKILL for a worker; returns its process id."""
        pid = self.pid_of(rank, role)
        inject.kill(pid)
        return pid

    def stop(self, rank, role="worker"):
        """SIGSTOP for a worker; returns its process id, which `inject.go_on` takes."""
        pid = self.pid_of(rank, role)
        inject.stop(pid)
        return pid

    def kill_driver(self):
        """SIGKILL for the driver."""
        inject.kill(self.process.pid)

    def end(self, seconds=600):
        """Waits for the driver; returns (exit status, output)."""
        output = self.process.communicate(timeout=seconds)[0]
        return self.process.returncode, output

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def relatives(self):
        """Living processes that descend from this driver, wherever they have gone."""
        return inject.marked(self.test_mark)

    def no_process_left(self, seconds=15):
        """Whether all that the driver has started has ended; its temporary files must be gone then, too."""
        deadline = time.monotonic() + seconds
        while self.relatives() and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.relatives():
            return False
        assert sorted(path.name for path in self.temporary.iterdir()) == []
        return True


def run_cookbook(*words, output_root, status=0, environment=None):
    """Runs the driver to its end; returns (content of run.json, run folder, output).

    Asserts status and no process left.
    """
    driver = Driver(*words, output_root=output_root, environment=environment)
    got, output = driver.end()
    assert got == status, output
    assert driver.no_process_left()
    if not (Path(output_root) / driver.recipe / "latest").exists():
        return None, None, output
    return *latest(output_root, driver.recipe), output


class Silent:
    """A stage that shows nothing."""

    def update(self, *args):
        return
