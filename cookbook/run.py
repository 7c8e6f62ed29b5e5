"""One run: environment -> data -> workers -> verdict -> report. Whatever happens, run.json says how it ended."""

from __future__ import annotations

import re
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
    machine,
    places,
    processes,
    redact,
    resume,
    run_folder,
    settings,
    signals,
    systems,
)
from cookbook.evidence import causes, stragglers
from cookbook.evidence.inspector import Inspector
from cookbook.evidence.verdict import ProcessKey
from cookbook.evidence.watch import Watcher
from cookbook.job import Job, Objective, Result, Settings, num_processes
from cookbook.notice import Notice
from cookbook.places import Place, Status
from cookbook.prepare import datasets, environments
from cookbook.report import pages
from cookbook.report.console import Stage, console, timed_stage
from cookbook.report.summary import print_summary, shown_path
from cookbook.run_folder import RunFolder
from cookbook.signals import Interrupted
from preempt import NOTICE
from runrecord import read_records

if TYPE_CHECKING:  # a run without trackers needs nothing of them
    from cookbook.report.tailer import Tailer

# What a worker's record says of the worker itself. Every other text in its first event is the version of a library.
PLACE_OF_WORKER = ("rank", "local_rank", "world_size", "host", "pid")
ABOUT_WORKERS = (*PLACE_OF_WORKER, "samples", "digest", "device", "role", "attempt", "phase", "earlier")


@dataclass(frozen=True)
class Dataset:
    folder: Path | None  # None: the recipe needs no data
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What is known when the workers have ended."""

    place: Place
    statuses: Mapping[str, Status]  # process -> how it ended
    watcher: Watcher
    earlier: frozenset[ProcessKey]  # whose records were there before they were launched


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
    ) -> None:
        """`sweep`: the folder of the sweep that the run belongs to."""
        self.recipe, self.config, self.choices, self.run_folder = recipe, config, choices, folder
        self.folder, self.run_id = folder.path, uuid.uuid4().hex
        self.sweep = sweep
        self.tailer: Tailer | None = None  # sends the metrics while the run goes
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
            command=shlex.join(["python", "-m", "cookbook", *shown]),
            choices=dict(choices),
            dataset=self.before.get("dataset"),
            folder=str(self.folder),
            storage=storage_of(recipe, config, self.folder, self.run_id, self.before),
            run_id=self.run_id,
            position=resume.position(recipe, config),
        )

    def go(self) -> Result:
        """Runs to the end, however it comes: nothing is left running, and run.json has the result."""
        with processes.Watchdog(self.run_id, self.grace_seconds):
            try:
                self._work()
            except UserError as error:
                self._fail(str(error), resumable=True)
            except OSError as error:
                if signals.terminal_is_gone():
                    self._fail(f"interrupted by SIGHUP during stage {self.stage!r}", resumable=True)
                else:
                    what = f"{error.strerror or error}: {error.filename or self.folder}"
                    self._fail(f"{self.stage}: {what}", resumable=True)
            except Interrupted as error:
                self._fail(f"interrupted by {error} during stage {self.stage!r}", resumable=True)
            except Exception as error:  # a bug of the driver: the run must not look as if it were still going on
                traceback.print_exc()
                self._fail(f"the driver failed during stage {self.stage!r}: {type(error).__name__}: {error}")
            finally:
                processes.stop(self.run_id, self.grace_seconds)
                shutil.rmtree(self.folder / "scratch", ignore_errors=True)
            self._close()
            return self.result

    def _work(self) -> None:
        self.run_folder.write(self.result.as_dict())
        console.print(f"{self.recipe:<12} run folder {shown_path(self.folder)}", markup=False)
        self._start_tracking()
        if earlier := self.run_folder.resumed_from:
            self._end_earlier_try(earlier)
        with self._timed("environment") as stage:
            python = self._environment(stage)
        with self._timed("data") as stage:
            dataset = self._data(python, stage)
        with self._timed("run") as stage:
            job = Job(self.config, ROOT / "recipes" / self.recipe, python, self.folder)
            outcome = self._workers(job, dataset, stage)
        self._judge(dataset, outcome)

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
            [] if reads_stores(self.config) else datasets.BROUGHT,
        )
        resume.check_dataset(self.before.get("dataset"), folder, manifest, self.folder)
        check_enough_rows(self.config, manifest)
        left_out = manifest.get("left_out", [])
        self.result.dataset = {
            "name": manifest["name"],
            "folder": str(folder),
            "rows": manifest["rows"],
            "left_out": left_out,
            "notes": manifest.get("notes", []),
        }
        rows = ", ".join(f"{count:,} {part}" for part, count in manifest["rows"].items())
        stage.done(f"{manifest['name']}: {rows} rows")
        for line in left_out[:5]:
            stage.line(f"left out: {line['file']}: {line['reason']}")
        if more := left_out[5:]:
            stage.line(f"left out: {len(more):,} more, listed in the report")
        for note in manifest.get("notes", []):
            stage.line(f"note: {note}")
        return Dataset(folder, manifest)

    def _workers(self, job: Job, dataset: Dataset, stage: Stage) -> Outcome:
        flat = settings.worker_settings(self.config, dataset.folder or "", self.folder, self.result.storage)
        (self.folder / "config.yaml").write_text(settings.commented_yaml(redact.redacted(flat), self.choices))
        place = places.load(job.cluster["kind"])(job, self.run_id, systems.load(job.system))
        place.prepare(dataset.folder, stage)
        planned = place.plan()
        # Workers that are started by hand get folders of their own: the run folder is this run's evidence, and its
        # checkpoint has no steps left to go on with.
        own = f" output_dir={self.folder}/by-hand checkpoint_dir={self.folder}/by-hand/checkpoints"
        commands = (process.shell_command + (own if process.takes_settings else "") for process in planned)
        self.result.workers_command = redact.redacted_text("\n".join(commands))
        stage.line("the workers by hand: " + self.result.workers_command)
        inspector = Inspector(self.folder, self.run_id, self.recipe, place.probe)
        watcher = Watcher(
            self.folder, self.run_id, stage, job.num_processes, job.cluster, place.sees_processes, inspector
        )
        earlier, launched = evidence.process_keys(read_records(self.folder)), time.monotonic()

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
        return Outcome(place, statuses, watcher, earlier)

    def _judge(self, dataset: Dataset, outcome: Outcome) -> None:
        verdict = evidence.judge(read_records(self.folder), self._asked(dataset, outcome))
        self._take_over(verdict, dataset, outcome)
        failed = {name: status for name, status in outcome.statuses.items() if status}
        problems = [*verdict.problems, *(f"{name} ended with exit status {status}" for name, status in failed.items())]
        objective = self.result.objective
        if not problems and objective.value is None and not objective.optional:
            problems.append(f"no worker reported the run's objective, {objective.name}")
        if verdict.preempted:
            self.result.status, self.result.reason = "preempted", verdict.preempted
        elif verdict.diverged:
            self._fail(verdict.diverged)  # the same settings would diverge again
        elif problems:
            if failed and all(causes.CONSEQUENCE.search(error) for error in verdict.errors):
                said = causes.cause_of(self.folder / "logs", outcome.watcher.log_sizes)
                if not (said or verdict.workers or verdict.lost):  # a launcher that could not even start them
                    said = causes.last_words(self.folder / "logs", outcome.watcher.log_sizes, count=4)
                if said and not (verdict.errors and causes.CONSEQUENCE.search(said)):
                    problems = [said, *problems]
            # Another try may help where a worker, chief or ps was lost. Other problems would only come again.
            lost = bool(verdict.lost) or any("did not finish" in problem for problem in problems)
            self._fail("; ".join(problems), resumable=lost)
            for name in failed:
                self._print_end_of_log(name)
        else:
            self.result.status, self.result.resumable = "ok", False

    def _asked(self, dataset: Dataset, outcome: Outcome) -> evidence.Asked:
        """What the evidence is compared with."""
        recipe, place = self.config["recipe"], outcome.place
        on_demand = recipe["driver"].get("workers_on_demand", False)
        seen = frozenset(outcome.watcher.seen_pids) if place.sees_processes else None
        return evidence.Asked(
            num_workers=num_processes(self.config),
            num_hosts=place.num_hosts,
            proof=tuple(recipe["driver"]["proof"]),
            elastic=on_demand or recipe.get("elastic", False) or recipe["driver"].get("changes_members", False),
            min_workers=recipe.get("min_workers"),
            on_demand=on_demand,
            max_restarts=recipe.get("max_restarts", 0),
            num_rows=capped_rows(self.config, dataset.manifest["rows"]),
            num_malformed=dataset.manifest.get("malformed"),
            global_batch_size=recipe.get("global_batch_size", 1),
            num_epochs=recipe.get("num_epochs", 0),
            max_steps=self.config["scale"]["max_steps"],
            resumed=self.run_folder.resumed_from is not None,
            earlier=outcome.earlier,
            seen_pids=seen,
            unwatched_pids=frozenset(outcome.watcher.unwatched_pids),
        )

    def _take_over(self, verdict: evidence.Verdict, dataset: Dataset, outcome: Outcome) -> None:
        """Writes what the evidence says into the result."""
        result, first = self.result, verdict.workers[0] if verdict.workers else {}
        result.world_size, result.worlds = first.get("world_size", 0), verdict.worlds
        result.workers = [{key: worker.get(key) for key in ABOUT_WORKERS} for worker in verdict.workers]
        result.lost_workers = [{key: worker.get(key) for key in PLACE_OF_WORKER} for worker in verdict.lost]
        result.services = [{key: one.get(key) for key in ("role", *PLACE_OF_WORKER)} for one in verdict.services]
        result.restarts, result.num_rows, result.skipped = verdict.restarts, verdict.num_rows, verdict.skipped
        result.metrics, result.curves, result.curve_seconds = verdict.metrics, verdict.curves, verdict.curve_seconds
        result.warnings = [*verdict.warnings, *outcome.place.warnings]
        if self.config["cluster"]["kind"] == "local":
            result.warnings += machine.idle_gpu([worker["device"] for worker in result.workers])
        result.findings = verdict.findings
        result.account = verdict.account or dataset.manifest.get("account", {})
        result.versions = {
            key: value for key, value in first.items() if key not in ABOUT_WORKERS and isinstance(value, str)
        }
        result.objective.value = verdict.metrics.get(result.objective.name)

    def _print_end_of_log(self, name: str) -> None:
        lines = (self.folder / f"logs/{name}.log").read_text(errors="replace").splitlines()
        # Launchers tag a worker's lines. These say more than the launcher's own traceback, which follows them.
        tagged = [line for line in lines if re.search(r"<stderr>|^\[(default\d+|\w+:\d+)\]|^tfrun: ", line)]
        title = f"--- from {shown_path(self.folder)}/logs/{name}.log"
        console.print(title, *(tagged or lines)[-20:], "---", sep="\n", markup=False)

    def _fail(self, reason: str, resumable: bool = False) -> None:
        self.result.status, self.result.reason = "failed", redact.redacted_text(reason)
        self.result.resumable = resumable

    def _start_tracking(self) -> None:
        """Starts to send the metrics, where the settings name trackers. Nothing of it can fail the run."""
        if self.config["tracking"]["kind"] == "none":
            return
        from cookbook.report import sinks, tailer, tracking

        for kind, address in tracking.addresses(self.config["tracking"]):
            console.print(f"{'tracking':<12} {kind}: {address}", markup=False)
        run = sinks.Run(self.folder, self.recipe, self.sweep)
        try:
            self.tailer = tailer.Tailer(self.config["tracking"], run, processes.RUN_VARIABLE)
        except OSError as error:
            console.print(f"warning: no metrics are sent while the run goes: {error}", markup=False)

    def _end_tracking(self) -> None:
        tailer, self.tailer = self.tailer, None
        if tailer is None:
            return
        from cookbook.report.sinks import ending_of
        from cookbook.report.tailer import INTERRUPTED_SECONDS

        status = ending_of(self.result.as_dict())
        seconds = min(tailer.wait_seconds, INTERRUPTED_SECONDS if status == "interrupted" else float("inf"))
        already = len(signals.CAME)
        for kind, why in tailer.finish(status, seconds, lambda: len(signals.CAME) > already):
            console.print(
                f"warning: the metrics could not be sent to {kind}: {redact.redacted_text(why)}; they are in "
                f"the run folder: `make send RUN={shown_path(self.folder)}` sends them later",
                markup=False,
            )

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
            self._fail(f"{self.result.reason}; the run folder cannot be written: {error}".lstrip("; "))
            print_summary(self.result.as_dict(), None)
        finally:
            self._end_tracking()  # also when nothing could be written
            self.run_folder.close()


def reads_stores(config: Settings) -> bool:
    """Whether the workers read object stores themselves: a Spark with the jars for it, or one that runs already."""
    conf = config["recipe"].get("spark_conf", {})
    return bool(config["cluster"]["spark_master"]) or any(name.startswith("spark.jars") for name in conf)


def storage_of(recipe: str, config: Settings, folder: Path, run_id: str, before: Mapping[str, Any]) -> str:
    """The run's own address in the object store of `cluster.storage`; empty without one. A resumed run keeps its."""
    store = config["cluster"]["storage"]
    if before or not store:
        return str(before.get("storage", ""))
    # Others may use the same store, and their runs may begin in the same second.
    return f"{store.rstrip('/')}/runs/{recipe}/{folder.name}-{run_id[:8]}"


def capped_rows(config: Settings, rows: Mapping[str, int]) -> int:
    """The rows that the run reads. The scale's cap is for rows to train on; all others are read whole."""
    if "train" not in rows:
        return sum(rows.values())
    return min(rows["train"], config["scale"]["max_rows"] or rows["train"])


def check_enough_rows(config: Settings, manifest: Mapping[str, Any]) -> None:
    """Raises UserError when there are fewer rows to train on than workers: one of them would have nothing to do."""
    rows, most, num_workers = manifest["rows"].get("train"), config["scale"]["max_rows"], num_processes(config)
    if rows is None or not any(rule.startswith("rows_once") for rule in config["recipe"]["driver"]["proof"]):
        return
    if (count := capped_rows(config, manifest["rows"])) < num_workers:
        capped = f" (scale.max_rows={most} of {rows:,})" if most and most < rows else ""
        raise UserError(
            f"{count:,} training row{'s' if count != 1 else ''}{capped} for {num_workers} workers: "
            f"each needs one at least. Set cluster.num_workers={max(count, 1)}, or give it more rows"
        )
