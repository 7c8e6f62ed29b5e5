"""What a fault is: what it must say of itself, what it knows of the run that it hurts, and what it leaves to undo.

Faults of a worker, of the disk and of a host share what stands in `OfWorker`, `OfDisk` and `OfHost`.
"""

from __future__ import annotations

import dataclasses
import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from cookbook.tools.chaos import inject
from cookbook.tools.chaos.kinds import STEP, Step, choice, parameter, show_seconds, whole
from cookbook.tools.chaos.record import RunSoFar


@dataclass(frozen=True)
class Scene:
    """What is known before a run: where it runs and what it is like."""

    recipe: str
    place: str  # local, hosts, slurm, kubernetes
    num_workers: int
    own_hosts: bool = False  # whether the hosts are network namespaces of this machine (infra/local)


@dataclass(frozen=True)
class Undisturbed:
    """What the undisturbed run has shown."""

    num_steps: int
    num_checkpoints: int
    seconds: float


class Victim(Protocol):
    """The run that is hurt, as the faults see it."""

    so_far: RunSoFar
    driver_pid: int
    disk: inject.Disk | None

    def pid_of(self, rank: int, role: str) -> int | None:
        """The living process of a worker; None where there is none at the moment."""

    def pids(self) -> list[int]:
        """All living processes of the run, the driver included."""

    def end_driver(self) -> None:
        """SIGKILL for the driver; returns when nothing of the run lives any more."""

    def link(self, host: int) -> str:
        """This machine's end of a host's cable."""

    def namespace(self, host: int) -> str:
        """The network namespace that is a host."""

    def slurm_job(self) -> str:
        """The number of the run's Slurm job; empty where it has none at the moment."""


@dataclass(frozen=True)
class Harm:
    """What a fault has done."""

    says: str
    undo: Callable[[], None] | None = None  # done after `seconds`, or when the try has ended
    seconds: float | None = None  # None: it lasts until the try has ended

    @classmethod
    def passing(cls, says: str, undo: Callable[[], None], seconds: float) -> Self:
        """One that passes after some seconds, which the text names."""
        return cls(f"{says} for {show_seconds(seconds)} s", undo, seconds)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run at a step."""

    name: ClassVar[str] = ""
    main: ClassVar[str] = "step"  # the parameter that may be given without its name: delay=100ms
    example: ClassVar[str] = ""
    needs_disk: ClassVar[bool] = False
    needs_slow_disk: ClassVar[bool] = False
    earliest: ClassVar[int] = 10  # share of the steps, in percent, from which on a random plan has it

    step: Step = parameter(Step("50%"), STEP, "when the run's record shows so many steps")

    @property
    def text(self) -> str:
        """The fault as one types it, with each parameter."""
        shown = ",".join(f"{f.name}={f.metadata['kind'].show(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{self.name}@{shown}"

    @classmethod
    def parameters(cls) -> dict[str, dataclasses.Field[Any]]:
        return {field.name: field for field in dataclasses.fields(cls)}

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        """Why it cannot happen to such runs on such places; empty: it can."""
        return ""

    @classmethod
    def lacking(cls) -> str:
        """What this machine lacks for it; empty: nothing."""
        return ""

    def refusal(self, scene: Scene) -> str:
        """Why this very fault, with its parameters, makes no sense there; empty: it does."""
        return self.impossible(scene)

    def too_early(self, undisturbed: Undisturbed) -> str:
        """Why it cannot happen to a run like the undisturbed one; empty: it can."""
        if (step := self.step.of(undisturbed.num_steps)) > undisturbed.num_steps:
            return f"{self.name}@step={step}: the undisturbed run has {undisturbed.num_steps} steps"
        return ""

    def is_due(self, victim: Victim, undisturbed: Undisturbed) -> bool:
        """Whether its moment has come: this try works, and the record shows the steps."""
        run = victim.so_far
        return run.is_working and run.step() >= self.step.of(undisturbed.num_steps)

    @abstractmethod
    def harm(self, victim: Victim) -> Harm | None:
        """Does it. None: the process that it is for has just ended; it is tried again."""

    @classmethod
    def usual(cls, scene: Scene) -> Self:
        """The one that its name alone stands for."""
        return cls()

    @classmethod
    def by_chance(cls, chance: random.Random, scene: Scene, share: int) -> Self:
        """One with parameters that a seed chooses. `share`: of the steps, in percent."""
        return cls(Step(f"{share}%"))


def _process_faults_need(scene: Scene) -> str:
    if scene.place == "local" or (scene.place == "hosts" and scene.own_hosts):
        return ""
    return f"cluster={scene.place}: its workers are processes of other machines, which this one cannot signal"


@dataclass(frozen=True)
class OfWorker(Fault):
    """A fault of one worker process."""

    rank: int = parameter(1, whole(0, 1023), "of the worker")
    role: str = parameter("worker", choice("worker", "ps", "chief"), "what the process is in the record")

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        return _process_faults_need(scene)

    def refusal(self, scene: Scene) -> str:
        if self.role == "worker" and self.rank >= scene.num_workers:
            return f"there are {scene.num_workers} workers, ranks 0 to {scene.num_workers - 1}: no rank {self.rank}"
        return self.impossible(scene)

    def is_due(self, victim: Victim, undisturbed: Undisturbed) -> bool:
        run, step = victim.so_far, self.step.of(undisturbed.num_steps)
        reached = run.step(self.rank if self.role == "worker" else None)
        return run.is_working and reached >= step and victim.pid_of(self.rank, self.role) is not None

    def harm(self, victim: Victim) -> Harm | None:
        pid = victim.pid_of(self.rank, self.role)
        try:
            return None if pid is None else self.hurt(pid)
        except ProcessLookupError:
            return None

    @abstractmethod
    def hurt(self, pid: int) -> Harm: ...

    @classmethod
    def usual(cls, scene: Scene) -> Self:
        return cls(rank=min(1, scene.num_workers - 1))

    @classmethod
    def by_chance(cls, chance: random.Random, scene: Scene, share: int) -> Self:
        return cls(Step(f"{share}%"), chance.randrange(scene.num_workers))


@dataclass(frozen=True)
class OfDisk(Fault):
    """A fault of the disk that the run folder is on. The run gets a small disk of its own (as root)."""

    needs_disk = True

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        return "" if scene.place == "local" else f"cluster={scene.place}: the disk of its own is only this machine's"

    @classmethod
    def lacking(cls) -> str:
        return inject.cannot_mount()


@dataclass(frozen=True)
class OfHost(Fault):
    """A fault of a host or of its cable: of the hosts that infra/local makes on this machine."""

    host: int = parameter(2, whole(1, 50), "number of the host; the first one is the head")

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        if scene.place == "hosts" and scene.own_hosts:
            return ""
        if scene.place == "hosts":
            return "only hosts that infra/local makes on this machine can be cut off: leave cluster.inventory out"
        return f"cluster={scene.place}: it happens to hosts; ARGS=cluster=hosts makes them on this machine (as root)"

    def refusal(self, scene: Scene) -> str:
        if scene.own_hosts and self.host > scene.num_workers:
            return f"there are {scene.num_workers} hosts: no host {self.host}"
        return self.impossible(scene)

    @classmethod
    def usual(cls, scene: Scene) -> Self:
        return cls(host=min(2, scene.num_workers))

    @classmethod
    def by_chance(cls, chance: random.Random, scene: Scene, share: int) -> Self:
        return cls(Step(f"{share}%"), chance.randrange(1, scene.num_workers + 1))
