"""Runs a recipe undisturbed and disturbed, resumes it as a user would, and says what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from cookbook import ROOT, UserError, processes, redact, run_folder
from cookbook.files import write_whole
from cookbook.job import Settings
from cookbook.report import pages
from cookbook.report.console import Stage
from cookbook.settings import checks, compose_recipe, overrides
from cookbook.tools import health
from cookbook.tools.chaos import inject
from cookbook.tools.chaos.faults import Fault, Harm, Scene, Undisturbed, in_order
from cookbook.tools.chaos.record import RunSoFar, load_json, steps_of

POLL_SECONDS = 0.01  # between two looks at the record: a step may take hundredths of a second
END_SECONDS = 20.0  # for everything that a run has started to end
SHARED_MEMORY = Path("/dev/shm")
ROW_RULES = re.compile(r"rows_once|enough_rows|every_row|trials_counted")
CLOCK = re.compile(r"seconds$|per_second$|^seconds/")  # metrics that depend on the machine's speed
# The settings of a disturbed run that only it has, and those that it must not have.
OWN = ("output_root", "resume")


@dataclass(frozen=True)
class Try:
    """One start of the command."""

    status: str  # ok, failed, killed (the driver left no word)
    reason: str
    exit_status: int
    seconds: float
    log: str
    afresh: bool  # it did not go on with what the try before has left


@dataclass(frozen=True)
class Hit:
    """A fault that happened."""

    fault: str
    at_step: int
    in_try: int  # from 1
    after_seconds: float  # since that try began
    says: str


@dataclass
class Outcome:
    """What became of a disturbed run: the content of its chaos.json."""

    recipe: str
    place: str
    overrides: list[str]
    faults: list[str]
    names: list[str]
    seed: int | None  # of a plan that was drawn
    command: str
    machine: str
    commit: str
    time: float  # seconds since 1970
    folder: str
    cannot: str = ""  # why the fault cannot happen to this run: nothing was run then
    recovered: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    undisturbed_folder: str = ""
    undisturbed_seconds: float = 0.0
    undisturbed_steps: int = 0
    seconds: float = 0.0  # of all tries
    seconds_lost: float = 0.0
    goodput: float = 0.0  # seconds of the undisturbed run / seconds of the disturbed one, over all its tries
    steps_taken: int | None = None  # None: no worker of this recipe notes its rows
    steps_lost: int | None = None
    result: str = ""  # how the result compares with the undisturbed one
    rows: str = ""  # what the rules about rows say
    left: list[str] = field(default_factory=list)  # processes and files that were left behind
    run: str = ""  # the disturbed run's own folder


# ---- places


class LocalHosts:
    """Hosts of infra/local: network namespaces of this machine."""

    def __init__(self, folder: Path, num_hosts: int) -> None:
        spec = importlib.util.spec_from_file_location("infra_local_hosts", ROOT / "infra/local/hosts.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.hosts: Any = module.Hosts(folder, num_hosts)
        self.num_hosts = num_hosts

    def up(self) -> None:
        with _system_exit_as_error(), contextlib.redirect_stdout(io.StringIO()):
            self.hosts.up()

    def down(self) -> None:
        with _system_exit_as_error(), contextlib.redirect_stdout(io.StringIO()):
            self.hosts.down()

    def namespace(self, host: int) -> str:
        name: str = self.hosts.namespace(host)
        return name

    def link(self, host: int) -> str:
        return f"{self.hosts.bridge}-{host}"

    def strangers(self) -> list[str]:
        """What runs on the hosts beside their ssh servers."""
        found = []
        for host in range(1, self.num_hosts + 1):
            for pid in inject.processes_on(self.namespace(host)):
                with contextlib.suppress(psutil.Error):
                    words = " ".join(psutil.Process(pid).cmdline())
                    if words and "sshd" not in words:
                        found.append(f"host {host}: {words[:100]} (pid {pid})")
        return found


@contextlib.contextmanager
def _system_exit_as_error() -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        raise UserError(str(error).removeprefix("error: ")) from None


# ---- one start of the command


class Driver:
    """A driver that runs: what the faults hurt."""

    def __init__(
        self, session: Session, words: Sequence[str], root: Path, log: Path, mark: str, temporary: Path
    ) -> None:
        self.session, self.root, self.mark = session, root, mark
        self.log, self.began, self.began_clock = log, time.time(), time.monotonic()
        self.so_far = RunSoFar(root / "none")
        self.disk: inject.Disk | None = None
        self.mapped: set[str] = set()  # files in /dev/shm that processes of this run had
        environment = {inject.MARK: mark, "TMPDIR": str(temporary)}
        with open(log, "w") as output:
            self.process = processes.start(
                [*session.program, *words, f"output_root={root}"], mark, environment, output, ROOT
            )
        self.driver_pid = self.process.pid

    def read(self) -> bool:
        """Takes in what the workers have written; whether there is anything new."""
        newest = self._folder()
        if newest and newest != self.so_far.folder:
            self.so_far = RunSoFar(newest, began=self.began)
        before = sum(map(len, self.so_far.records.values()))
        self.so_far.read()
        return sum(map(len, self.so_far.records.values())) != before

    def _folder(self) -> Path | None:
        """The folder of this try's run, once the driver has opened it."""
        latest = self.root / self.session.scene.recipe / "latest"
        if not latest.exists():
            return None
        folder = latest.resolve()
        content = run_folder.load(folder)
        return folder if content.get("started", 0.0) >= self.began else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_clock

    def pid_of(self, rank: int, role: str) -> int | None:
        start = self.so_far.alive(rank, role)
        if start is None:
            return None
        pid = int(start["pid"])
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            marks = process.environ()
            is_ours = marks.get(inject.MARK) == self.mark
            # Ray wipes the environment of some processes.
            is_ours = is_ours or self.driver_pid in [parent.pid for parent in process.parents()]
        except (psutil.Error, OSError):
            return None
        return pid if is_ours or self._is_on_own_hosts(pid) else None

    def _is_on_own_hosts(self, pid: int) -> bool:
        hosts = self.session.hosts
        numbers = range(1, hosts.num_hosts + 1) if hosts else ()
        return any(pid in inject.processes_on(hosts.namespace(number)) for number in numbers if hosts)

    def pids(self) -> list[int]:
        return [process.pid for process in inject.marked(self.mark)]

    def end_driver(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            inject.kill(self.driver_pid)
        self.process.wait()
        deadline = time.monotonic() + END_SECONDS
        while inject.marked(self.mark) and time.monotonic() < deadline:
            time.sleep(0.1)

    def link(self, host: int) -> str:
        assert self.session.hosts
        return self.session.hosts.link(host)

    def namespace(self, host: int) -> str:
        assert self.session.hosts
        return self.session.hosts.namespace(host)

    def look_at_shared_memory(self, ended: threading.Event) -> None:
        """Notes which files in /dev/shm processes of this run have, each second. In a thread: it takes its time."""
        while not ended.wait(1.0):
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    self.mapped |= set(re.findall(r"/dev/shm/(\S+)", Path(f"/proc/{pid}/maps").read_text()))

    def stop(self) -> None:
        """Ends it as Ctrl-C would, when this program itself is to end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


# ---- a session


class Session:
    """All that one command runs: the same recipe with the same settings, undisturbed once and then with each plan."""

    def __init__(self, recipe: str, words: Sequence[str], root: Path) -> None:
        """Raises UserError for settings that do not exist, and for a place where nothing can be shown."""
        for word in words:
            if word.split("=")[0].lstrip("+") in OWN:
                raise UserError(f"{word}: leave it out; each run gets folders of its own, below {root}")
        self.root = root.absolute()
        self.words = [*words, *([] if any(word.startswith("scale=") for word in words) else ["scale=smoke"])]
        checks.check_choices([f"recipe={recipe}", *self.words])
        overrides.prepared(overrides.with_defaults_of_mode([f"recipe={recipe}", *self.words]))
        self.config, _ = compose_recipe(recipe, self.words)
        cluster, driver = self.config["cluster"], self.config["recipe"]["driver"]
        num_workers = driver.get("num_processes") or cluster["num_workers"]
        self.hosts: LocalHosts | None = None
        self.makes_hosts = cluster["kind"] == "hosts" and not cluster.get("inventory")
        if cluster["kind"] == "hosts" and not self.makes_hosts:
            state = load_json(Path(str(cluster["inventory"])).expanduser() / "state.json")
            if state.get("namespaces"):
                self.hosts = LocalHosts(Path(str(cluster["inventory"])), int(str(state["num_hosts"])))
        own = self.makes_hosts or self.hosts is not None
        if self.makes_hosts and os.geteuid() != 0:
            raise UserError("cluster=hosts: hosts are made on this machine as root; or give a cluster.inventory")
        self.scene = Scene(recipe, cluster["kind"], num_workers, own)
        self.machine, self.commit = pages.machine(), health.commit_of()
        self.program = [sys.executable, "-m", "cookbook"]

    @property
    def driver_settings(self) -> Settings:
        settings: Settings = self.config["recipe"]["driver"]
        return settings

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
        return [f"recipe={self.scene.recipe}", *self.words, *more]

    def key(self) -> str:
        """Equal for two undisturbed runs that need not both be done: same code, settings and machine."""
        changes = health.git("diff", "HEAD", "--", ".", ":!docs", ":!tests") if self.commit.endswith("+") else ""
        kept = {key: self.config[key] for key in ("recipe", "data", "cluster", "scale", "seed")}
        parts = [self.commit, changes, self.scene.recipe, sorted(self.words), kept, self.machine]
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
            done: Any = load_json(note)
        shown = Undisturbed(**done["shown"])
        if shown.num_steps < 1:
            raise UserError(f"recipe {self.scene.recipe} reports no steps with these settings: no fault has its moment")
        return shown, folder / done["run"]

    def _run_once(self, folder: Path) -> tuple[float, Path]:
        with _temporary() as temporary, Stage("undisturbed") as stage:
            driver = Driver(self, self.typed, folder, folder / "output.log", uuid.uuid4().hex, temporary)
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
            overrides=[redact.redacted_text(word) for word in self.words],
            faults=[fault.text for fault in plan],
            names=[fault.name for fault in plan],
            seed=seed,
            command=command_of(self.scene.recipe, plan, self.words),
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
            Disturbance(self, plan, shown, folder, outcome).go()
        write_whole(folder / "chaos.json", json.dumps(asdict(outcome), indent=1) + "\n")
        return outcome


def command_of(recipe: str, plan: Sequence[Fault], words: Sequence[str]) -> str:
    """What repeats it."""
    text = " ".join(fault.text for fault in plan)
    args = " ".join(redact.redacted_text(word) for word in words)
    return f'make chaos RECIPE={recipe} FAULTS="{text}" ARGS="{args}"'


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """A TMPDIR of its own for a run's processes: what is in it at the end was left behind."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Disturbance:
    """One disturbed run, over all its tries."""

    def __init__(
        self, session: Session, plan: Sequence[Fault], shown: Undisturbed, folder: Path, outcome: Outcome
    ) -> None:
        self.session, self.shown, self.folder, self.outcome = session, shown, folder, outcome
        self.pending, self.mark = list(plan), uuid.uuid4().hex
        self.root = folder / "runs"
        self.mapped: set[str] = set()
        self.disk: inject.Disk | None = None
        self.undo: list[tuple[float, Callable[[], None]]] = []  # (when, by the monotonic clock; what)

    def go(self) -> None:
        plan = list(self.pending)
        before = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()
        mount = self.folder / "disk"
        with _temporary() as temporary:
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
        self._judge()

    # -- running

    def _tries(self, most: int, temporary: Path, stage: Stage) -> None:
        for number in range(1, most + 1):
            hurt = self._try(number, temporary, stage)
            last = self.outcome.tries[-1]
            if last.status == "ok" or not hurt:
                return
            if self.session.hosts and "host_kill" in [hit.fault.partition("@")[0] for hit in self.outcome.hits]:
                self.session.hosts.up()  # whoever mends hosts has done so

    def _try(self, number: int, temporary: Path, stage: Stage) -> bool:
        """Starts the command and follows it to its end; whether anything has hurt it."""
        log = self.folder / f"try-{number}.log"
        earlier = run_folder.newest(self.root, self.session.scene.recipe)
        driver = Driver(self.session, self.session.typed, self.root, log, self.mark, temporary)
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
        run = run_folder.newest(self.root, self.session.scene.recipe)
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
        hosts, out = self.session.hosts, self.outcome
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

    def _judge(self) -> None:
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
            out.result, wrong = compared(calm, content, self.session.driver_settings.get("repeats", "bits"))
            out.problems += wrong
            out.rows, wrong = rows_of(calm, content)
            out.problems += wrong
        out.problems += [f"left behind: {what}" for what in out.left]
        out.recovered = not out.problems


def compared(calm: Mapping[str, Any], hurt: Mapping[str, Any], repeats: str | float) -> tuple[str, list[str]]:
    """(how two run.json compare, what is wrong). `repeats`: how exactly the recipe repeats itself, as its file says.

    `bits`: the digests of the parameters are equal. A number: the metrics agree so closely, relatively, but those that
    measure time. `rules`: nothing is promised but the rules of evidence, which each run is judged by.
    """
    if repeats == "rules":
        return "the rules of evidence hold; the recipe promises no more", []
    if repeats == "bits":
        both = [sorted({str(worker.get("digest")) for worker in one["workers"]}) for one in (calm, hurt)]
        if "None" in both[0] or not both[0]:
            return "", [
                "the undisturbed run has no digest of its parameters: `repeats` of the recipe must say how to compare"
            ]
        short = [", ".join(digest[:12] for digest in digests) for digests in both]
        if both[0] != both[1]:
            return f"digest {short[1]}, undisturbed {short[0]}", [
                f"another result: digest {short[1]} instead of {short[0]}"
            ]
        return f"equal digest {short[0]}", []
    tolerance = float(repeats)
    names = {name for one in (calm, hurt) for name in one["metrics"] if not CLOCK.search(name)}
    if not names:
        return "", ["there are no metrics to compare"]
    wrong = []
    for name in sorted(names):
        old, new = calm["metrics"].get(name), hurt["metrics"].get(name)
        if old is None or new is None or not math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-12):
            wrong.append(f"another result: {name} is {new} instead of {old}")
    return f"{len(names)} metrics within {tolerance:g}" if not wrong else f"{len(wrong)} metrics differ", wrong


def rows_of(calm: Mapping[str, Any], hurt: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(what the rules about rows say of the disturbed run, what is wrong)."""
    wrong = []
    for key in ("num_rows", "account"):
        if calm.get(key) != hurt.get(key):
            wrong.append(f"rows: {key} is {hurt.get(key)} instead of {calm.get(key)}")
    found = [one for one in hurt["findings"] if ROW_RULES.match(one["rule"])]
    wrong += [f"rows: {one['rule']} is {one['outcome']}: {one['says']}" for one in found if one["outcome"] != "held"]
    return "; ".join(f"{one['rule']}: {one['says']}" for one in found) or "the recipe has no rule about rows", wrong
