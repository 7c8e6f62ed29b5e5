"""What readers of a run record get: points and trials as they come, and the state of the run after them."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

RECENT_STEPS = 20  # whose rate is the rate of now


@dataclass(frozen=True)
class Point:
    """A number at a step. `label` tells its series from others of its name: a rank, or a host; "" for the run's own."""

    name: str
    value: float
    step: int
    time: float  # seconds since 1970
    label: str = ""
    unit: str = ""

    @property
    def path(self) -> str:
        """One name for the series: `train/loss`, `rank_0/steps_per_second`, `system/host-a/cpu_percent`."""
        first, _, rest = self.name.rpartition("/") if self.label else ("", "", self.name)
        return "/".join(filter(None, (first, self.label, rest)))


@dataclass(frozen=True)
class Trial:
    """A trial of a search that has ended."""

    phase: str
    id: str
    epochs: tuple[int, ...]
    score: float
    time: float


@dataclass
class Worker:
    """What is known of one process that keeps a record."""

    label: str  # rank_0, driver_0, phase_1_rank_0
    rank: int
    role: str
    host: str
    pid: int
    started: float
    world_size: int
    phase: Any = None
    generation: int = 0
    epoch: int = 0
    step: int = -1  # within the epoch, from 0; -1 before the first
    num_steps: int = 0  # that this process has taken
    num_rows: int = 0
    last: float = 0.0  # when it took its last step
    ended: float = 0.0
    error: str = ""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    window: tuple[float, int, int] | None = None  # where the rates' next point begins: time, steps, rows

    @property
    def steps_per_second(self) -> float | None:
        """Of the last steps; None before there are two."""
        if len(self.recent) < 2 or self.recent[-1] <= self.recent[0]:
            return None
        return (len(self.recent) - 1) / (self.recent[-1] - self.recent[0])


@dataclass
class Now:
    """The state of the run after all that was read."""

    workers: dict[str, Worker] = field(default_factory=dict)  # label -> the process that has it now
    metrics: dict[str, Point] = field(default_factory=dict)  # name -> its newest point
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)  # host -> name -> newest value
    curves: dict[str, dict[int, float]] = field(default_factory=dict)  # name -> step -> value
    done: int = 0
    total: int = 0
    text: str = ""
    num_checkpoints: int = 0
    last_checkpoint: float = 0.0
    began: float = 0.0
    last_event: float = 0.0

    @property
    def share(self) -> float | None:
        """Of the work that is done, from 0 to 1; None where no worker says how much there is."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def last_step(self) -> float:
        """When any worker took a step, seconds since 1970; 0 before the first."""
        return max((worker.last for worker in self.workers.values()), default=0.0)

    def remaining_seconds(self) -> float | None:
        """How long the rest takes if it goes on at the average speed; None where that is not known."""
        if not self.share or self.last_event <= self.began:
            return None
        return (self.last_event - self.began) * (1 - self.share) / self.share


@dataclass
class Batch:
    """What was read at once."""

    points: list[Point] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.points or self.trials)
