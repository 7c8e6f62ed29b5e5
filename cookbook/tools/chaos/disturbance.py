"""One disturbed run: the command is started, hurt, started again as a user would, and judged."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cookbook import run_folder
from cookbook.report.console import Stage
from cookbook.tools.chaos import inject
from cookbook.tools.chaos.fault import Fault, Harm, Undisturbed
from cookbook.tools.chaos.outcome import Hit, Outcome, Try, compared, rows_of
from cookbook.tools.chaos.record import steps_of
from cookbook.tools.chaos.victim import END_SECONDS, Driver, LocalHosts

POLL_SECONDS = 0.01  # between two looks at the record: a step may take hundredths of a second
SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A TMPDIR of its own for a run's processes: what is in it at the end was left behind."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Disturbance:
    """One disturbed run, over all its tries."""

    def __init__(
        self,
        start: Callable[[Path, Path, str, Path], Driver],
        hosts: LocalHosts | None,
        plan: Sequence[Fault],
        shown: Undisturbed,
        folder: Path,
        outcome: Outcome,
    ) -> None:
        """`start`: starts the command, given the folder for its runs, its log, its mark and its TMPDIR."""
        self.start, self.hosts, self.shown, self.folder, self.outcome = start, hosts, shown, folder, outcome
        self.pending, self.mark = list(plan), uuid.uuid4().hex
        self.root = folder / "runs"
        self.mapped: set[str] = set()
        self.disk: inject.Disk | None = None
        self.undo: list[tuple[float, Callable[[], None]]] = []  # (when, by the monotonic clock; what)

    def go(self, repeats: str | float) -> None:
        """Does it all, and writes it into the outcome. `repeats`: see `compared`."""
        plan = list(self.pending)
        before = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()
        mount = self.folder / "disk"
        with temporary_folder() as temporary:
            try:
                if any(fault.needs_disk for fault in plan):
                    slow = any(fault.needs_slow_disk for fault in plan)
                    self.disk = inject.Disk(self.folder / "disk.img", mount, slow=slow)
                    self.root = mount
                with Stage("disturbed") as stage:
                    self._tries(len(plan) + 1, temporary, stage)
                    stage.done("the disturbed run has ended")
                self._look_for_leftovers(temporary, before)
            finally:
                self._undo_all()
                for process in inject.marked(self.mark):  # when this program itself is to end
                    with contextlib.suppress(ProcessLookupError):
                        inject.kill(process.pid)
                if self.disk:
                    self.disk.close(keep=self.folder / "runs")
                    mount.rmdir()
                    self.root = self.folder / "runs"
        self._judge(repeats)

    # -- running

    def _tries(self, most: int, temporary: Path, stage: Stage) -> None:
        for number in range(1, most + 1):
            hurt = self._try(number, temporary, stage)
            last = self.outcome.tries[-1]
            if last.status == "ok" or not hurt:
                return
            if self.hosts and "host_kill" in [hit.fault.partition("@")[0] for hit in self.outcome.hits]:
                self.hosts.up()  # whoever mends hosts has done so

    def _try(self, number: int, temporary: Path, stage: Stage) -> bool:
        """Starts the command and follows it to its end; whether anything has hurt it."""
        log = self.folder / f"try-{number}.log"
        earlier = run_folder.newest(self.root, self.outcome.recipe)
        driver = self.start(self.root, log, self.mark, temporary)
        driver.disk = self.disk
        hurt, news, ended = False, True, threading.Event()
        looking = threading.Thread(target=driver.look_at_shared_memory, args=[ended])
        looking.start()
        try:
            while driver.process.poll() is None:
                news = driver.read() or news
                self._undo_what_is_due()
                if self.pending and news and self.pending[0].is_due(driver, self.shown):
                    if harm := self.pending[0].harm(driver):
                        self._note(self.pending.pop(0), harm, driver, number, stage)
                        hurt = True
                else:
                    news = False
                following = f", then {self.pending[0].text}" if self.pending else ""
                stage.update(f"try {number}: step {driver.so_far.step()} of {self.shown.num_steps}{following}")
                time.sleep(POLL_SECONDS)
        finally:
            driver.stop()
            self._undo_all()
            ended.set()
            looking.join()
            self.mapped |= driver.mapped
        run = run_folder.newest(self.root, self.outcome.recipe)
        content = run_folder.load(run) if run else {}
        word = content.get("status", "")
        began = content.get("started", 0.0) >= driver.began
        if driver.process.returncode < 0 or not began or word == "running":
            word = "killed" if driver.process.returncode < 0 else "failed"
        reason = str(content.get("reason") or "") if began else ""
        if not reason and word != "ok":
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no word"]
            reason = next((line for line in lines if line.startswith("error:")), lines[-1])
        afresh = number > 1 and run != earlier
        made = Try(word, reason, driver.process.returncode, round(driver.seconds, 3), log.name, afresh)
        self.outcome.tries.append(made)
        says = "ended ok" if word == "ok" else f"{word}: {reason.splitlines()[0][:140] if reason else ''}"
        stage.line(f"try {number}: {says}  [{made.seconds:.1f} s]")
        return hurt

    def _note(self, fault: Fault, harm: Harm, driver: Driver, number: int, stage: Stage) -> None:
        hit = Hit(fault.text, driver.so_far.step(), number, round(driver.seconds, 3), harm.says)
        self.outcome.hits.append(hit)
        stage.line(f"step {hit.at_step}: {harm.says}")
        if harm.undo:
            due = math.inf if harm.seconds is None else time.monotonic() + harm.seconds
            self.undo.append((due, harm.undo))

    def _undo_what_is_due(self) -> None:
        now = time.monotonic()
        for entry in [entry for entry in self.undo if entry[0] <= now]:
            self.undo.remove(entry)
            entry[1]()

    def _undo_all(self) -> None:
        while self.undo:
            self.undo.pop()[1]()

    # -- judging

    def _look_for_leftovers(self, temporary: Path, before: set[str]) -> None:
        """Notes what the run has left behind, and ends the processes among it."""
        hosts, out = self.hosts, self.outcome
        run_ids = {str(content["run_id"]) for _, content in self._runs() if content.get("run_id")}

        def living() -> dict[int, psutil.Process]:
            found = [*inject.marked(self.mark), *(p for run_id in run_ids for p in inject.of_run(run_id))]
            return {process.pid: process for process in found}

        deadline = time.monotonic() + END_SECONDS
        while (living() or (hosts and hosts.strangers())) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid, process in living().items():
            with contextlib.suppress(psutil.Error):
                out.left.append(f"process {pid}: {' '.join(process.cmdline())[:120]}")
            with contextlib.suppress(ProcessLookupError):
                inject.kill(pid)
        out.left += [f"process on {text}" for text in (hosts.strangers() if hosts else [])]
        out.left += [f"{temporary.name}/{path.name} in TMPDIR" for path in sorted(temporary.iterdir())]
        out.left += [f"{folder.name}/scratch" for folder, _ in self._runs() if (folder / "scratch").exists()]
        new = set(os.listdir(SHARED_MEMORY)) - before if SHARED_MEMORY.is_dir() else set()
        out.left += [f"/dev/shm/{name}" for name in sorted(new & self.mapped)]
        for name in sorted(new - self.mapped):
            out.notes.append(f"/dev/shm/{name} is new; no process of this run was seen with it: it may be another's")

    def _runs(self) -> list[tuple[Path, dict[str, Any]]]:
        return run_folder.load_all(self.root)

    def _judge(self, repeats: str | float) -> None:
        out, shown = self.outcome, self.shown
        runs = self._runs()
        folder, content = runs[-1] if runs else (self.root, {})
        out.run = str(folder)
        out.seconds = round(sum(one.seconds for one in out.tries), 3)
        out.seconds_lost = round(out.seconds - shown.seconds, 3)
        out.goodput = round(shown.seconds / out.seconds, 4) if out.seconds else 0.0
        if steps := steps_of([path for path, _ in runs]):
            out.steps_taken, out.steps_lost = steps[0], steps[0] - steps[1]
        if len(runs) > 1:
            # Steps of an earlier folder do not count where a later one has begun afresh.
            last = steps_of([folder])
            if steps and last:
                out.steps_lost = steps[0] - last[1]
            out.notes.append("the same command began afresh: there was nothing to go on with")
        ended = out.tries[-1]
        if "corrupt_checkpoint" in out.names:
            logs = [*self.folder.glob("try-*.log"), *(log for path, _ in runs for log in path.rglob("logs/**/*.log"))]
            said = [line for log in logs for line in log.read_text(errors="replace").splitlines() if "damaged" in line]
            out.notes.append(
                f"noticed: {said[0].strip()[:200]}" if said else "no program said that a checkpoint is damaged"
            )
        if ended.status != "ok":
            out.problems.append(f"it did not recover: {ended.reason.splitlines()[0] if ended.reason else ended.status}")
        for fault in self.pending:
            out.problems.append(f"{fault.text} did not happen: the run had ended before")
        if ended.status == "ok":
            calm = run_folder.load(out.undisturbed_folder)
            out.result, wrong = compared(calm, content, repeats)
            out.problems += wrong
            out.rows, wrong = rows_of(calm, content)
            out.problems += wrong
        out.problems += [f"left behind: {what}" for what in out.left]
        out.recovered = not out.problems
