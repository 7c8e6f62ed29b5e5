"""Who works: asks the tasks themselves in which process and on which host they run, and Spark
what each executor has done."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pyspark
from py4j.protocol import Py4JJavaError

from runrecord import RunRecord


def whereabouts(_):
    """Runs in a task: (executor id, host, process id of the executor)."""
    # Distributed: a Python task is the child of a daemon, which is the child of the executor's Java process.
    pid = parent_of(os.getppid())
    words = words_of(pid)
    yield words[words.index("--executor-id") + 1], socket.gethostname(), pid


def parent_of(pid):
    if Path("/proc/self/stat").exists():
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True).stdout)


def words_of(pid):
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout.split()


class Executors:
    """The run records of the executors, kept by the driver: an executor runs no Python of its own between tasks."""

    def __init__(self, spark, config):
        self.spark, self.config, self.records = spark, config, {}  # executor id -> (rank, record)

    def look(self):
        """Meets all executors, and notes those that are new in the places of those that are gone."""
        seconds = max(90, self.config.start_timeout_seconds)
        context, deadline = self.spark.sparkContext, time.monotonic() + seconds
        num_executors, cores = (
            int(context.getConf().get(f"spark.executor.{key}", "1")) for key in ("instances", "cores")
        )
        found = {}
        # A lost executor takes a moment to be noticed and replaced.
        while len(found) < num_executors:
            # The driver counts as one of them.
            there = context._jsc.sc().getExecutorMemoryStatus().size() - 1
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{there} of {num_executors} executors are there after {seconds} s: has the cluster room for "
                    f"{num_executors} x {cores} cores and recipe.memory_mb each? Fewer: cluster.num_workers"
                )
            if there < num_executors:
                time.sleep(0.1)
                continue
            # Distributed: a barrier stage runs all its tasks at the same time, so every core of every executor answers.
            tasks = context.parallelize(range(num_executors * cores), num_executors * cores).barrier()
            try:
                answers = tasks.mapPartitions(whereabouts).collect()
            except Py4JJavaError as error:
                # Spark does not repeat a barrier stage whose result was asked for when it loses an executor meanwhile.
                if "barrier" not in str(error):
                    raise
                continue
            found = {executor: (host, pid) for executor, host, pid in answers}
        gone = [executor for executor in self.records if executor not in found]
        free = [self.records.pop(executor)[0] for executor in gone]  # no `end`: lost
        for executor in sorted(found.keys() - self.records.keys()):
            rank = free.pop(0) if free else len(self.records)
            host, pid = found[executor]
            record = RunRecord(
                self.config.output_dir,
                rank,
                len(found),
                host=host,
                pid=pid,
                spark=pyspark.__version__,
                device=f"executor {executor}",
            )
            self.records[executor] = rank, record
        return len(found)

    def close(self):
        """Notes for each executor how many tasks Spark has counted for it."""
        store = self.spark.sparkContext._jsc.sc().statusStore()
        summaries = store.executorList(False)
        tasks = {summaries.apply(n).id(): summaries.apply(n).completedTasks() for n in range(summaries.size())}
        for executor, (_, record) in self.records.items():
            with record:
                record.work(tasks.get(executor, 0))
