"""The results: JSON lines, one for each program that was started. They are the cache of `make guide`, too."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guide.tasks import PROGRAMS, Case, Task

BUSY_PERCENT = 20.0  # of the processors, used by others: from there on a machine counts as busy


@dataclass(frozen=True)
class Run:
    """One start of one program."""

    task: str
    system: str
    size: str
    workers: int
    launch: int
    rows: int  # that it worked on
    commit: str
    machine: str  # its class: processor, cores, memory
    code: str  # a hash of the program, and of the lock it ran with
    time: float  # when it began, in seconds since 1970
    status: str  # ok, failed, or wrong: another result than the others
    reason: str = ""
    start_seconds: float | None = None  # from the command to a system that is ready
    first_seconds: float | None = None  # from the command to the first result
    work_seconds: tuple[float, ...] = ()  # of the work, done again by the same processes
    peak_mb: float | None = None  # of all processes together; shared memory counts once
    result: dict[str, Any] = field(default_factory=dict)  # {"digest", "rows", "sums"} of a table, or {name: number}
    command: str = ""
    data: str = ""  # the dataset's folder, whose name has a hash of all that the data depends on
    busy: float | None = None  # percent of the processors that others used right before it began

    @property
    def id(self) -> str:
        """Names it in links."""
        text = f"{self.key} {self.machine} {self.commit} {self.time}"
        return "run-" + hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        return self.task, self.system, self.size, self.workers, self.launch

    @property
    def was_busy(self) -> bool:
        """Whether the machine had other work, so that the figures say little about the system."""
        return self.busy is not None and self.busy > BUSY_PERCENT

    @property
    def rate(self) -> float | None:
        """Rows a second, steady: of the median repetition."""
        if not self.work_seconds:
            return None
        middle = sorted(self.work_seconds)[len(self.work_seconds) // 2]
        return self.rows / middle


def code_of(case: Case, lock: Path) -> str:
    """A hash of what the figures of a case depend on, besides the commit: the programs, and the lock."""
    digest = hashlib.sha256(lock.read_bytes())
    for path in sorted(PROGRAMS.glob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    digest.update(json.dumps(case.size.parameters, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def read(path: Path) -> list[Run]:
    """The runs of a file, oldest first. A last line that was cut off is left out; any other broken one is an error."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    runs = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            content = json.loads(line)
            runs.append(Run(**{**content, "work_seconds": tuple(content["work_seconds"])}))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # without its end of line: the guide was killed while it wrote
                continue
            raise SystemExit(f"error: {path}, line {number} is no result ({error}); remove that line") from None
    return sorted(runs, key=lambda run: run.time)


def append(path: Path, run: Run) -> None:
    """Appends one line; what an earlier write left unfinished is ended first, so that it spoils no other line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        whole = text.rpartition(b"\n")[0]
        path.write_bytes(whole + b"\n" if whole else b"")
    with path.open("a") as file:
        file.write(json.dumps(asdict(run), sort_keys=True) + "\n")


def newest(runs: Iterable[Run], machine: str) -> list[Run]:
    """The newest run of each key on a class of machine; what counts as that machine's results."""
    found = {run.key: run for run in sorted(runs, key=lambda run: run.time) if run.machine == machine}
    return list(found.values())


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a program's result: of a table its digest, its number of rows and the sum of each column."""
    if "table" not in result:
        return result
    table = [
        [int(value) if isinstance(value, float) and value == int(value) else value for value in row]
        for row in result["table"]
    ]
    digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
    columns = list(zip(*table, strict=True))
    sums = [sum(column) for column in columns if all(isinstance(value, int | float) for value in column)]
    return {"digest": digest, "rows": len(table), "sums": sums}


def difference(task: Task, one: dict[str, Any], other: dict[str, Any]) -> str:
    """In what two results of a task differ, as a text; empty where they are equal, within the task's tolerance."""
    if one.keys() != other.keys():
        return f"one has {', '.join(sorted(one)) or 'nothing'}, the other {', '.join(sorted(other)) or 'nothing'}"
    for name in sorted(one):
        first, second = one[name], other[name]
        if name in task.tolerance:
            if not (math.isfinite(first) and math.isfinite(second)):
                return f"{name} is {first} and {second}"
            if abs(first - second) > task.tolerance[name]:
                return f"{name} is {first:.6g} and {second:.6g}; at most {task.tolerance[name]:g} apart is equal"
        elif first != second:
            return f"{name} is {first} and {second}"
    return ""


def unequal(task: Task, runs: Sequence[Run]) -> dict[str, str]:
    """{id of a run: in what it differs} of the runs of one task and size whose result is not the one of most systems.

    Where no result has most of them, all runs differ.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not difference(task, group[0].result, run.result):
                group.append(run)
                break
        else:
            groups.append([run])
    if len(groups) <= 1:
        return {}
    counts = [len({run.system for run in group}) for group in groups]
    right = groups[counts.index(max(counts))] if counts.count(max(counts)) == 1 else None
    found: dict[str, str] = {}
    for group in groups:
        if group is not right:
            other = (right or next(one for one in groups if one is not group))[0]
            text = difference(task, other.result, group[0].result)
            found |= {run.id: f"not the result of {other.system}: {text}" for run in group}
    return found
