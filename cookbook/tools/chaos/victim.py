"""What the faults hurt: a driver that runs, and the hosts that infra/local makes on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from cookbook import ROOT, UserError, processes, run_folder
from cookbook.files import read_json
from cookbook.places.slurm import job_name
from cookbook.tools.chaos import inject
from cookbook.tools.chaos.fault import Scene
from cookbook.tools.chaos.record import RunSoFar

END_SECONDS = 20.0  # for everything that a run has started to end


class LocalHosts:
    """Hosts of infra/local: network namespaces of this machine."""

    def __init__(self, folder: Path, num_hosts: int) -> None:
        spec = importlib.util.spec_from_file_location("infra_local_hosts", ROOT / "infra/local/hosts.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.hosts: Any = module.Hosts(folder, num_hosts)
        self.num_hosts = num_hosts

    @classmethod
    def of_inventory(cls, inventory: Path) -> Self | None:
        """The hosts of an inventory (a file, or its folder); None where they are no namespaces of this machine."""
        folder = inventory if inventory.is_dir() else inventory.parent
        for each in (folder, folder / "hosts"):  # infra/local has its inventory beside the folder of its hosts
            state = read_json(each / "state.json")
            if state.get("namespaces"):
                return cls(each, int(str(state["num_hosts"])))
        return None

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


class Driver:
    """A driver that runs: what the faults hurt."""

    def __init__(
        self,
        argv: Sequence[str],
        scene: Scene,
        hosts: LocalHosts | None,
        root: Path,
        log: Path,
        mark: str,
        temporary: Path,
    ) -> None:
        self.scene, self.hosts, self.root, self.mark = scene, hosts, root, mark
        self.log, self.began, self.began_clock = log, time.time(), time.monotonic()
        self.so_far = RunSoFar(root / "none")
        self.disk: inject.Disk | None = None
        self.mapped: set[str] = set()  # files in /dev/shm that processes of this run had
        environment = {inject.MARK: mark, "TMPDIR": str(temporary)}
        with open(log, "w") as output:
            self.process = processes.start([*argv, f"output_root={root}"], mark, environment, output, ROOT)
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
        latest = self.root / self.scene.recipe / "latest"
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
        hosts = self.hosts
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
        assert self.hosts
        return self.hosts.link(host)

    def namespace(self, host: int) -> str:
        assert self.hosts
        return self.hosts.namespace(host)

    def slurm_job(self) -> str:
        name = job_name(self.so_far.folder)
        return inject.sh("squeue", "--noheader", "--states=RUNNING", "--format=%i", f"--name={name}").strip()

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
