"""Measures tasks in every system that does them, and writes one page. Run: make guide [ARGS="smoke key=value ..."]"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from cookbook import UserError, processes, signals
from cookbook.bootstrap import cache_dir
from cookbook.programs import run_program
from cookbook.report import pages
from cookbook.report.console import Stage, console
from cookbook.tools import provenance
from guide import measure, page, results, settings
from guide.tasks import TASKS, Case, cases_of, task_named

GRACE_SECONDS = 5.0


def make(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Measures what the words ask for and is not known yet; returns (path of the page, problems)."""
    wanted, rest = settings.wanted_of(words)
    folder = Path(rest["output_root"]).absolute() / "guide"
    folder.mkdir(parents=True, exist_ok=True)
    place = measure.Place(
        folder=folder,
        cache_dir=cache_dir(),
        run_id=secrets.token_hex(8),
        commit=provenance.commit_of(),
        machine=provenance.machine_class(pages.machine()),
        seconds=rest["minutes"] * 60,
        repeats=wanted.repeats,
    )
    cases = cases_of(wanted)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return measured([] if rest["page"] else cases, place, rest["fresh"])
    except Timeout:
        raise UserError(f"another make guide is at work in {folder}; wait for it, or choose output_root=...") from None


def measured(cases: Sequence[Case], place: measure.Place, fresh: bool) -> tuple[Path, list[str]]:
    """Measures the cases that are not known yet, and writes the page; returns (its path, problems)."""
    folder, path = place.folder, place.folder / "results.jsonl"
    known = {} if fresh else {run.key: run for run in fitting(results.read(path), place)}
    problems: list[str] = []
    with processes.Watchdog(place.run_id, GRACE_SECONDS), Stage("guide") as stage:
        done = sum(is_known(case, known) for case in cases)
        stage.line(f"{len(cases)} programs to start, {done} of them known from {path}")
        for number, case in enumerate(cases, 1):
            if is_known(case, known):
                continue
            stage.update(case.name, number - 1, len(cases))
            run = one(case, place, stage, problems)
            if run is None:
                continue
            results.append(path, run)
            known[run.key] = run
            stage.line(f"{number}/{len(cases)} {case.name}: {said(run)}")
        stage.done(f"{len(cases)} programs")
    mine = [known[key] for key in map(key_of, cases) if key in known]
    problems += [f"{name_of(run)}: {run.reason}" for run in mine if run.status == "failed"]
    problems += judged(results.newest(results.read(path), place.machine), path)
    written = page.write(folder, results.newest(results.read(path), place.machine), place, problems)
    return written, problems


def one(case: Case, place: measure.Place, stage: Stage, problems: list[str]) -> results.Run | None:
    """Measures one case. Without its data it cannot be: then there is no run, and a problem."""
    try:
        data = measure.data_of(case.task, case.size.name, place, stage)
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
            stage.line(f"left out: {error}")
        return None
    return measure.run(case, place, data, stage)


def judged(runs: Sequence[results.Run], path: Path) -> list[str]:
    """The runs whose result is not that of the others on the same data, as texts. They are written anew, as wrong."""
    found = []
    for task, data in dict.fromkeys((run.task, run.data or run.size) for run in runs):
        if task not in [one.name for one in TASKS]:
            continue  # of another commit
        alike = [run for run in runs if (run.task, run.data or run.size) == (task, data) and run.status != "failed"]
        wrong = results.unequal(task_named(task), alike)
        for run in alike:
            if text := wrong.get(run.id):
                found.append(f"{name_of(run)}: {text}")
            status = "wrong" if text else "ok"
            if (run.status, run.reason) != (status, text or ""):
                results.append(path, replace(run, status=status, reason=text or ""))
    return found


def fitting(runs: Sequence[results.Run], place: measure.Place) -> list[results.Run]:
    """The runs that need not be made again: of this commit, on this class of machine, that ended well."""
    return [run for run in runs if (run.commit, run.machine) == (place.commit, place.machine)]


def key_of(case: Case) -> tuple[str, str, str, int, int]:
    return case.task.name, case.system.name, case.size.name, case.workers, case.launch


def is_known(case: Case, known: dict[tuple[str, str, str, int, int], results.Run]) -> bool:
    """Whether there is a good run of the case, with the same programs and lock. A failed one is made again."""
    run = known.get(key_of(case))
    lock = measure.lock_of(case.system.environment)
    return run is not None and run.status == "ok" and run.code == results.code_of(case, lock)


def name_of(run: results.Run) -> str:
    return f"{run.task} {run.size}, {run.system}, {run.workers} workers"


def said(run: results.Run) -> str:
    if run.status != "ok":
        return f"{run.status}: {run.reason}"
    rate = pages.number(run.rate)
    busy = f"; others used {run.busy:.0f} % of the processors" if run.was_busy else ""
    return f"first result after {run.first_seconds:.1f} s, then {rate} rows/s, {run.peak_mb:,.0f} MB{busy}"


def main(argv: Sequence[str]) -> int:
    signals.listen()
    if {"help", "--help", "-h"} & set(argv):
        print(settings.HELP)
        return 0
    try:
        written, problems = make(argv)
    except signals.Interrupted:
        return 130
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    print(f"page         {written}")
    return 1 if problems else 0


if __name__ == "__main__":
    run_program(main)
