"""What is asked of a run, and what its records say: the two sides that the evidence compares."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cookbook.job import Finding
from runrecord import Record

Worker = dict[str, Any]  # a process of a run: rank, host, pid, samples, digest, and the facts of its `start`
Curves = dict[str, list[tuple[int, float]]]  # name -> [(step, value), ...]
ProcessKey = tuple[str, int, float]  # host, process id, when it started by its own clock


def process_keys(records: Iterable[Record]) -> frozenset[ProcessKey]:
    """Who wrote the records. It tells tries apart without comparing clocks: those of hosts differ, and may be set."""
    starts = [events[0] for events in records if events[0]["event"] == "start"]
    return frozenset((start["host"], start["pid"], start["time"]) for start in starts)


@dataclass(frozen=True)
class Asked:
    """What the settings ask of a run."""

    num_workers: int
    num_hosts: int = 1
    proof: tuple[str, ...] = ()  # rules beyond the common ones, by name: see rules.py
    elastic: bool = False
    min_workers: int | None = None  # elastic only: the world is never smaller; None: the settings do not bound it
    # The system starts workers as the work needs them (Tune): how many of them work at once depends on the speed.
    on_demand: bool = False
    max_restarts: int = 0  # how often the launcher may start all workers anew
    num_rows: int = 0  # of the training split, after the cap of the scale
    num_malformed: int | None = None  # rows that must end in quarantine, where the dataset knows
    global_batch_size: int = 1
    num_epochs: int = 0
    max_steps: int | None = None
    earlier: frozenset[ProcessKey] = frozenset()  # processes whose records an earlier try of this run has left
    again_since: float = 0.0  # seconds since 1970: when the place has last begun to start all anew
    resumed: bool = False  # it goes on with an earlier try
    seen_pids: frozenset[int] | None = None  # what the operating system confirmed; None where it was not asked
    unwatched_pids: frozenset[int] = frozenset()  # of workers that came and went while the driver was held up


@dataclass
class Verdict:
    """What the records say about a run; it counts if there are no `problems`."""

    problems: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # the problems that the workers themselves have noted
    warnings: list[str] = field(default_factory=list)  # what a user should know although the run counts
    diverged: str = ""  # the error of a loss that was no longer a number: all other problems follow from it
    # by what, and where the run stands: its workers have saved and left, and no rule is applied yet
    preempted: str = ""
    workers: list[Worker] = field(default_factory=list)  # those that finished
    lost: list[Worker] = field(default_factory=list)  # those that started and did not finish
    services: list[Worker] = field(default_factory=list)  # processes with another role: chief, ps
    unfinished: list[str] = field(default_factory=list)  # those of them that started and did not finish
    done_before: bool = False  # this try found all phases finished, and started no worker
    restarts: int = 0  # how often the launcher started all workers anew
    worlds: list[int] = field(default_factory=list)  # the world sizes that were seen, in order
    metrics: dict[str, float] = field(default_factory=dict)  # name -> last value; samples_per_second: the median
    curves: Curves = field(default_factory=dict)
    # name -> the seconds since the first worker's start at which the points of that curve were noted
    curve_seconds: dict[str, list[float]] = field(default_factory=dict)
    num_rows: int = 0  # training rows that took effect, over all epochs; or lines that were read
    skipped: dict[str, str] = field(default_factory=dict)  # part of the recipe -> why it was not done
    account: dict[str, int] = field(default_factory=dict)  # read, good, quarantined: where a recipe counts its input
    findings: list[Finding] = field(default_factory=list)  # one for each rule that was asked for, in order
    figures: dict[str, str] = field(default_factory=dict)  # rule -> what it compared, for those who read the findings
