"""One run of one recipe: compose the settings once -> environment -> data -> workers -> evidence -> report."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf.errors import OmegaConfBaseException

from cookbook import (
    ROOT,
    UserError,
    clusters,
    datasets,
    doctor,
    environments,
    evidence,
    launch,
    processes,
    report,
    runs,
    settings,
)
from cookbook.console import Console, console, timed_stage
from cookbook.watch import Watcher

FINISHED = []  # (overrides, content of run.json) of the runs of this process: more than one in a sweep


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""


def main():
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings.refuse_to_be_a_worker()
        words = sys.argv[1:]
        if not any(word in ("--help", "-h", "--hydra-help", "--version", "--info", "-i") for word in words):
            settings.check_choices(words)
        elif not any(word.startswith("recipe=") for word in words):
            sys.argv.append(f"recipe={min(path.stem for path in (settings.CONF / 'recipe').glob('*.yaml'))}")
        hydra.main(config_path=str(settings.CONF), config_name="config", version_base="1.3")(run)()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except Interrupted:
        sys.exit(130)
    if len(FINISHED) > 1:
        _print_sweep()
    if any(content["status"] != "ok" for _, content in FINISHED):
        sys.exit(1)


SIGNALS = []  # the names of those that have come


def _interrupt(number, frame):
    SIGNALS.append(signal.Signals(number).name)
    raise Interrupted(SIGNALS[0])


def _check_interrupt():
    """Raises Interrupted if a signal has come whose exception was lost: Python ignores those raised while it forks."""
    if SIGNALS:
        raise Interrupted(SIGNALS[0])


def run(composed):
    """Runs the composed settings; returns the run's objective, for Hydra's sweepers (nan when the run does not count)."""
    hydra_config = HydraConfig.get()
    choices = {group: name for group, name in hydra_config.runtime.choices.items() if "/" not in group}
    overrides = [settings.without_password(word) for word in hydra_config.overrides.task]
    recipe = choices["recipe"]
    try:
        try:
            config = settings.plain(composed)
        except OmegaConfBaseException as error:
            raise UserError(f"the settings cannot be resolved: {error}") from None
        settings.check_kinds(config, choices)
        warning = launch.check(config, os.cpu_count())
        cluster = clusters.of_kind(config["cluster"]["kind"])
        doctor.require(config["recipe"]["driver"]["tools"], recipe)
        if config["tracking"]["kind"] != "none":
            from cookbook import tracking

            tracking.check(config["tracking"])
        _check_recipe_settings(recipe, config)
        try:
            this_run = runs.open_run(config["output_root"], recipe, runs.identity(recipe, config), config["resume"])
        except OSError as error:
            raise UserError(
                f"output_root={config['output_root']} cannot be used: {error.strerror}; choose another"
            ) from None
    except UserError as error:
        if hydra_config.mode.name != "MULTIRUN":
            raise SystemExit(f"error: {error}") from None  # Hydra would add a traceback to any other exception
        console.print(f"error: {error}", markup=False)
        FINISHED.append((overrides, {"status": "failed", "reason": str(error)}))
        return math.nan
    if warning:
        console.print(f"warning: {warning}", markup=False)
    content = _Story(recipe, config, choices, overrides, this_run).tell(cluster)
    FINISHED.append((overrides, content))
    if content["reason"].startswith("interrupted"):
        raise Interrupted(content["reason"])
    return content["objective"]["value"] if content["status"] == "ok" else math.nan


class _Story:
    """One run from its environment to its report; whatever happens, run.json says how it ended."""

    def __init__(self, recipe, config, choices, overrides, this_run):
        self.recipe, self.config, self.choices, self.run = recipe, config, choices, this_run
        self.folder, self.mark = this_run.folder, uuid.uuid4().hex
        self.seconds, self.started = {}, time.time()
        driver = config["recipe"]["driver"]
        self.content = {
            "recipe": recipe, "status": "running", "reason": "", "resumable": True, "machine": report.machine(), "identity": runs.identity(recipe, config),
            "started": self.started, "world_size": 0, "worlds": [], "workers": [], "lost_workers": [], "metrics": {},
            "curves": {}, "num_rows": 0,
            "objective": {**driver["objective"], "value": None},
            "seconds": self.seconds, "overrides": overrides, "command": shlex.join(["python", "-m", "cookbook", *overrides]),
            "choices": choices, "versions": {}, "dataset": None, "workers_command": "", "folder": str(self.folder),
        }  # fmt: skip

    def tell(self, cluster):
        stage = "start"
        try:
            self.run.write(**self.content)
            console.print(f"{self.recipe:<12} run folder {_shown(self.folder)}", markup=False)
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
        self._close()
        return self.content

    def _environment(self, shown):
        variant = self.config["recipe"]["driver"].get("variant")
        self.python, made = environments.ensure(self.recipe, self.config["cache_dir"], shown, self.mark, variant)
        shown.done(f"{_shown(self.python.parent.parent)} {'made' if made else 'is up to date'}")

    def _data(self, shown):
        log = self.folder / "logs/data.log"
        self.data_dir, self.manifest = datasets.ensure(
            self.config["data"], self.config["cache_dir"], self.python, shown, log, self.mark
        )
        self.content["dataset"] = {
            "name": self.manifest["name"],
            "folder": str(self.data_dir),
            "rows": self.manifest["rows"],
        }
        shown.done(
            f"{self.manifest['name']}: "
            + ", ".join(f"{n:,} {part}" for part, n in self.manifest["rows"].items())
            + " rows"
        )

    def _run(self, shown, cluster):
        worker_settings = launch.worker_settings(self.config, self.data_dir, self.folder)
        (self.folder / "config.yaml").write_text(settings.commented_yaml(worker_settings, self.choices))
        plan = launch.plan(self.config, ROOT / "recipes" / self.recipe, self.python, self.folder)
        # By hand they get folders of their own: the run folder is this run's evidence, and its checkpoint is used up.
        own = f" output_dir={self.folder}/by-hand checkpoint_dir={self.folder}/by-hand/checkpoints"
        self.content["workers_command"] = "\n".join(process.by_hand + own for process in plan)
        shown.line("the workers by hand: " + self.content["workers_command"])
        watcher = Watcher(self.folder, self.mark, shown, self.config["cluster"]["num_workers"])
        self.launched, self.watcher = time.time(), watcher

        def watch():
            _check_interrupt()
            watcher()

        try:
            self.statuses = cluster.run(plan, self.config["cluster"], self.folder, self.mark, watch)
        finally:
            self.seconds["launch"] = round((watcher.first_start or time.time()) - self.launched, 3)
        shown.done("workers ended")

    def _judge(self):
        from runrecord import read_records

        recipe = self.config["recipe"]
        rows = self.manifest["rows"]["train"]
        verdict = evidence.judge(read_records(self.folder), evidence.Asked(
            num_workers=self.config["cluster"]["num_workers"], proof=tuple(recipe["driver"]["proof"]),
            elastic=recipe.get("elastic", False), num_rows=min(rows, self.config["scale"]["max_rows"] or rows),
            global_batch_size=recipe.get("global_batch_size", 1), num_epochs=recipe.get("num_epochs", 0),
            max_steps=self.config["scale"]["max_steps"], resumed=self.run.resumed_from is not None, since=self.launched, seen_pids=frozenset(self.watcher.seen_pids),
        ))  # fmt: skip
        versions = verdict.workers[0] if verdict.workers else {}
        known = ("rank", "local_rank", "world_size", "host", "pid", "samples", "digest", "device")
        objective = {**recipe["driver"]["objective"]}
        self.content |= {
            "world_size": verdict.workers[0]["world_size"] if verdict.workers else 0, "worlds": verdict.worlds,
            "workers": [{key: worker.get(key) for key in known} for worker in verdict.workers],
            "lost_workers": [{key: worker.get(key) for key in known[:5]} for worker in verdict.lost],
            "metrics": verdict.metrics, "curves": verdict.curves, "num_rows": verdict.num_rows,
            "versions": {key: value for key, value in versions.items() if key not in known},
            "objective": {**objective, "value": verdict.metrics.get(objective["name"])},
        }  # fmt: skip
        problems = list(verdict.problems)
        failed = {name: status for name, status in self.statuses.items() if status}
        problems += [f"{name} ended with exit status {status}" for name, status in failed.items()]
        if not problems and self.content["objective"]["value"] is None:
            problems.append(f"no worker reported the run's objective, {objective['name']}")
        if problems:
            # What was judged and found wrong would be found wrong again; a lost worker is worth another try.
            self._fail("; ".join(problems), resumable=bool(verdict.lost))
            for name in failed:
                lines = (self.folder / f"logs/{name}.log").read_text(errors="replace").splitlines()
                # Launchers tag what a worker said; that says more than their own traceback behind it.
                tail = ([line for line in lines if "<stderr>" in line] or lines)[-20:]
                title = f"--- from {_shown(self.folder)}/logs/{name}.log"
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
            _print_summary(self.content, page)
            if self.content["status"] == "ok" and self.config["tracking"]["kind"] != "none":
                self._track()
        except OSError as error:
            console.print(f"error: the run folder cannot be written: {error}", markup=False)
            self._fail(f"{self.content['reason']}; the run folder cannot be written: {error}".lstrip("; "))
            _print_summary(self.content, None)
        finally:
            self.run.close()


def _check_recipe_settings(recipe, config):
    """Lets the recipe's settings.py, where there is one, refuse settings that make no sense before any work begins."""
    program = ROOT / "recipes" / recipe / "settings.py"
    if not program.exists():
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(launch.worker_settings(config, "", ""), file)  # JSON is YAML
        file.flush()
        words = [sys.executable, program, file.name, str(config["cluster"]["num_workers"])]
        paths = os.pathsep.join([str(ROOT / "runrecord"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        raise UserError(done.stderr.strip())


def _shown(path):
    """A path as short as it can be said from here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def _print_summary(content, page):
    ok, metrics, seconds = content["status"] == "ok", content["metrics"], content["seconds"]
    lines = [("result", "ok" if ok else f"FAILED: {content['reason']}")]
    if content["workers"]:
        where = ", ".join(
            f"rank {w['rank']}: {w['host']} pid {w['pid']}, {w['samples'] or 0:,} samples" for w in content["workers"]
        )
        lines.append(("workers", f"{content['world_size']} ({where})"))
    if content["worlds"][1:]:
        lines.append(("worlds", " -> ".join(map(str, content["worlds"]))))
    if ok:
        lines.append((content["objective"]["name"], f"{content['objective']['value']:.4f}"))
        shown = {name: value for name, value in metrics.items() if name != content["objective"]["name"]}
        lines += [(name, f"{value:,.1f}" if value >= 100 else f"{value:.4f}") for name, value in shown.items()]
    lines.append(("seconds", "  ".join(f"{name} {value:.1f}" for name, value in seconds.items())))
    if page:
        lines.append(("report", str(page)))
    if content["workers_command"]:
        lines.append(("workers by hand", content["workers_command"]))
    console.print()
    for name, text in lines:
        console.print(f"{name:<20} {text}", markup=False)


def _print_sweep():
    from rich.table import Table

    table = Table(title="sweep", title_justify="left")
    name = next((c["objective"]["name"] for _, c in FINISHED if "objective" in c), "objective")
    for column in ("overrides", "status", name, "samples/s", "seconds", "folder"):
        table.add_column(column, overflow="fold", no_wrap=column == "folder")
    for overrides, content in FINISHED:
        value = content.get("objective", {}).get("value")
        speed = content.get("metrics", {}).get("samples_per_second")
        table.add_row(
            " ".join(word for word in overrides if not word.startswith("recipe=")), content["status"], "-" if value is None else f"{value:.4f}", "-" if speed is None else f"{speed:,.0f}",
            f"{content.get('seconds', {}).get('total', 0):.1f}", _shown(content["folder"]) if "folder" in content else "-",
        )  # fmt: skip
    (console if console.is_terminal else Console(width=160)).print(table)


if __name__ == "__main__":
    main()
