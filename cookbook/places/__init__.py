"""Where a run's processes run: one module a place, with one class in it. `cluster.kind` names the place.

A place looks at its machines, asks the system for a plan, starts what the plan says, follows it, and leaves nothing
behind.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cookbook import UserError
from cookbook.evidence.inspector import Answers, Spec
from cookbook.job import Job, Process, Settings
from cookbook.report.console import Progress
from cookbook.systems import System
from preempt import NOTICE

Status = int | str  # a process's exit status, or why its host could not be cleaned up


class Watch(Protocol):
    """Called again and again while processes run. It raises what ends the run."""

    def __call__(self, waiting: bool = False) -> None:
        """`waiting`: the run waits for a machine, or for a service that comes first.

        Such time does not count as time in which the workers should have started.
        """


class Place(ABC):
    """One run's place; it keeps what `prepare` has found."""

    def __init__(self, job: Job, run_id: str, system: System) -> None:
        self.job, self.cluster, self.run_id, self.system = job, job.cluster, run_id, system
        self.warnings: list[str] = []  # what a user should know although the run counts
        self.again_since = 0.0  # seconds since 1970: when the place itself has last begun to start all workers anew

    @classmethod
    def check(cls, config: Settings, system: System) -> None:
        """Raises UserError, before any work, when the settings allow no run of this system here."""
        system.check(config, config["cluster"]["kind"])

    @property
    def num_hosts(self) -> int:
        """On how many hosts there must be workers, as their records say."""
        return 1

    @property
    def sees_processes(self) -> bool:
        """Whether this machine's operating system can confirm a worker's process id."""
        return False

    @property
    def takes_notice(self) -> bool:
        """Whether `give_notice` reaches the workers."""
        return True

    def give_notice(self, reason: str) -> None:
        """Tells the workers to save and leave. Here: by a file that they see (runrecord/preempt.py)."""
        (self.job.run_dir / NOTICE).write_text(f"{reason}\n")

    def prepare(self, data_dir: Path | None, stage: Progress) -> None:  # noqa: B027 (this machine needs nothing)
        """Looks at the place, and brings it what the run needs. Raises UserError when the run is not possible there."""

    @abstractmethod
    def plan(self) -> list[Process]:
        """What to start, as the system's method for this place says."""

    @abstractmethod
    def run(self, processes: Sequence[Process], watch: Watch) -> Mapping[str, Status]:
        """Starts all, and calls `watch` until they have ended. When one fails, the others are ended.

        Returns the processes' states at the end by their names. The output of each goes to <run_dir>/logs/<name>.log.
        Nothing is left behind, however this ends.
        """

    def probe(self, spec: Spec) -> Answers:
        """Runs evidence/probe.py on every machine of the run. Called from a thread of its own while `run` goes on."""
        return {f"cluster={self.cluster['kind']}": "this place has no way to look at its machines"}


def names() -> list[str]:
    """All places: the modules and packages of this folder."""
    folder = Path(__file__).parent
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    return sorted(modules + [path.parent.name for path in folder.glob("*/__init__.py")])


def load(name: str) -> type[Place]:
    """The place of that name. Raises UserError for an unknown one."""
    if name not in names():
        raise UserError(f"cluster.kind={name!r} is unknown; there are: {', '.join(names())}")
    module = importlib.import_module(f"cookbook.places.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Place) and value.__module__ == module.__name__
    ]
    return found
