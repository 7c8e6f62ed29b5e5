"""What a run is about, as data: the job that is asked for, the machines that it gets, the processes that are started.

Systems turn a `Job` into processes, places start them. Nothing here writes a file or starts anything.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cookbook.redact import redacted_text

Settings = Mapping[str, Any]  # a group of composed settings, as the files in conf/ have them

# glibc gives large freed blocks back to the system and asks for them again in the next step. On a CPU a training step
# then spends an eighth to a fifth of its time on page faults. With these two settings glibc keeps the blocks
# (mallopt(3); PyTorch's performance tuning guide).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


@dataclass(frozen=True)
class Process:
    """One process to start, and the files that have to be there before it starts."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    host: str = "localhost"
    files: Mapping[str, str] = field(default_factory=dict)  # path -> content; a script when it begins with #!
    secrets: Mapping[str, str] = field(default_factory=dict)  # more environment; never shown, never written to a file
    service: bool = False  # serves the others, and is ended when they have ended
    comes_back: bool = False  # a service without which the others go on: when it ends, it is started again
    cleanup_paths: tuple[str, ...] = ()  # folders of its own on its host, to be removed at the end
    ready: str = ""  # a pattern in its output; the next process waits until it appears
    takes_settings: bool = True  # `key=value` words may follow its command line

    @property
    def shell_command(self) -> str:
        """What a user would type to start the same."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if name != "PATH"]
        if folder := self.environment.get("PATH", "").split(os.pathsep)[0]:
            variables.insert(0, f"PATH={shlex.quote(folder)}:$PATH")
        where = "" if self.host == "localhost" else f"# on {self.host}:\n"
        return where + " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True)
class Node:
    """A host that takes part in a run."""

    name: str
    address: str
    slots: int  # workers of this run
    interface: str  # the network interface that has the address


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run, the head first, and what was found out about them."""

    nodes: tuple[Node, ...]
    ssh_port: int | None = None  # None: ssh's own default
    known_hosts: str | None = None  # content of the user's file; None: first contact is trusted
    service: Settings | None = None  # a running cluster's {address, secrets, ...}; None: the run starts its own

    @property
    def head(self) -> Node:
        return self.nodes[0]


@dataclass(frozen=True)
class Job:
    """What is to be run: the settings, and where its program, its Python and its results are."""

    config: Settings  # all groups: recipe, cluster, data, scale, seed
    recipe_dir: Path
    python: Path  # of the recipe's environment
    run_dir: Path

    @property
    def recipe(self) -> Settings:
        recipe: Settings = self.config["recipe"]
        return recipe

    @property
    def cluster(self) -> Settings:
        cluster: Settings = self.config["cluster"]
        return cluster

    @property
    def system(self) -> str:
        """The name of the module in `cookbook.systems` that starts this job."""
        system: str = self.recipe["driver"]["system"]
        return system

    @property
    def num_workers(self) -> int:
        num_workers: int = self.cluster["num_workers"]
        return num_workers

    @property
    def num_threads(self) -> int:
        """Compute threads of each worker."""
        num_threads: int = self.cluster["num_threads_per_worker"]
        return num_threads

    @property
    def num_processes(self) -> int:
        """How many processes do the work: one where a mode drives several devices from a single process."""
        return num_processes(self.config)

    @property
    def bin(self) -> Path:
        """The folder of the environment's commands."""
        return self.python.parent

    @property
    def program(self) -> Path:
        """The program of the chosen variant: main_<variant>.py where there is one, else main.py."""
        own = self.recipe_dir / f"main_{self.recipe['driver'].get('variant')}.py"
        return own if own.exists() else self.recipe_dir / "main.py"

    @property
    def program_and_settings(self) -> list[str]:
        return [str(self.program), str(self.run_dir / "config.yaml")]

    def environment(self, **more: str) -> dict[str, str]:
        """What every worker finds in its environment, whatever starts it."""
        return {
            "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "OMP_NUM_THREADS": str(self.num_threads),
            "PYTHONUNBUFFERED": "1",
            **ALLOCATOR,
            **self._libraries(),
            **({"NOTICE_FILE": self.cluster["notice_file"]} if self.cluster["notice_file"] else {}),
            **more,
        }

    def _libraries(self) -> dict[str, str]:
        """LD_LIBRARY_PATH, where this shell has one, with the environment's own libraries first.

        The loader heeds it before what a wheel's libraries say (RUNPATH): after `module load openmpi` Horovod would
        get another MPI than its mpirun's.
        """
        inherited, folder = os.environ.get("LD_LIBRARY_PATH"), self.bin.parent / "lib"
        if not inherited or self.cluster["kind"] not in ("local", "slurm"):
            return {}
        inside = ("openmpi", "python3*/site-packages/torch/lib", "python3*/site-packages/tensorflow")
        own = [folder, *(found for pattern in inside for found in folder.glob(pattern))]
        return {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, own), inherited])}


def num_processes(config: Settings) -> int:
    """How many processes must show in their records that they worked."""
    count: int = config["recipe"]["driver"].get("num_processes") or config["cluster"]["num_workers"]
    return count


def flags(**options: object) -> list[str]:
    """`flags(nnodes=2, rdzv_backend="c10d")` as ["--nnodes", "2", "--rdzv-backend", "c10d"]."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass
class Objective:
    """The metric that sweeps and comparisons judge a run by."""

    name: str
    direction: str  # maximize or minimize
    optional: bool = False  # whether a run without it counts
    value: float | None = None


@dataclass(frozen=True)
class Finding:
    """What became of one rule of evidence."""

    rule: str
    outcome: str  # held, broken, or not applied
    says: str  # the figures that were compared, what is wrong, or why the rule was not applied


@dataclass
class Result:
    """How a run went: the content of its run.json."""

    recipe: str
    machine: str  # processor, cores, memory, system
    identity: str  # equal for two starts of the same command
    started: float  # seconds since 1970
    each_row_once: bool  # whether the evidence was to show that each row was taken once an epoch
    objective: Objective
    overrides: list[str]
    command: str
    choices: dict[str, str]  # group -> the chosen file
    dataset: dict[str, Any] | None  # name, folder, rows, left_out, notes
    folder: str
    run_id: str  # COOKBOOK_RUN of all its processes
    position: Settings  # the settings on which it depends which rows a step takes
    # running, ok, failed, or preempted: its machine was taken away, and all that was done is saved
    status: str = "running"
    reason: str = ""  # why it failed, or who preempted it
    interrupted_by: str = ""  # the signal that has ended it
    resumable: bool = True
    world_size: int = 0
    worlds: list[int] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    lost_workers: list[dict[str, Any]] = field(default_factory=list)
    services: list[dict[str, Any]] = field(default_factory=list)
    restarts: int = 0
    findings: list[Finding] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    curve_seconds: dict[str, list[float]] = field(default_factory=dict)
    num_rows: int = 0
    account: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    versions: dict[str, str] = field(default_factory=dict)
    workers_command: str = ""
    paces: dict[str, Any] = field(default_factory=dict)  # how each rank went through its steps, and who was slow
    storage: str = ""  # the run's own address in an object store, where its checkpoints are; empty: the folder

    def fail(self, reason: str, resumable: bool = False) -> None:
        """Notes that the run has failed. `resumable`: the same command may go on from the last checkpoint."""
        self.status, self.reason, self.resumable = "failed", redacted_text(reason), resumable

    def interrupt(self, signal: str, stage: str) -> None:
        """Notes that somebody has ended the run in a stage; the same command goes on."""
        self.interrupted_by = signal
        self.fail(f"interrupted by {signal} during stage {stage!r}", resumable=True)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
