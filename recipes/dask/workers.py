"""The cluster that the work runs on, and who did what there: asked of the workers themselves."""

import multiprocessing
import os
import re
import socket
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin

import runrecord
from runrecord import RunRecord


class Pool:
    """Threads or processes of this machine instead of a cluster.

    Its tasks cannot be asked for in general: `note` takes what they told.
    """

    client = None

    def __init__(self, config):
        host = socket.gethostname()
        if config.mode == "threads":
            self.pool, places = None, [(host, os.getpid())]
            dask.config.set(scheduler="threads", num_workers=config.num_workers)
        else:
            # Started once: left alone, Dask starts new processes for each `compute`, and each of them imports
            # everything again.
            self.pool = ProcessPoolExecutor(config.num_workers, multiprocessing.get_context("spawn"))
            meeting = [self.pool.submit(meet) for _ in range(config.num_workers)]
            places = sorted({(host, place.result()) for place in meeting})
            dask.config.set(scheduler="processes", pool=self.pool, chunksize=1)
        facts = {"dask": dask.__version__, "device": "cpu"}
        self.records = {
            (host, pid): RunRecord(config.output_dir, rank, len(places), host=host, pid=pid, **facts)
            for rank, (host, pid) in enumerate(places)
        }

    def look(self):
        """Nobody comes or goes."""

    def note(self, places):
        """Tasks that processes have done: [(host, process id, tasks, rows), ...]."""
        for host, pid, tasks, _ in places:
            if (host, pid) in self.records:  # not those of an earlier try
                self.records[host, pid].work(tasks)

    def close(self):
        for record in self.records.values():
            with record:
                pass
        if self.pool:
            self.pool.shutdown()


def meet():
    """Runs in a process of the pool, long enough for each of them to get one of these."""
    time.sleep(1)
    return os.getpid()


class Counter(WorkerPlugin):
    """Counts the tasks that a worker has finished."""

    name = "counter"

    def setup(self, worker):
        self.count = 0

    def transition(self, key, start, finish, **kwargs):
        self.count += start == "executing" and finish == "memory"


def whereabouts(dask_worker):
    """Runs on a worker, beside its tasks: (host, process id, tasks that it has finished)."""
    return socket.gethostname(), os.getpid(), dask_worker.plugins["counter"].count


def modules_in(folder):
    """A zip file of what the tasks are made of, which Python can import from.

    Dask imports each module in it, on the scheduler too.
    """
    path = Path(folder) / "modules.zip"
    programs = re.compile(r"main|test_")
    with zipfile.ZipFile(path, "w") as archive:
        for module in [Path(runrecord.__file__), *sorted(Path(__file__).parent.glob("*.py"))]:
            if not programs.match(module.name):
                archive.write(module, module.name)
    return str(path)


class Workers:
    """Dask's distributed scheduler: an embedded cluster on this machine, or one that is there already.

    The run records of the workers are kept here, by the program that uses them.
    """

    def __init__(self, config):
        self.config, self.records, self.cluster = config, {}, None  # pid on a host -> (rank, record, tasks)
        address = dask.config.get("scheduler-address", None)  # DASK_SCHEDULER_ADDRESS
        if not address:
            self.cluster = embedded(config)
            if config.elastic:
                # Distributed: the scheduler asks for workers while there is work waiting, and lets go of those
                # that have none.
                self.cluster.adapt(
                    minimum=1, maximum=config.num_workers, interval="500ms", target_duration="500ms", wait_count=20
                )
        elif config.worker_resources:
            raise SystemExit(
                f"worker_resources={config.worker_resources} is for a cluster that this program starts; the workers of "
                f"{address} get theirs when they start: dask worker --resources 'NAME=1'"
            )
        # Distributed: from now on `compute` and `persist` send their graphs to this client's scheduler.
        self.client = Client(address or self.cluster, timeout=config.start_timeout_seconds)
        if address:
            # Distributed: workers that others have started do not have the modules that the tasks are made of.
            self.client.upload_file(modules_in(config.output_dir))
        # Distributed: workers that come later, or again, get the plugin too.
        self.client.register_plugin(Counter())

    def look(self):
        """Meets the workers, and notes those that are new in the places of those that are gone."""
        seconds = self.config.start_timeout_seconds
        wanted = 1 if self.config.elastic else self.config.num_workers
        try:
            # A worker that was lost takes a moment to be started again.
            self.client.wait_for_workers(wanted, timeout=seconds)
        except TimeoutError:
            there = len(self.client.scheduler_info(n_workers=-1)["workers"])
            raise SystemExit(
                f"{there} of {wanted} workers are there after {seconds} s; start more of them, or ask for fewer: "
                "cluster.num_workers"
            ) from None
        found = {}
        deadline = time.monotonic() + seconds
        while len(found) < wanted and time.monotonic() < deadline:
            answers = self.client.run(whereabouts, on_error="ignore")
            found = {(host, pid): tasks for host, pid, tasks in answers.values()}
        for place in [place for place in self.records if place not in found]:
            del self.records[place]  # no `end`: lost, or let go
        # Distributed: ranks stay as they are where they can; a new worker takes the rank of one that is gone.
        kept = {place: rank for place, (rank, *_) in self.records.items() if rank < len(found)}
        free = sorted(set(range(len(found))) - set(kept.values()))
        for place in sorted(found.keys() - kept.keys()):
            rank, where = free.pop(0), {"host": place[0], "pid": place[1]}
            if place in self.records:
                self.records[place][0] = rank
            else:
                record = RunRecord(
                    self.config.output_dir, rank, len(found), **where, dask=dask.__version__, device="cpu"
                )
                self.records[place] = [rank, record, 0]
        for rank, record, _ in self.records.values() if self.config.elastic else []:
            record.world(rank, len(found))
        for place, tasks in found.items():
            self.records[place][2] = tasks

    def note(self, places):
        """The workers are asked, and need not tell."""

    def close(self):
        self.look()
        for _, record, tasks in self.records.values():
            with record:
                record.work(tasks)
        self.client.close()
        if self.cluster:
            self.cluster.close()


def embedded(config):
    """A scheduler in this process, and for each worker a process of its own.

    Each worker has a nanny, which starts it again when it dies.

    Unequal workers: `worker_resources` says what each of them has besides cores and memory, such as {gpu: 1}.
    """
    options = {
        "host": "127.0.0.1",
        "nthreads": config.num_threads_per_worker,
        "memory_limit": f"{config.memory_mb}MB",
        "dashboard": False,
        "local_directory": dask.config.get("temporary-directory"),
    }
    workers = {}
    for rank in range(1 if config.elastic else config.num_workers):
        # Distributed: workers may differ; one without an entry has cores and memory only.
        resources = config.worker_resources[rank] if rank < len(config.worker_resources) else {}
        workers[rank] = {"cls": Nanny, "options": {**options, "resources": resources}}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": None}}
    # Distributed: a nanny whose worker is not back by then is closed, and nothing replaces it. Dask's own 15 s are too
    # short on a slow machine: a worker imports this program and all its libraries again.
    dask.config.set({"distributed.deploy.lost-worker-timeout": f"{config.start_timeout_seconds} s"})
    # Distributed: starts them all; tasks go to whichever worker has their inputs or is free.
    return SpecCluster(workers, scheduler, worker=workers[0])  # `worker`: what is added when the cluster grows
