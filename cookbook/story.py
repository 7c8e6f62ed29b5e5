"""The story of one run, from its environment to its report."""

import re
import shlex
import shutil
import time
import traceback
import uuid

from cookbook import (
    ROOT,
    UserError,
    causes,
    datasets,
    environments,
    evidence,
    launch,
    processes,
    redact,
    report,
    resume,
    runs,
    settings,
    signals,
)
from cookbook.console import console, timed_stage
from cookbook.signals import Interrupted
from cookbook.summary import print_summary, shown_path
from cookbook.watch import Watcher


class Story:
    """One run from its environment to its report; whatever happens, run.json says how it ended."""

    def __init__(self, recipe, config, choices, overrides, this_run):
        self.recipe, self.config, self.choices, self.run = recipe, config, choices, this_run
        self.folder, self.mark = this_run.folder, uuid.uuid4().hex
        self.before = runs.load(self.folder) if this_run.resumed_from else {}  # what an earlier try has left
        self.seconds, self.started = {}, time.time()
        driver, overrides = config["recipe"]["driver"], [redact.redacted_text(word) for word in overrides]
        self.content = {
            "recipe": recipe, "status": "running", "reason": "", "resumable": True, "machine": report.machine(), "identity": runs.identity(recipe, config),
            "started": self.started, "world_size": 0, "worlds": [], "workers": [], "lost_workers": [], "services": [], "restarts": 0, "metrics": {},
            "curves": {}, "curve_seconds": {}, "num_rows": 0, "account": {}, "skipped": {}, "each_row_once": any(rule.startswith("rows_once") for rule in driver["proof"]),
            "objective": {**driver["objective"], "value": None},
            "seconds": self.seconds, "overrides": overrides, "command": shlex.join(["python", "-m", "cookbook", *overrides]),
            "choices": choices, "versions": {}, "dataset": self.before.get("dataset"), "workers_command": "", "folder": str(self.folder),
            "mark": self.mark, "position": resume.position(recipe, config),
        }  # fmt: skip

    def tell(self, cluster):
        with processes.Watchdog(self.mark, self.config["cluster"]["stop_grace_seconds"]):
            return self._tell(cluster)

    def _tell(self, cluster):
        stage = "start"
        try:
            self.run.write(**self.content)
            console.print(f"{self.recipe:<12} run folder {shown_path(self.folder)}", markup=False)
            if self.run.resumed_from:
                console.print(
                    f"{'':<12} going on with this run, which stopped: {self.run.resumed_from.splitlines()[0]}",
                    markup=False,
                )
                console.print(f"{'':<12} (resume=never starts afresh)", markup=False)
                self._end_earlier_try()
            for stage in ("environment", "data", "run"):
                signals.check()
                with timed_stage(stage, self.seconds) as shown:
                    getattr(self, f"_{stage}")(shown, *([cluster] if stage == "run" else []))
            self._judge()
        except UserError as error:
            self._fail(str(error), resumable=True)
        except OSError as error:
            if signals.terminal_is_gone():
                self._fail(f"interrupted by SIGHUP during stage {stage!r}", resumable=True)
            else:
                self._fail(f"{stage}: {error.strerror or error}: {error.filename or self.folder}", resumable=True)
        except Interrupted as error:
            self._fail(f"interrupted by {error} during stage {stage!r}", resumable=True)
        except Exception as error:  # a mistake of the driver's own: the run must not look as if it were still going on
            traceback.print_exc()
            self._fail(f"the driver failed during stage {stage!r}: {type(error).__name__}: {error}")
        finally:
            processes.stop(self.mark, self.config["cluster"]["stop_grace_seconds"])
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        self._close()
        return self.content

    def _end_earlier_try(self):
        """What still runs of a try whose driver is gone would write into the same folder."""
        mark = self.before.get("mark")
        if mark and (left := processes.end_leftovers(mark, self.config["cluster"]["stop_grace_seconds"])):
            console.print(f"{'':<12} ended what was left of it: {', '.join(left)}", markup=False)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)  # a driver that was killed has not removed it

    def _environment(self, shown):
        variant = self.config["recipe"]["driver"].get("variant")
        self.python, made = environments.ensure(self.recipe, self.config["cache_dir"], shown, self.mark, variant)
        shown.done(f"{shown_path(self.python.parent.parent)} {'made' if made else 'is up to date'}")

    def _data(self, shown):
        if self.config["data"]["builder"] is None:
            self.data_dir, self.manifest = "", {"rows": {"train": 0}}
            return shown.done("none: this recipe's work begins without a dataset")
        log = self.folder / "logs/data.log"
        self.data_dir, self.manifest = datasets.ensure(
            self.config["data"], self.config["cache_dir"], self.python, shown, log, self.mark
        )
        self.content["dataset"] = {
            "name": self.manifest["name"],
            "folder": str(self.data_dir),
            "rows": self.manifest["rows"],
            "left_out": self.manifest.get("left_out", []),
        }
        shown.done(
            f"{self.manifest['name']}: "
            + ", ".join(f"{n:,} {part}" for part, n in self.manifest["rows"].items())
            + " rows"
        )
        for line in self.content["dataset"]["left_out"][:5]:
            shown.line(f"left out: {line['file']}: {line['reason']}")
        if more := self.content["dataset"]["left_out"][5:]:
            shown.line(f"left out: {len(more):,} more, listed in the report")
        for note in self.manifest.get("notes", []):
            shown.line(f"note: {note}")

    def _run(self, shown, cluster):
        worker_settings = launch.worker_settings(self.config, self.data_dir, self.folder)
        (self.folder / "config.yaml").write_text(
            settings.commented_yaml(redact.redacted(worker_settings), self.choices)
        )
        config = self.config
        if hasattr(cluster, "prepare"):  # a place that has to be looked at first
            found = cluster.prepare(
                config["cluster"], self.recipe, self.python, self.data_dir, self.folder, self.mark, shown
            )
            config = {**config, "cluster": found}
        plan = launch.plan(config, ROOT / "recipes" / self.recipe, self.python, self.folder)
        # By hand they get folders of their own: the run folder is this run's evidence, and its checkpoint is used up.
        own = f" output_dir={self.folder}/by-hand checkpoint_dir={self.folder}/by-hand/checkpoints"
        commands = (process.by_hand + (own if process.takes_settings else "") for process in plan)
        self.content["workers_command"] = redact.redacted_text("\n".join(commands))
        shown.line("the workers by hand: " + self.content["workers_command"])
        watcher = Watcher(self.folder, self.mark, shown, launch.num_processes(self.config), self.config["cluster"])
        self.launched, self.watcher = time.time(), watcher

        def watch(waiting=False):
            signals.check()
            watcher(waiting)

        try:
            self.statuses = cluster.run(plan, config["cluster"], self.folder, self.mark, watch)
        finally:
            self.seconds["launch"] = round((watcher.first_start or time.time()) - self.launched, 3)
        shown.done("workers ended")

    def _judge(self):
        from runrecord import read_records

        recipe = self.config["recipe"]
        rows, most = self.manifest["rows"], self.config["scale"]["max_rows"]
        # The cap is for rows to train on; all others are read whole.
        num_rows = min(rows["train"], most or rows["train"]) if "train" in rows else sum(rows.values())
        verdict = evidence.judge(read_records(self.folder), evidence.Asked(
            num_workers=launch.num_processes(self.config), num_hosts=launch.num_hosts(self.config), proof=tuple(recipe["driver"]["proof"]),
            elastic=recipe["driver"].get("elastic", recipe.get("elastic", False)), on_demand=recipe["driver"].get("elastic", False), max_restarts=recipe.get("max_restarts", 0), num_rows=num_rows, num_malformed=self.manifest.get("malformed"),
            global_batch_size=recipe.get("global_batch_size", 1), num_epochs=recipe.get("num_epochs", 0),
            max_steps=self.config["scale"]["max_steps"], resumed=self.run.resumed_from is not None, since=self.launched, seen_pids=frozenset(self.watcher.seen_pids) if launch.owns_workers(self.config) else None,
        ))  # fmt: skip
        versions = verdict.workers[0] if verdict.workers else {}
        known = (
            "rank",
            "local_rank",
            "world_size",
            "host",
            "pid",
            "samples",
            "digest",
            "device",
            "role",
            "attempt",
            "phase",
            "earlier",
        )
        objective = {**recipe["driver"]["objective"]}
        self.content |= {
            "world_size": verdict.workers[0]["world_size"] if verdict.workers else 0, "worlds": verdict.worlds,
            "workers": [{key: worker.get(key) for key in known} for worker in verdict.workers],
            "lost_workers": [{key: worker.get(key) for key in known[:5]} for worker in verdict.lost],
            "services": [{key: service.get(key) for key in ("role", *known[:5])} for service in verdict.services], "restarts": verdict.restarts,
            "metrics": verdict.metrics, "curves": verdict.curves, "curve_seconds": verdict.curve_seconds, "num_rows": verdict.num_rows, "skipped": verdict.skipped, "warnings": verdict.warnings, "account": verdict.account or self.manifest.get("account", {}),
            "versions": {key: value for key, value in versions.items() if key not in known},
            "objective": {**objective, "value": verdict.metrics.get(objective["name"])},
        }  # fmt: skip
        problems = list(verdict.problems)
        failed = {name: status for name, status in self.statuses.items() if status}
        problems += [f"{name} ended with exit status {status}" for name, status in failed.items()]
        if not problems and self.content["objective"]["value"] is None and not objective.get("optional"):
            problems.append(f"no worker reported the run's objective, {objective['name']}")
        if verdict.diverged:
            self._fail(verdict.diverged)  # the same settings would diverge again
        elif problems:
            said = failed and not verdict.errors and causes.cause_of(self.folder / "logs", self.watcher.log_sizes)
            problems = [said, *problems] if said else problems
            # What was judged and found wrong would be found wrong again; a lost worker, chief or ps is worth another try.
            lost = verdict.lost or [problem for problem in problems if "did not finish" in problem]
            self._fail("; ".join(problems), resumable=bool(lost))
            for name in failed:
                lines = (self.folder / f"logs/{name}.log").read_text(errors="replace").splitlines()
                # Launchers tag what a worker said; that says more than their own traceback behind it.
                tail = (
                    [line for line in lines if re.search(r"<stderr>|^\[(default\d+|\w+:\d+)\]|^tfrun: ", line)] or lines
                )[-20:]
                title = f"--- from {shown_path(self.folder)}/logs/{name}.log"
                console.print(title, *tail, "---", sep="\n", markup=False)
        else:
            self.content |= {"status": "ok", "resumable": False}

    def _fail(self, reason, resumable=False):
        self.content |= {"status": "failed", "reason": redact.redacted_text(reason), "resumable": resumable}

    def _track(self):
        from cookbook import tracking

        try:
            tracking.send(self.config["tracking"], self.folder, self.content)
        except Exception as error:  # trackers raise what they like; the run itself is done and counts
            kind = self.config["tracking"]["kind"]
            console.print(
                f"warning: the metrics could not be sent to {kind}: {redact.redacted_text(str(error))}; they are in the run folder: "
                f"`make send RUN={shown_path(self.folder)}` sends them later",
                markup=False,
            )

    def _close(self):
        spent = {stage: self.seconds.get(stage, 0.0) for stage in ("environment", "data", "launch", "run")}
        spent["run"] = round(spent["run"] - spent["launch"], 3)  # what was measured as one stage is told as two
        self.content["seconds"] = spent | {"total": round(time.time() - self.started, 3)}
        try:
            self.run.write(**self.content)
            page = report.write_run_page(self.folder)
            print_summary(self.content, page)
            if self.content["status"] == "ok" and self.config["tracking"]["kind"] != "none":
                self._track()
        except OSError as error:
            console.print(f"error: the run folder cannot be written: {error}", markup=False)
            self._fail(f"{self.content['reason']}; the run folder cannot be written: {error}".lstrip("; "))
            print_summary(self.content, None)
        finally:
            self.run.close()


def _check_enough_rows(config, manifest):
    """Raises UserError when there are fewer rows to train on than workers: one of them would have nothing to do."""
    rows, most, num_workers = manifest["rows"].get("train"), config["scale"]["max_rows"], launch.num_processes(config)
    if rows is None or not any(rule.startswith("rows_once") for rule in config["recipe"]["driver"]["proof"]):
        return
    if (count := min(rows, most or rows)) < num_workers:
        capped = f" (scale.max_rows={most} of {rows:,})" if most and most < rows else ""
        raise UserError(
            f"{count:,} training row{'s' if count != 1 else ''}{capped} for {num_workers} workers: each needs one at least. "
            f"Set cluster.num_workers={max(count, 1)}, or give it more rows"
        )
