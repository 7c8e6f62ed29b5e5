"""What is measured: tasks, the systems that do them, and sizes. A new program for a task is one line here."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cookbook import UserError

PROGRAMS = Path(__file__).parent / "programs"
OWN = "guide"  # the environment of the baselines: guide/requirements.txt


@dataclass(frozen=True)
class System:
    """One way to do a task: a program in programs/, and the environment that it runs in."""

    name: str
    program: str  # its file, without .py
    environment: str  # a recipe, or OWN
    distributed: bool  # whether it works in several processes that could be on several machines
    family: str  # what its users know: pandas, sql, spark, python, torch, tensorflow
    workers: tuple[int, ...] = (1, 2)

    @property
    def path(self) -> Path:
        return PROGRAMS / f"{self.program}.py"


@dataclass(frozen=True)
class Size:
    """How much data, and how the builder in data/ is told to make it."""

    name: str
    parameters: dict[str, Any]
    megabytes: int  # on disk, about
    workers: tuple[int, ...] = (1, 2)  # measured with so many


@dataclass(frozen=True)
class Task:
    """A job that several systems do, with one right answer."""

    name: str
    title: str
    what: str  # one sentence for the page
    unit: str  # what is counted: rows, lines
    rows: str  # the key of the manifest's `rows`
    builder: str
    built_in: str  # the environment that makes the data
    systems: tuple[System, ...]
    sizes: tuple[Size, ...]
    smoke: tuple[str, ...]  # names of the sizes of a smoke guide
    tolerance: dict[str, float] = field(default_factory=dict)  # of a result's numbers; a table must be equal

    def system(self, name: str) -> System:
        return next(system for system in self.systems if system.name == name)

    def size(self, name: str) -> Size:
        return next(size for size in self.sizes if size.name == name)


def _tables(what: str) -> tuple[System, ...]:
    return (
        System("pandas", f"{what}_pandas", OWN, False, "pandas", (1,)),
        System("polars", f"{what}_polars", OWN, False, "polars"),
        System("duckdb", f"{what}_duckdb", OWN, False, "sql"),
        System("dask", f"{what}_dask", "dask", True, "pandas"),
        System("spark", f"{what}_spark", "spark", True, "sql"),
        System("ray", f"{what}_ray", "ray_train", True, "python"),
    )


def _flights(name: str, num_copies: int, keep_every: int, megabytes: int, workers: tuple[int, ...] = (1, 2)) -> Size:
    parameters = {"num_copies": num_copies, "keep_every": keep_every, "max_jitter_minutes": 3, "seed": 0}
    return Size(name, parameters, megabytes, workers)


def _logs(name: str, num_lines: int, workers: tuple[int, ...] = (1, 2)) -> Size:
    parameters = {"num_lines": num_lines, "num_hours": 48, "malformed_every": 997, "seed": 0}
    return Size(name, parameters, num_lines * 190 // 1_000_000 + 1, workers)


def _features(name: str, num_rows: int, workers: tuple[int, ...] = (1, 2)) -> Size:
    return Size(name, {"num_rows": num_rows, "seed": 0}, num_rows * 52 // 1_000_000 + 1, workers)


TASKS = (
    Task(
        name="flights",
        title="Tables: filter, join, window, aggregate",
        what="Flights that arrived, joined with their planes; for each carrier and airport the flights, the minutes "
        "of delay, the seats, and the late departures after a late arrival of the same plane.",
        unit="flights",
        rows="flights",
        builder="flights",
        built_in="dask",
        systems=_tables("flights"),
        sizes=(
            _flights("tiny", 1, 20, 1, (2,)),
            _flights("0.1x", 1, 10, 1, (2,)),
            _flights("1x", 1, 1, 8),
            _flights("10x", 10, 1, 80),
            _flights("100x", 100, 1, 800, (2,)),
        ),
        smoke=("0.1x", "1x"),
    ),
    Task(
        name="logs",
        title="Logs: parse, filter, join, window, aggregate",
        what="Lines of an access log, parsed; joined with the team of each section; for each team and hour the "
        "requests, the errors, the bytes, and the sessions that began.",
        unit="lines",
        rows="lines",
        builder="web_logs",
        built_in="spark",
        systems=_tables("logs"),
        sizes=(
            _logs("tiny", 10_000, (2,)),
            _logs("0.1x", 30_000, (2,)),
            _logs("1x", 300_000),
            _logs("10x", 3_000_000),
            _logs("100x", 30_000_000, (2,)),
        ),
        smoke=("0.1x", "1x"),
    ),
    Task(
        name="feeding",
        title="Feeding tensors from Parquet",
        what="Rows of 16 features in Parquet, as batches of 1,024 rows in tensors; each value is looked at once.",
        unit="rows",
        rows="rows",
        builder="feature_rows",
        built_in=OWN,
        systems=(
            System("pyarrow", "feeding_pyarrow", "petastorm", False, "torch"),
            System("torch loader", "feeding_torch", "petastorm", False, "torch"),
            System("tf.data", "feeding_tfdata", "petastorm", False, "tensorflow"),
            System("petastorm", "feeding_petastorm", "petastorm", True, "torch"),
            System("ray", "feeding_ray", "ray_train", True, "torch"),
        ),
        sizes=(
            _features("tiny", 30_000, (2,)),
            _features("0.01GB", 150_000, (2,)),
            _features("0.1GB", 1_500_000),
            _features("1GB", 15_000_000),
            _features("10GB", 150_000_000, (2,)),
        ),
        smoke=("0.01GB", "0.1GB"),
    ),
    Task(
        name="models",
        title="Linear and tree models",
        what="A logistic regression and a forest of 20 trees, eight levels deep, on rows of 16 features; the area "
        "under the curve on the last fifth of the rows.",
        unit="rows",
        rows="rows",
        builder="feature_rows",
        built_in=OWN,
        systems=(
            System("scikit-learn", "models_sklearn", OWN, False, "pandas"),
            System("dask", "models_dask", "dask", True, "pandas"),
            System("spark", "models_spark", "spark", True, "sql"),
        ),
        sizes=(
            _features("tiny", 30_000, (2,)),
            _features("0.1M", 100_000, (2,)),
            _features("0.3M", 300_000),
            _features("3M", 3_000_000),
            _features("30M", 30_000_000, (2,)),
        ),
        smoke=("0.1M", "0.3M"),
        tolerance={"linear_auc": 0.002, "trees_auc": 0.02},
    ),
    Task(
        name="search",
        title="A search of 32 trials",
        what="Learning rates and penalties of a logistic regression by gradient descent: 32 trials of 50 steps each "
        "on the same rows; the best of them.",
        unit="rows",
        rows="rows",
        builder="feature_rows",
        built_in=OWN,
        systems=(
            System("processes", "search_processes", OWN, False, "python"),
            System("dask", "search_dask", "dask", True, "python"),
            System("ray", "search_ray", "ray_tune", True, "python"),
        ),
        sizes=(
            _features("tiny", 30_000, (2,)),
            _features("0.1M", 100_000),
            _features("1M", 1_000_000),
        ),
        smoke=("tiny", "0.1M"),
        tolerance={"best_loss": 1e-6, "mean_loss": 1e-6},
    ),
)


def task_named(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


def lines_of(path: Path) -> tuple[int, int]:
    """(lines of code, lines that only a distributed program needs) of a program and the modules beside it it imports.

    Blank lines, comments and docstrings do not count; meter.py, which only measures, does not either. A line is
    distributed when the comment on it, or right above it, begins with `# Distributed:`.
    """
    code, distributed = _count(path)
    for name in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
        beside = path.with_name(f"{name}.py")
        if beside.exists() and name != "meter":
            more, tagged = _count(beside)
            code, distributed = code + more, distributed + tagged
    return code, distributed


def _count(path: Path) -> tuple[int, int]:
    text = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = text.splitlines()
    code = {
        number
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in skipped
    }
    tagged = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and token.string.startswith("# Distributed:")
    ]
    statements = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    distributed: set[int] = set()
    for number in tagged:
        first = number if number in code else min((one for one in code if one > number), default=number)
        distributed |= _lines_at(first, statements) & code
    return len(code), len(distributed)


def _lines_at(number: int, statements: list[ast.stmt]) -> set[int]:
    """The lines of the shortest statement that begins on a line; of a compound one, and of a line within, that line."""
    begun = [node for node in statements if node.lineno == number and not hasattr(node, "body")]
    if not begun:
        return {number}
    ends = min(node.end_lineno or node.lineno for node in begun)
    return set(range(number, ends + 1))


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    tasks: tuple[Task, ...]
    systems: tuple[str, ...]  # names; of each task those that it has
    sizes: tuple[str, ...]  # names
    workers: tuple[int, ...]
    launches: int  # times that each case is started anew
    repeats: int  # times that a started program does its work again


@dataclass(frozen=True)
class Case:
    """One program to start."""

    task: Task
    system: System
    size: Size
    workers: int
    launch: int

    @property
    def name(self) -> str:
        return f"{self.task.name} {self.size.name}, {self.system.name}, {self.workers} workers"


def cases_of(wanted: Wanted) -> list[Case]:
    """All cases, in the order in which they run: every launch goes through all systems once, by turns."""
    found = [
        Case(task, system, task.size(size), workers, launch)
        for launch in range(wanted.launches)
        for task in wanted.tasks
        for size in [size.name for size in task.sizes if size.name in wanted.sizes]
        for system in task.systems
        if system.name in wanted.systems
        for workers in (wanted.workers if len(system.workers) > 1 else system.workers)
        if len(system.workers) == 1 or (workers in system.workers and workers in task.size(size).workers)
    ]
    if not found:
        raise UserError("these settings leave nothing to measure; `make guide ARGS=help` lists what there is")
    return found
