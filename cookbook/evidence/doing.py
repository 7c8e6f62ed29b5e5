"""What a process does at a moment, by its stacks: computes, waits for the others or for a lock, loads data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cookbook.evidence.seen import LIBRARY, Frame, Seen, Thread

BUSY_SHARE = 0.5  # of a core: a process that uses more computes
LOCK = re.compile(r"\bwith\b.*lock|\.acquire\(|\block\b", re.IGNORECASE)
# Where a thread waits for all others: part of the file's name, and which of its functions (any, if empty).
EXCHANGES = (
    ("torch/distributed/distributed_c10d.py", ""),
    ("torch/distributed/_functional_collectives.py", ""),
    ("torch/distributed/fsdp/", "wait_for_unshard|unshard|wait|_finalize|reduce"),
    ("/horovod/", "synchronize|allreduce|allgather|broadcast|barrier|join|wait|grouped"),
)
BACKWARD = ("torch/autograd/graph.py", "_engine_run_backward")  # DDP exchanges the gradients within it
IN_BACKWARD = "the exchange of gradients"
GRAPH = ("tensorflow/python/eager/execute.py", "quick_execute")
IN_GRAPH = "a TensorFlow step, of which the exchange is a part"
IN_IMAGE = "/srv/recipe/"  # where the images of images/ have the recipe
LOADER = "torch/utils/data/dataloader.py"
TASK = re.compile(r"Executor task launch worker for (.*)")  # the name of a thread of an executor of Spark
IN_PYTHON = "PythonRunner.scala"  # where such a thread waits for the Python process that computes for it
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a network file system",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead",
}


@dataclass(frozen=True)
class Doing:
    """What a worker does. `kind`: gone, stopped, exchange, loading, busy, idle or unknown."""

    kind: str
    what: str  # the exchange's name; else what it does, in words
    frame: Frame | None  # the innermost one of the recipe's own code, or of any


def doing_of(seen: Seen, threads: Sequence[Thread], recipe: str) -> Doing:
    """What a process does, by the stacks of one moment."""
    thread = thread_of(threads, recipe)
    frame = _own_frame(thread, recipe) if thread else None
    if seen.state in "Tt":
        return Doing("stopped", f"it is {STATES[seen.state]}: SIGCONT lets it go on", frame)
    if seen.how == "thread dump":
        return _of_executor(threads)
    if thread is None:
        busy = seen.cpu_share > BUSY_SHARE
        return Doing("busy" if busy else "unknown", "it computes" if busy else "its stacks could not be read", None)
    active, computes = thread.active, seen.cpu_share > BUSY_SHARE
    if computes and (seen.how == "faulthandler" or any(GRAPH[0] in one.file for one in thread.frames)):
        active = True  # faulthandler does not say which thread runs; TensorFlow computes in threads of its own
    if name := exchange_of(thread, active):
        return Doing("exchange", name, frame)
    if not active and any(LOADER in one.file for one in thread.frames):
        return Doing("loading", "it waits for a process of its data loader", frame)
    if active:
        return Doing("busy", "it computes", frame)
    if seen.state == "D":
        return Doing("idle", f"it is {STATES['D']}", frame)
    if frame and LOCK.search(frame.source):
        other = _other_lock(threads, thread, recipe)
        more = f", and its thread {other[0]} at {other[1].where}: they look like a deadlock" if other else ""
        return Doing("idle", f"it waits for a lock{more}", frame)
    return Doing("idle", "it waits for something that is no exchange", frame)


def _of_executor(threads: Sequence[Thread]) -> Doing:
    """What an executor of Spark does: a task, or nothing, until the driver has one for it."""
    tasks = [(thread, match[1]) for thread in threads if (match := TASK.match(thread.name))]
    if not tasks:
        return Doing("exchange", "no task: it waits until the driver has one", None)
    thread, task = next((pair for pair in tasks if pair[0].active), tasks[0])
    frame = next((one for one in thread.frames if one.file.endswith(".scala")), thread.frames[0])
    if any(one.file == IN_PYTHON for one in thread.frames) and not thread.active:
        return Doing("loading", f"it waits for the Python process of {task}", frame)
    return Doing("busy" if thread.active else "idle", f"it works on {task}", frame)


def thread_of(threads: Sequence[Thread], recipe: str) -> Thread | None:
    """The thread that does the recipe's work: the main one, unless only another one is in the recipe's code."""
    main = [thread for thread in threads if thread.name == "MainThread"] or list(threads[:1])
    own = [thread for thread in [*main, *threads] if any(is_own(frame, recipe) for frame in thread.frames)]
    return next(iter([*own, *main]), None)


def exchange_of(thread: Thread, active: bool) -> str:
    """The name of the exchange in which a thread is; empty in none."""
    for frame in reversed(thread.frames):  # the outermost one has the name that the recipe calls
        known = any(part in frame.file and re.search(names, frame.function) for part, names in EXCHANGES)
        if known and LIBRARY.search(frame.file):
            return frame.function
    if not active:
        if _is_begun_exchange(thread):
            return "an exchange that was begun before"
        for (part, function), name in ((BACKWARD, IN_BACKWARD), (GRAPH, IN_GRAPH)):
            if any(part in frame.file and frame.function == function for frame in thread.frames):
                return name
    return ""


def _is_begun_exchange(thread: Thread) -> bool:
    """Whether the innermost Python frame waits in a library's own code, as `work.wait()` does."""
    return not LIBRARY.search(thread.frames[0].file) and ".wait(" in thread.frames[0].source if thread.frames else False


def is_own(frame: Frame, recipe: str) -> bool:
    """Whether a frame is of the recipe's code, here or in an image."""
    return f"/recipes/{recipe}/" in frame.file or frame.file.startswith(IN_IMAGE)


def _own_frame(thread: Thread, recipe: str) -> Frame | None:
    own = [frame for frame in thread.frames if is_own(frame, recipe)]
    other = [frame for frame in thread.frames if not LIBRARY.search(frame.file)]
    return next(iter([*own, *other, *thread.frames]), None)


def _other_lock(threads: Sequence[Thread], mine: Thread, recipe: str) -> tuple[str, Frame] | None:
    """Another thread of the same process that waits for a lock in the recipe's code."""
    for thread in threads:
        frame = _own_frame(thread, recipe)
        if thread is not mine and not thread.active and frame and is_own(frame, recipe) and LOCK.search(frame.source):
            return thread.name, frame
    return None
