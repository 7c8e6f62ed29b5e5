"""One run: environment -> data -> workers -> verdict -> report. Whatever happens, run.json says how it ended."""

from __future__ import annotations

import shlex
import shutil
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cookbook import (
    ROOT,
    UserError,
    evidence,
    judgement,
    places,
    processes,
    redact,
    resume,
    run_folder,
    settings,
    signals,
    systems,
)
from cookbook.evidence import stragglers
from cookbook.evidence.inspector import Inspector
from cookbook.evidence.watch import Watcher
from cookbook.job import Job, Objective, Process, Result, Settings
from cookbook.judgement import Ended
from cookbook.notice import Notice
from cookbook.prepare import datasets, environments, rows, stores
from cookbook.report import pages
from cookbook.report.console import Stage, console, timed_stage
from cookbook.report.summary import print_end_of_log, print_summary, show_dataset, shown_path
from cookbook.run_folder import RunFolder
from cookbook.signals import Interrupted
from preempt import NOTICE
from runrecord import read_records

if TYPE_CHECKING:  # a run without trackers does not import them
    from cookbook.report.live import Tracking


@dataclass(frozen=True)
class Dataset:
    """What the workers read."""

    folder: Path | None  # None: the recipe needs no data
    manifest: Mapping[str, Any]


class Run:
    """One run of one recipe, in a folder of its own."""

    def __init__(
        self,
        recipe: str,
        config: Settings,
        choices: Mapping[str, str],
        overrides: Sequence[str],
        folder: RunFolder,
        sweep: str = "",
        warnings: Sequence[str] = (),
    ) -> None:
        """`sweep`: the folder of the sweep that the run belongs to. `warnings`: what its settings gave cause for."""
        self.recipe, self.config, self.choices, self.run_folder = recipe, config, choices, folder
        self.folder, self.run_id = folder.path, uuid.uuid4().hex
        self.sweep = sweep
        self.tracking: Tracking | None = None
        self.grace_seconds: float = config["cluster"]["stop_grace_seconds"]
        self.before = run_folder.load(self.folder) if folder.resumed_from else {}  # what an earlier try has left
        self.stage, self.began = "start", time.monotonic()  # the stage that is under way
        driver, shown = config["recipe"]["driver"], [redact.redacted_text(word) for word in overrides]
        self.result = Result(
            recipe=recipe,
            machine=pages.machine(),
            identity=run_folder.identity(recipe, config),
            started=time.time(),
            each_row_once=any(rule.startswith("rows_once") for rule in driver["proof"]),
            objective=Objective(**driver["objective"]),
            overrides=shown,
            command=shlex.join([".venv/bin/python", "-m", "cookbook", *shown]),
            choices=dict(choices),
            dataset=self.before.get("dataset"),
            folder=str(self.folder),
            storage=run_folder.storage_of(recipe, config, self.folder, self.run_id, self.before),
            run_id=self.run_id,
            position=resume.position(recipe, config),
            warnings=list(warnings),
        )

    def go(self) -> Result:
        """Runs to the end, however it comes: nothing is left running, and run.json has the result."""
        with processes.Watchdog(self.run_id, self.grace_seconds):
            try:
                self._work()
            except UserError as error:
                self.result.fail(str(error), resumable=True)
            except OSError as error:
                if signals.terminal_is_gone():
                    self.result.interrupt("SIGHUP", self.stage)
                else:
                    what = f"{error.strerror or error}: {error.filename or self.folder}"
                    self.result.fail(f"{self.stage}: {what}", resumable=True)
            except Interrupted as error:
                self.result.interrupt(str(error), self.stage)
            except Exception as error:  # a bug of the driver: the run must not look as if it were still going on
                traceback.print_exc()
                self.result.fail(f"the driver failed during stage {self.stage!r}: {type(error).__name__}: {error}")
            finally:
                processes.stop(self.run_id, self.grace_seconds)
                shutil.rmtree(self.folder / "scratch", ignore_errors=True)
            self._close()
            return self.result

    def _work(self) -> None:
        self.run_folder.write(self.result.as_dict())
        console.print(f"{self.recipe:<12} run folder {shown_path(self.folder)}", markup=False)
        if self.config["tracking"]["kind"] != "none":
            self._start_tracking()
        if earlier := self.run_folder.resumed_from:
            self._end_earlier_try(earlier)
        with self._timed("environment") as stage:
            python = self._environment(stage)
        with self._timed("data") as stage:
            dataset = self._data(python, stage)
        with self._timed("run") as stage:
            job = Job(self.config, ROOT / "recipes" / self.recipe, python, self.folder)
            ended = self._workers(job, dataset, stage)
        self._judge(dataset, ended)

    def _start_tracking(self) -> None:
        from cookbook.report import live, sinks

        about = sinks.Run(self.folder, self.recipe, self.sweep)
        self.tracking = live.Tracking(self.config["tracking"], about, without=processes.RUN_VARIABLE)

    def _timed(self, name: str) -> AbstractContextManager[Stage]:
        """The next stage. Its duration goes into the result."""
        self.stage = name
        signals.check()
        return timed_stage(name, self.result.seconds)

    def _end_earlier_try(self, reason: str) -> None:
        """Ends what still runs of an earlier try whose driver is gone: it would write into the same folder."""
        console.print(f"{'':<12} going on with this run, which stopped: {reason.splitlines()[0]}", markup=False)
        console.print(f"{'':<12} (resume=never starts afresh)", markup=False)
        run_id = self.before.get("run_id")
        if run_id and (left := processes.end_leftovers(run_id, self.grace_seconds)):
            console.print(f"{'':<12} ended what was left of it: {', '.join(left)}", markup=False)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)  # a driver that was killed has not removed it

    def _environment(self, stage: Stage) -> Path:
        variant = self.config["recipe"]["driver"].get("variant")
        python, made = environments.ensure(self.recipe, self.config["cache_dir"], stage, self.run_id, variant)
        stage.done(f"{shown_path(python.parent.parent)} {'made' if made else 'is up to date'}")
        return python

    def _data(self, python: Path, stage: Stage) -> Dataset:
        if self.config["data"]["builder"] is None:
            stage.done("none: this recipe's work begins without a dataset")
            return Dataset(None, {"rows": {"train": 0}})
        log = self.folder / "logs/data.log"
        folder, manifest = datasets.ensure(
            self.config["data"],
            self.config["cache_dir"],
            python,
            stage,
            log,
            self.run_id,
            [] if stores.reads_stores(self.config) else stores.BROUGHT,
        )
        resume.check_dataset(self.before.get("dataset"), folder, manifest, self.folder)
        rows.check_enough_rows(self.config, manifest)
        self.result.dataset = {
            "name": manifest["name"],
            "folder": str(folder),
            "rows": manifest["rows"],
            "left_out": manifest.get("left_out", []),
            "notes": manifest.get("notes", []),
        }
        show_dataset(self.result.dataset, stage)
        return Dataset(folder, manifest)

    def _workers(self, job: Job, dataset: Dataset, stage: Stage) -> Ended:
        self._write_worker_settings(dataset)
        place = places.load(job.cluster["kind"])(job, self.run_id, systems.load(job.system))
        place.prepare(dataset.folder, stage)
        planned = place.plan()
        self._show_commands(planned, stage)
        inspector = Inspector(self.folder, self.run_id, self.recipe, place.probe)
        watcher = Watcher(
            self.folder, self.run_id, stage, job.num_processes, job.cluster, place.sees_processes, inspector
        )
        records = read_records(self.folder)
        resume.check_clock(records, self.folder, time.time())
        earlier, launched = evidence.process_keys(records), time.monotonic()

        (self.folder / NOTICE).unlink(missing_ok=True)  # of an earlier try
        notice = Notice(place, stage, job.cluster["notice_grace_seconds"])

        def watch(waiting: bool = False) -> None:
            signals.check()
            notice.look()
            watcher(waiting)

        try:
            with signals.expect_notice(place.takes_notice and job.recipe["driver"].get("takes_notice", False)):
                statuses = place.run(planned, watch)
        finally:
            inspector.close()
            self.result.seconds["launch"] = round((watcher.first_start or time.monotonic()) - launched, 3)
        stage.done("workers ended")
        return Ended(place, statuses, watcher, earlier)

    def _write_worker_settings(self, dataset: Dataset) -> None:
        flat = settings.worker_settings(self.config, dataset.folder or "", self.folder, self.result.storage)
        (self.folder / "config.yaml").write_text(settings.commented_yaml(redact.redacted(flat), self.choices))

    def _show_commands(self, planned: Sequence[Process], stage: Stage) -> None:
        """Prints what a user would type to start the same workers."""
        # Workers that are started by hand get folders of their own: the run folder is this run's evidence, and its
        # checkpoint has no steps left to go on with.
        own = f" output_dir={self.folder}/by-hand checkpoint_dir={self.folder}/by-hand/checkpoints"
        commands = (process.shell_command + (own if process.takes_settings else "") for process in planned)
        self.result.workers_command = redact.redacted_text("\n".join(commands))
        stage.line("the workers by hand: " + self.result.workers_command)

    def _judge(self, dataset: Dataset, ended: Ended) -> None:
        resumed = self.run_folder.resumed_from is not None
        if judgement.judge(self.result, self.config, dataset.manifest, ended, resumed):
            for name in ended.failed:
                print_end_of_log(self.folder, name)

    def _close(self) -> None:
        signals.hold()
        seconds = self.result.seconds
        spent = {stage: seconds.get(stage, 0.0) for stage in ("environment", "data", "launch", "run")}
        spent["run"] = round(spent["run"] - spent["launch"], 3)  # this stage began with the launch
        self.result.seconds = spent | {"total": round(time.monotonic() - self.began, 3)}
        try:
            self.result.paces = stragglers.find(read_records(self.folder)).as_dict()
            self.run_folder.write(self.result.as_dict())
            page = pages.write_run_page(self.folder)
            print_summary(self.result.as_dict(), page)
        except OSError as error:
            console.print(f"error: the run folder cannot be written: {error}", markup=False)
            self.result.fail(f"{self.result.reason}; the run folder cannot be written: {error}".lstrip("; "))
            print_summary(self.result.as_dict(), None)
        finally:
            if self.tracking:  # also when nothing could be written
                self.tracking.end(self.result.as_dict())
            self.run_folder.close()
