"""Starts one program, watches it, and takes its figures."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from cookbook import ROOT, UserError, processes, signals
from cookbook.bootstrap import complete, mark_as_used, point, uv_environment
from cookbook.machine import memory_bytes
from cookbook.prepare import datasets, environments, locks, tools
from cookbook.prepare.tools import PYTHON
from cookbook.report.console import Progress
from guide import results
from guide.tasks import OWN, Case, Task

LOOK_SECONDS = 0.5  # between two looks at the memory
MOST_MEMORY = 0.85  # of the machine's memory; a program that wants more is ended
SPARE_MB = 2000  # of the disk, that no dataset takes


@dataclass(frozen=True)
class Place:
    """Where a guide runs: its folder, and what it is known by."""

    folder: Path
    cache_dir: Path
    run_id: str
    commit: str
    machine: str
    seconds: float  # after which a program is given up
    repeats: int  # times that a started program does its work again


def lock_of(environment: str) -> Path:
    """The lock that an environment is made from."""
    return ROOT / "guide/requirements.txt" if environment == OWN else locks.lock_of(environment)


def python_of(environment: str, place: Place, stage: Progress) -> Path:
    """The Python of a recipe's environment, or of the baselines'; made if this machine does not have it."""
    if environment != OWN:
        return environments.ensure(environment, place.cache_dir, stage, place.run_id)[0]
    digest = hashlib.sha256(lock_of(OWN).read_bytes() + PYTHON.encode()).hexdigest()[:12]
    folder = place.cache_dir.absolute() / "environments" / f"{OWN}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not complete(folder).exists():
            shutil.rmtree(folder, ignore_errors=True)
            log, variables = folder.with_suffix(".log"), {**uv_environment(), "UV_COMPILE_BYTECODE": "1"}
            python = folder / "bin/python"
            steps: dict[str, list[str | Path]] = {
                "making the environment": ["venv", "--python", PYTHON, folder],
                "installing the lock": ["pip", "install", "--python", python, "-r", lock_of(OWN)],
            }
            for text, argv in steps.items():
                stage.update(f"{OWN}: {text}")
                failure = f"{OWN}: {text} failed; the whole output is in {log}"
                processes.run_tool([tools.uv(), *argv], stage, log, failure, place.run_id, variables)
            complete(folder).touch()
    mark_as_used(folder)
    with contextlib.suppress(OSError):  # the links are for people
        (ROOT / ".venvs").mkdir(exist_ok=True)
        point(ROOT / ".venvs" / OWN, folder)
    return folder / "bin/python"


def data_of(task: Task, size_name: str, place: Place, stage: Progress) -> tuple[Path, int]:
    """(the folder, the number of rows) of a task's data, built if the cache does not have it.

    Raises UserError when it cannot be built, or the disk has no room for it.
    """
    size = task.size(size_name)
    folder = place.cache_dir / f"{task.builder}-{datasets.fingerprint(task.builder, size.parameters)}"
    place.cache_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.cache_dir).free / 1e6
    if not folder.exists() and free < 2 * size.megabytes + SPARE_MB:  # a builder may need it twice
        raise UserError(
            f"{task.name} {size.name}: its data takes about {size.megabytes:,} MB, and while it is made twice as much; "
            f"{place.cache_dir} has {free:,.0f} MB free"
        )
    data = {"builder": task.builder, "parameters": size.parameters}
    log = place.folder / "logs" / f"data-{task.name}-{size.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    python = python_of(task.built_in, place, stage)
    made, manifest = datasets.ensure(data, place.cache_dir, python, stage, log, place.run_id)
    return made, int(manifest["rows"][task.rows])


def memory_mb() -> int:
    """What a worker may use where a system asks: a fifth of the machine, so that two and their driver have room."""
    return max(512, int(memory_bytes() / 5e6))


def run(case: Case, place: Place, data: tuple[Path, int], stage: Progress) -> results.Run:
    """Starts the program of a case and returns its figures. A program that fails is a run with status failed."""
    folder, rows = data
    environment = case.system.environment
    python = python_of(environment, place, stage)
    events = place.folder / "scratch" / "events.jsonl"
    shutil.rmtree(events.parent, ignore_errors=True)
    events.parent.mkdir(parents=True)
    log = place.folder / "logs" / f"{case.name.replace(', ', '-').replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(python), str(case.system.path), str(folder), "--workers", str(case.workers)]
    argv += ["--repeats", str(place.repeats), "--memory-mb", str(memory_mb())]
    busy = psutil.cpu_percent(LOOK_SECONDS)
    made = results.Run(
        task=case.task.name,
        system=case.system.name,
        size=case.size.name,
        workers=case.workers,
        launch=case.launch,
        rows=rows,
        commit=place.commit,
        machine=place.machine,
        code=results.code_of(case, lock_of(environment)),
        time=time.time(),
        status="failed",
        command=shlex.join([f".venvs/{environment}/bin/python", str(case.system.path.relative_to(ROOT)), *argv[2:]]),
        busy=busy,
        data=folder.name,
    )
    peak, reason = watched([*argv, "--out", str(events)], log, place, python)
    shown = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    shutil.rmtree(events.parent, ignore_errors=True)
    return with_figures(case.task, made, shown, peak, reason)


def watched(argv: list[str], log: Path, place: Place, python: Path) -> tuple[float, str]:
    """Runs a program to its end; returns (peak memory of all its processes in MB, why it failed or nothing)."""
    started, peak = time.monotonic(), 0.0
    most = MOST_MEMORY * memory_bytes() / 1e6
    scratch = place.folder / "scratch"
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    # TMPDIR is the guide's own, with a short name: Ray makes sockets there, whose names have 107 characters at most.
    own = tempfile.gettempdir()
    environment = {"PATH": path, "TMPDIR": own, "SPARK_LOCAL_DIRS": str(scratch), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = processes.start(argv, place.run_id, environment, output=output, cwd=scratch)
        reason = ""
        try:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                signals.check()
                if peak > most:
                    reason = f"it took {peak:,.0f} MB of memory; at most {most:,.0f} MB are for one program"
                elif time.monotonic() - started > place.seconds:
                    reason = f"it was not done after {place.seconds:,.0f} s"
                if reason:
                    break
                time.sleep(LOOK_SECONDS)
        finally:
            processes.stop(place.run_id, 2)  # whatever it has left behind, too
            process.wait()
    if process.returncode and not reason:
        last = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        reason = f"it ended with status {process.returncode}: {' '.join(last)[:300]} (all of it: {log})"
    return peak, reason


def memory_of(pid: int) -> float:
    """MB of a process and all below it. What several of them share counts once, where the system can say so."""
    total = 0
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                facts = process.memory_full_info()
                total += getattr(facts, "pss", 0) or facts.rss
    return total / 1e6


def with_figures(
    task: Task, run: results.Run, events: list[dict[str, Any]], peak_mb: float, reason: str
) -> results.Run:
    """The run with what its program told. One that told too little, or two different results, has failed."""
    ready = [event for event in events if event["event"] == "ready"]
    done = [event for event in events if event["event"] == "result"]
    found = [results.summary(event["result"]) for event in done]
    if not reason and (len(ready) != 1 or len(done) < 2):
        reason = f"it said {len(ready)} times that it is ready, and gave {len(done)} results; expected 1, and 2 or more"
    if not reason and (others := [text for one in found if (text := results.difference(task, found[0], one))]):
        reason = f"doing its work again gave another result: {others[0]}"
    if reason:
        return replace(run, reason=reason, peak_mb=round(peak_mb, 1))
    return replace(
        run,
        status="ok",
        start_seconds=round(ready[0]["time"] - run.time, 3),
        first_seconds=round(done[0]["time"] - run.time, 3),
        work_seconds=tuple(round(event["seconds"], 4) for event in done[1:]),
        peak_mb=round(peak_mb, 1),
        result=found[0],
    )
