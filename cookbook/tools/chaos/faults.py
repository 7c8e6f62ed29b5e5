"""The faults: what can be done to a run, with which parameters, and where it can happen.

A new fault is a class in this module. `make chaos FAULTS=help`, the refusals, the random plans and the table of the
documents find it here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Self

from cookbook import UserError
from cookbook.tools.chaos import inject
from cookbook.tools.chaos.fault import Fault, Harm, OfDisk, OfHost, OfWorker, Scene, Undisturbed, Victim
from cookbook.tools.chaos.kinds import STEP, Step, choice, parameter, seconds, whole
from cookbook.tools.chaos.record import newest_checkpoint


@dataclass(frozen=True)
class Kill(OfWorker):
    """SIGKILL for a worker, as the kernel does when memory runs out."""

    name = "kill"
    example = "kill@step=7,rank=1"

    def hurt(self, pid: int) -> Harm:
        inject.kill(pid)
        return Harm(f"SIGKILL for {self.role} {self.rank} (pid {pid})")


@dataclass(frozen=True)
class Stop(OfWorker):
    """SIGSTOP for a worker and SIGCONT some seconds later: a machine that swaps, or that is being moved."""

    name = "stop"
    main = "seconds"
    example = "stop@step=9,seconds=20"

    seconds: float = parameter(10.0, seconds(0.1, 3600), "until it goes on")

    def hurt(self, pid: int) -> Harm:
        inject.stop(pid)
        says = f"SIGSTOP for {self.role} {self.rank} (pid {pid}),"
        return Harm.passing(says, lambda: inject.go_on(pid), self.seconds)

    @classmethod
    def by_chance(cls, chance: random.Random, scene: Scene, share: int) -> Self:
        return cls(Step(f"{share}%"), chance.randrange(scene.num_workers), "worker", float(chance.choice([1, 3, 6])))


@dataclass(frozen=True)
class DriverKill(Fault):
    """SIGKILL for the driver: the program that you have typed. Its watchdog must end everything else."""

    name = "driver_kill"
    example = "driver_kill@step=40%"

    def harm(self, victim: Victim) -> Harm | None:
        inject.kill(victim.driver_pid)
        return Harm(f"SIGKILL for the driver (pid {victim.driver_pid})")


@dataclass(frozen=True)
class Preempt(Fault):
    """SIGTERM, as a scheduler or a cloud sends it before it takes a machine away."""

    name = "preempt"
    main = "to"
    example = "preempt@step=12,to=worker,rank=0"

    to: str = parameter("driver", choice("driver", "worker"), "who gets the signal")
    rank: int = parameter(1, whole(0, 1023), "of the worker, with to=worker")

    def refusal(self, scene: Scene) -> str:
        if self.to == "worker":
            return Kill(self.step, self.rank).refusal(scene)
        return ""

    def harm(self, victim: Victim) -> Harm | None:
        pid = victim.driver_pid if self.to == "driver" else victim.pid_of(self.rank, "worker")
        if pid is None:
            return None
        try:
            inject.ask_to_end(pid)
        except ProcessLookupError:
            return None
        who = "the driver" if self.to == "driver" else f"worker {self.rank}"
        return Harm(f"SIGTERM for {who} (pid {pid})")


@dataclass(frozen=True)
class CorruptCheckpoint(Fault):
    """The driver is killed, and the newest checkpoint is altered or cut off before the run goes on.

    Whoever resumes must notice, and take the checkpoint before it.
    """

    name = "corrupt_checkpoint"
    main = "how"
    example = "corrupt_checkpoint@step=70%,how=cut"
    earliest = 60

    step: Step = parameter(Step("70%"), STEP, "when the run's record shows so many steps")
    how: str = parameter(
        "alter", choice("alter", "cut"), "64 bytes in the middle are changed, or the second half is cut"
    )
    checkpoints: int = parameter(2, whole(1, 1000), "how many must have been written before")

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        return "" if scene.place in ("local", "hosts") else f"cluster={scene.place}: its checkpoints lie elsewhere"

    def too_early(self, undisturbed: Undisturbed) -> str:
        if undisturbed.num_checkpoints < self.checkpoints:
            return (
                f"{self.name}@checkpoints={self.checkpoints}: the undisturbed run writes {undisturbed.num_checkpoints}"
            )
        return super().too_early(undisturbed)

    def is_due(self, victim: Victim, undisturbed: Undisturbed) -> bool:
        return super().is_due(victim, undisturbed) and victim.so_far.num_checkpoints >= self.checkpoints

    def harm(self, victim: Victim) -> Harm | None:
        victim.end_driver()
        victim.so_far.read()
        path = newest_checkpoint(victim.so_far)
        if path is None:
            raise UserError("the run's record names checkpoints, and none of them is a file that is there")
        says = inject.alter(path) if self.how == "alter" else inject.cut(path)
        return Harm(f"SIGKILL for the driver (pid {victim.driver_pid}), then {says}")


@dataclass(frozen=True)
class DiskFull(OfDisk):
    """The disk with the run folder is full, until somebody makes room."""

    name = "disk_full"
    main = "seconds"
    example = "disk_full@step=30%"

    seconds: float = parameter(
        60.0, seconds(0.1, 3600), "until there is room again; at the latest when the run has failed"
    )

    def harm(self, victim: Victim) -> Harm | None:
        assert victim.disk
        return Harm(victim.disk.fill(), victim.disk.make_room, self.seconds)


@dataclass(frozen=True)
class SlowDisk(OfDisk):
    """The disk with the run folder is slow, and nothing is cached on the way to it."""

    name = "slow_disk"
    main = "seconds"
    example = "slow_disk@seconds=10,kilobytes=64"
    needs_slow_disk = True

    seconds: float = parameter(10.0, seconds(0.1, 3600), "until it is fast again")
    kilobytes: int = parameter(64, whole(1, 1_000_000), "KiB that it reads or writes in a second")

    @classmethod
    def lacking(cls) -> str:
        return inject.cannot_slow_disks()

    def harm(self, victim: Victim) -> Harm | None:
        assert victim.disk
        return Harm(victim.disk.slow_down(self.kilobytes, victim.pids()), victim.disk.speed_up, self.seconds)


@dataclass(frozen=True)
class LinkCut(OfHost):
    """A host's cable is pulled, and put back later."""

    name = "link_cut"
    main = "seconds"
    example = "link_cut@seconds=5,host=2"

    seconds: float = parameter(5.0, seconds(0.1, 3600), "until it is back")

    def harm(self, victim: Victim) -> Harm | None:
        link = victim.link(self.host)
        inject.cut_link(link)
        return Harm.passing(f"host {self.host} is cut off", lambda: inject.mend_link(link), self.seconds)


@dataclass(frozen=True)
class Delay(OfHost):
    """Whatever a host sends comes later."""

    name = "delay"
    main = "time"
    example = "delay=100ms"

    time: float = parameter(0.1, seconds(0.001, 10), "how much later")
    seconds: float = parameter(20.0, seconds(0.1, 3600), "until the network is as before")

    @classmethod
    def lacking(cls) -> str:
        return (
            "" if inject.has_netem() else "the kernel cannot delay packets (tc netem: modprobe sch_netem), or no root"
        )

    def harm(self, victim: Victim) -> Harm | None:
        namespace = victim.namespace(self.host)
        inject.delay(namespace, self.time * 1000)
        says = f"what host {self.host} sends comes {self.time * 1000:g} ms later,"
        return Harm.passing(says, lambda: inject.undo_traffic(namespace), self.seconds)


@dataclass(frozen=True)
class NarrowLink(OfHost):
    """A host sends slowly: a link that others use, too."""

    name = "narrow_link"
    main = "mbit"
    example = "narrow_link@mbit=1,seconds=10"

    mbit: int = parameter(1, whole(1, 100_000), "Mbit that it sends in a second")
    seconds: float = parameter(10.0, seconds(0.1, 3600), "until the network is as before")

    def harm(self, victim: Victim) -> Harm | None:
        namespace = victim.namespace(self.host)
        inject.narrow(namespace, self.mbit)
        says = f"host {self.host} sends {self.mbit} Mbit/s,"
        return Harm.passing(says, lambda: inject.undo_traffic(namespace), self.seconds)


@dataclass(frozen=True)
class HostKill(OfHost):
    """Every process of a host ends at once: it has lost its power. It is up again before the run goes on."""

    name = "host_kill"
    main = "host"
    example = "host_kill@step=50%,host=2"

    def harm(self, victim: Victim) -> Harm | None:
        return Harm(inject.kill_host(victim.namespace(self.host)))


@dataclass(frozen=True)
class Requeue(Fault):
    """Slurm ends the job and puts it back into its queue, as it does for a job that has to make room."""

    name = "requeue"
    example = "requeue@step=50%"

    @classmethod
    def impossible(cls, scene: Scene) -> str:
        return "" if scene.place == "slurm" else f"cluster={scene.place}: only Slurm has a queue that takes a job back"

    def harm(self, victim: Victim) -> Harm | None:
        if not (job := victim.slurm_job()):
            return None
        inject.requeue(job)
        return Harm(f"job {job} is back in the queue")


# In the order of this module, which seeds of random plans depend on.
_classes = [each for each in vars().values() if isinstance(each, type) and issubclass(each, Fault)]
FAULTS: dict[str, type[Fault]] = {each.name: each for each in _classes if each.name}
