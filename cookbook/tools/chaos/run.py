"""Runs a recipe undisturbed and disturbed, resumes it as a user would, and says what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from cookbook import UserError, inventory, redact, run_folder
from cookbook.files import read_json, write_whole
from cookbook.report import pages
from cookbook.report.console import Stage
from cookbook.settings import choices, compose_recipe, overrides
from cookbook.tools import provenance
from cookbook.tools.chaos.disturbance import Disturbance, temporary_folder
from cookbook.tools.chaos.fault import Fault, Scene, Undisturbed
from cookbook.tools.chaos.outcome import Outcome
from cookbook.tools.chaos.plans import in_order
from cookbook.tools.chaos.record import RunSoFar
from cookbook.tools.chaos.victim import Driver, LocalHosts

# The settings of a disturbed run that only it has, and those that it must not have.
OWN = ("output_root", "resume")
NO_INVENTORY = (None, "", "???")  # the last one is Hydra's word for a setting that nobody has set
NUM_HOSTS = 2  # that are made for cluster=hosts without an inventory, unless cluster.num_workers says more


class Session:
    """All that one command runs: the same recipe with the same settings, undisturbed once and then with each plan."""

    def __init__(self, recipe: str, words: Sequence[str], root: Path) -> None:
        """Raises UserError for settings that do not exist, and for a place where nothing can be shown."""
        for word in words:
            if word.split("=")[0].lstrip("+") in OWN:
                raise UserError(f"{word}: leave it out; each run gets folders of its own, below {root}")
        self.root = root.absolute()
        self.overrides = [*words, *([] if any(word.startswith("scale=") for word in words) else ["scale=smoke"])]
        choices.check_choices([f"recipe={recipe}", *self.overrides])
        overrides.prepared(choices.with_defaults_of_choices([f"recipe={recipe}", *self.overrides]))
        self.config, _ = compose_recipe(recipe, self.overrides)
        cluster, driver = self.config["cluster"], self.config["recipe"]["driver"]
        self.hosts: LocalHosts | None = None
        self.makes_hosts = cluster["kind"] == "hosts" and cluster["inventory"] in NO_INVENTORY
        if cluster["kind"] == "hosts" and not self.makes_hosts:
            cluster = inventory.with_hosts(cluster)  # as many workers as it has slots
            self.hosts = LocalHosts.of_inventory(Path(cluster["inventory"]).expanduser())
        num_workers = driver.get("num_processes") or cluster["num_workers"] or NUM_HOSTS
        own = self.makes_hosts or self.hosts is not None
        if self.makes_hosts and os.geteuid() != 0:
            raise UserError("cluster=hosts: hosts are made on this machine as root; or give a cluster.inventory")
        self.scene = Scene(recipe, cluster["kind"], num_workers, own)
        self.machine, self.commit = pages.machine(), provenance.commit_of()
        self.program = [sys.executable, "-m", "cookbook"]

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Makes the hosts that are needed, and takes them away."""
        if not self.makes_hosts:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="chaos-hosts-", ignore_cleanup_errors=True) as folder:
            self.hosts = LocalHosts(Path(folder), self.scene.num_workers)
            try:
                self.hosts.up()
                yield
            finally:
                self.hosts.down()

    @property
    def typed(self) -> list[str]:
        """The words of the driver's command line."""
        more = [f"cluster.inventory={self.hosts.hosts.folder}"] if self.makes_hosts and self.hosts else []
        return [f"recipe={self.scene.recipe}", *self.overrides, *more]

    def start(self, root: Path, log: Path, mark: str, temporary: Path) -> Driver:
        """Starts the command: the run's folder below `root`, what it says into `log`."""
        return Driver([*self.program, *self.typed], self.scene, self.hosts, root, log, mark, temporary)

    def key(self) -> str:
        """Equal for two undisturbed runs that need not both be done: same code, settings and machine."""
        changes = provenance.git("diff", "HEAD", "--", ".", ":!docs", ":!tests") if self.commit.endswith("+") else ""
        kept = {key: self.config[key] for key in ("recipe", "data", "cluster", "scale", "seed")}
        parts = [self.commit, changes, self.scene.recipe, sorted(self.overrides), kept, self.machine]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def undisturbed(self) -> tuple[Undisturbed, Path]:
        """(what the undisturbed run has shown, its folder), of a run that is done now or was done before.

        Raises UserError, with the driver's words, when it fails.
        """
        folder = self.root / "undisturbed" / f"{self.scene.recipe}-{self.key()}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            note = folder / "done.json"
            if not note.exists():
                shutil.rmtree(folder / self.scene.recipe, ignore_errors=True)
                seconds, run = self._run_once(folder)
                so_far = RunSoFar(run)
                so_far.read()
                shown = Undisturbed(so_far.step(), so_far.num_checkpoints, seconds)
                write_whole(note, json.dumps({"shown": asdict(shown), "run": str(run.relative_to(folder))}) + "\n")
            done: Any = read_json(note)
        shown = Undisturbed(**done["shown"])
        if shown.num_steps < 1:
            raise UserError(f"recipe {self.scene.recipe} reports no steps with these settings: no fault has its moment")
        return shown, folder / done["run"]

    def _run_once(self, folder: Path) -> tuple[float, Path]:
        with temporary_folder() as temporary, Stage("undisturbed") as stage:
            driver = self.start(folder, folder / "output.log", uuid.uuid4().hex, temporary)
            try:
                while driver.process.poll() is None:
                    if driver.read():
                        stage.update(f"step {driver.so_far.step()}")
                    time.sleep(0.2)
            finally:
                driver.stop()
            run = run_folder.newest(folder, self.scene.recipe)
            content = run_folder.load(run) if run else {}
            if run is None or content.get("status") != "ok":
                last = driver.log.read_text(errors="replace").strip().splitlines()[-3:]
                reason = content.get("reason") or " / ".join(last)
                raise UserError(
                    f"the undisturbed run failed, so nothing can be compared: {reason}. All that it said: {driver.log}"
                )
            before = sum(content["seconds"].get(name, 0.0) for name in ("environment", "data"))
            seconds = round(
                driver.seconds - before, 3
            )  # environment and dataset are there when the disturbed one begins
            stage.done(f"the undisturbed run: {seconds:.1f} s")
            return seconds, run

    def disturbed(self, plan: Sequence[Fault], seed: int | None, shown: Undisturbed, calm: Path) -> Outcome:
        """Runs the recipe with a plan's faults, and the same command again until it ends, or nothing helps."""
        plan = in_order(plan, shown.num_steps)
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.root / self.scene.recipe / now
        while folder.exists():
            folder = folder.with_name(f"{folder.name}x")
        folder.mkdir(parents=True)
        outcome = Outcome(
            recipe=self.scene.recipe,
            place=self.scene.place,
            overrides=[redact.redacted_text(word) for word in self.overrides],
            faults=[fault.text for fault in plan],
            names=[fault.name for fault in plan],
            seed=seed,
            command=command_of(self.scene.recipe, plan, self.overrides),
            machine=self.machine,
            commit=self.commit,
            time=time.time(),
            folder=str(folder),
            undisturbed_folder=str(calm),
            undisturbed_seconds=shown.seconds,
            undisturbed_steps=shown.num_steps,
        )
        if reasons := [reason for fault in plan if (reason := fault.too_early(shown))]:
            outcome.cannot = "; ".join(reasons)
        else:
            repeats = self.config["recipe"]["driver"].get("repeats", "bits")
            Disturbance(self.start, self.hosts, plan, shown, folder, outcome).go(repeats)
        write_whole(folder / "chaos.json", json.dumps(asdict(outcome), indent=1) + "\n")
        return outcome


def command_of(recipe: str, plan: Sequence[Fault], words: Sequence[str]) -> str:
    """What repeats it."""
    text = " ".join(fault.text for fault in plan)
    args = " ".join(redact.redacted_text(word) for word in words)
    return f'make chaos RECIPE={recipe} FAULTS="{text}" ARGS="{args}"'
