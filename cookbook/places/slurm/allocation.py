"""Starts the programs of a run on the nodes of its Slurm job: a cluster of the run's own, and the client.

Run: python -m cookbook.places.slurm.allocation JOB_FILE     (the job's script does, on the job's first node)

It is for systems that need more than one launcher. What is started is what they start on hosts (`System.on_hosts`);
srun starts it here, beside each other, in steps that share the job's processors.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from cookbook import UserError, processes, systems
from cookbook.job import Hosts, Job, Node, Process
from cookbook.programs import run_program

POLL_SECONDS = 0.2


def job_file(job: Job) -> str:
    """What this program needs to know of a job, as JSON. It has the job's secrets: only the user may read it."""
    known = {"recipe": dict(job.recipe), "cluster": dict(job.cluster)}
    folders = {"recipe_dir": str(job.recipe_dir), "python": str(job.python), "run_dir": str(job.run_dir)}
    return json.dumps(known | folders)


def read_job(path: str | Path) -> Job:
    known = json.loads(Path(path).read_text())
    folders = (Path(known.pop(name)) for name in ("recipe_dir", "python", "run_dir"))
    return Job(known, *folders)


def nodes_of(job: Job) -> tuple[Node, ...]:
    """The nodes of this Slurm job, with an equal share of the workers each.

    Their network interfaces stay unknown: the systems that ask for them have a method of their own for Slurm.
    """
    names = asked("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    return tuple(Node(name, address_of(name), job.num_workers // len(names), "") for name in names)


def address_of(name: str) -> str:
    """A node's address for the others, as Slurm has it: a node's own file of hosts may call it 127.0.1.1."""
    words = asked("scontrol", "--oneliner", "show", "node", name).split()
    known = dict(word.split("=", 1) for word in words if "=" in word)
    return socket.gethostbyname(known.get("NodeAddr", name))


def asked(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


class Steps:
    """The steps of this Slurm job that one run has started."""

    def __init__(self, job: Job, nodes: Sequence[Node]) -> None:
        self.job, self.names = job, {node.address: node.name for node in nodes}
        self.logs = job.run_dir / "logs"
        self.started: dict[str, subprocess.Popen[str]] = {}

    def start(self, process: Process) -> None:
        """Starts a process on its node, and waits until it is ready if others need it."""
        processes.write_files(process.files)
        path, node = self.logs / f"{process.name}.log", self.names[process.host]
        print(f"{process.name} starts on {node}", flush=True)
        said = processes.reader(path)
        with open(path, "a") as log:
            argv, own = [*srun(node), *map(str, process.argv)], {**process.environment, **process.secrets}
            child = subprocess.Popen(
                argv, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
            )
        self.started[process.name] = child
        if process.ready:
            seconds = self.job.cluster["start_timeout_seconds"]
            processes.wait_until_ready(process, child, said, seconds, lambda: time.sleep(POLL_SECONDS))

    def wait(self, services: set[str]) -> Mapping[str, int]:
        """Waits until all but the services have ended, or one has failed. Returns the statuses of those that ended."""
        while True:
            ended = {name: child.returncode for name, child in self.started.items() if child.poll() is not None}
            if any(ended.values()) or ended.keys() & services or ended.keys() >= self.started.keys() - services:
                return ended
            time.sleep(POLL_SECONDS)

    def end(self, paths: Sequence[str]) -> None:
        """Ends what still goes on, and removes the folders that it had on its nodes."""
        living = [child for child in self.started.values() if child.poll() is None]
        for child in living:
            child.terminate()  # srun hands the signal on
        deadline = time.monotonic() + self.job.cluster["stop_grace_seconds"]
        for child in living:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
        for node in self.names.values() if paths else ():
            subprocess.run([*srun(node), "rm", "-rf", "--", *paths], timeout=60, check=False)


def srun(node: str) -> list[str]:
    """A step of one process on one node. It shares the node's processors with the other steps of the job."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    options = [f"--nodelist={node}", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
    return ["srun", "--overlap", *options, "--mem=0", "--quiet"]


def main(argv: Sequence[str]) -> int:
    job = read_job(argv[0])
    nodes = nodes_of(job)
    planned = systems.load(job.system).on_hosts(job, Hosts(nodes))
    services = {process.name for process in planned if process.service}
    steps, ended = Steps(job, nodes), dict[str, int]()

    def leave(number: int, frame: FrameType | None) -> None:
        raise UserError(f"ended by {signal.Signals(number).name}")

    signal.signal(signal.SIGTERM, leave)  # scancel, and the end of the job's time
    try:
        for process in planned:
            steps.start(process)
        ended = dict(steps.wait(services))
    finally:
        steps.end([path for process in planned for path in process.cleanup_paths])
    # A service may end as it likes once all that it serves have ended; before, its end is a failure.
    too_early = services if steps.started.keys() - services - ended.keys() else set[str]()
    failed = {name: status for name, status in ended.items() if name in too_early or (status and name not in services)}
    for name, status in failed.items():
        print(f"{name} ended with exit status {status}", flush=True)
    return next((status or 1 for status in failed.values()), 0)


if __name__ == "__main__":
    run_program(main)
