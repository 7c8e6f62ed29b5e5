"""The story of one run, from its environment to its report."""

import re
import shlex
import shutil
import signal
import time
import traceback
import uuid

from cookbook import ROOT, UserError, datasets, environments, evidence, launch, processes, report, runs, settings
from cookbook.console import console, timed_stage
from cookbook.summary import print_summary, shown_path
from cookbook.watch import Watcher


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""


SIGNALS = []  # the names of those that have come


def interrupt(number, frame):
    SIGNALS.append(signal.Signals(number).name)
    raise Interrupted(SIGNALS[0])


def _check_interrupt():
    """Raises Interrupted if a signal has come whose exception was lost: Python ignores those raised while it forks."""
    if SIGNALS:
        raise Interrupted(SIGNALS[0])


class Story:
    """One run from its environment to its report; whatever happens, run.json says how it ended."""

    def __init__(self, recipe, config, choices, overrides, this_run):
        self.recipe, self.config, self.choices, self.run = recipe, config, choices, this_run
        self.folder, self.mark = this_run.folder, uuid.uuid4().hex
        self.seconds, self.started = {}, time.time()
        driver = config["recipe"]["driver"]
        self.content = {
            "recipe": recipe, "status": "running", "reason": "", "resumable": True, "machine": report.machine(), "identity": runs.identity(recipe, config),
            "started": self.started, "world_size": 0, "worlds": [], "workers": [], "lost_workers": [], "services": [], "restarts": 0, "metrics": {},
            "curves": {}, "curve_seconds": {}, "num_rows": 0, "account": {}, "skipped": {}, "each_row_once": any(rule.startswith("rows_once") for rule in driver["proof"]),
            "objective": {**driver["objective"], "value": None},
            "seconds": self.seconds, "overrides": overrides, "command": shlex.join(["python", "-m", "cookbook", *overrides]),
            "choices": choices, "versions": {}, "dataset": None, "workers_command": "", "folder": str(self.folder),
        }  # fmt: skip

    def tell(self, cluster):
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
            for stage in ("environment", "data", "run"):
                _check_interrupt()
                with timed_stage(stage, self.seconds) as shown:
                    getattr(self, f"_{stage}")(shown, *([cluster] if stage == "run" else []))
            self._judge()
        except UserError as error:
            self._fail(str(error), resumable=True)
        except OSError as error:
            self._fail(f"{stage}: {error.strerror or error}: {error.filename or self.folder}", resumable=True)
        except Interrupted as error:
            # A second Ctrl-C must not cut the clean-up short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._fail(f"interrupted by {error} during stage {stage!r}", resumable=True)
        except Exception as error:  # a mistake of the driver's own: the run must not look as if it were still going on
            traceback.print_exc()
            self._fail(f"the driver failed during stage {stage!r}: {type(error).__name__}: {error}")
        finally:
            processes.stop(self.mark, self.config["cluster"]["stop_grace_seconds"])
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        self._close()
        return self.content

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

    def _run(self, shown, cluster):
        worker_settings = launch.worker_settings(self.config, self.data_dir, self.folder)
        (self.folder / "config.yaml").write_text(settings.commented_yaml(worker_settings, self.choices))
        config = self.config
        if hasattr(cluster, "prepare"):  # a place that has to be looked at first
            found = cluster.prepare(
                config["cluster"], self.recipe, self.python, self.data_dir, self.folder, self.mark, shown
            )
            config = {**config, "cluster": found}
        plan = launch.plan(config, ROOT / "recipes" / self.recipe, self.python, self.folder)
        # By hand they get folders of their own: the run folder is this run's evidence, and its checkpoint is used up.
        own = f" output_dir={self.folder}/by-hand checkpoint_dir={self.folder}/by-hand/checkpoints"
        self.content["workers_command"] = "\n".join(
            process.by_hand + (own if process.takes_settings else "") for process in plan
        )
        shown.line("the workers by hand: " + self.content["workers_command"])
        num_workers, stall = launch.num_processes(self.config), self.config["cluster"]["stall_timeout_seconds"]
        watcher = Watcher(self.folder, self.mark, shown, num_workers, stall)
        self.launched, self.watcher = time.time(), watcher

        def watch():
            _check_interrupt()
            watcher()

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
            elastic=recipe["driver"].get("elastic", recipe.get("elastic", False)), max_restarts=recipe.get("max_restarts", 0), num_rows=num_rows, num_malformed=self.manifest.get("malformed"),
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
            "metrics": verdict.metrics, "curves": verdict.curves, "curve_seconds": verdict.curve_seconds, "num_rows": verdict.num_rows, "skipped": verdict.skipped, "account": verdict.account or self.manifest.get("account", {}),
            "versions": {key: value for key, value in versions.items() if key not in known},
            "objective": {**objective, "value": verdict.metrics.get(objective["name"])},
        }  # fmt: skip
        problems = list(verdict.problems)
        failed = {name: status for name, status in self.statuses.items() if status}
        problems += [f"{name} ended with exit status {status}" for name, status in failed.items()]
        if not problems and self.content["objective"]["value"] is None and not objective.get("optional"):
            problems.append(f"no worker reported the run's objective, {objective['name']}")
        if problems:
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
        self.content |= {"status": "failed", "reason": reason, "resumable": resumable}

    def _track(self):
        from cookbook import tracking

        try:
            tracking.send(self.config["tracking"], self.folder, self.content)
        except Exception as error:  # trackers raise what they like; the run itself is done and counts
            kind = self.config["tracking"]["kind"]
            console.print(f"warning: the metrics could not be sent to {kind}: {error}", markup=False)

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
