"""What each worker did when (`profile=true`): the task stream of Dask's scheduler, as a trace.

traces/tasks.json.gz, which https://ui.perfetto.dev opens. Without the setting there is Dask's own page only,
traces/dask-performance.html.
"""

import contextlib
import gzip
import json
from pathlib import Path

from dask.utils import key_split
from distributed import get_task_stream


@contextlib.contextmanager
def profiled(config, client):
    """Keeps the tasks of the block. Without `profile` nothing is done."""
    if not config.profile:
        yield
        return
    # Distributed: workers tell the scheduler when they did what; nobody else knows all of them.
    with get_task_stream(client) as stream:
        yield
    content = {"traceEvents": list(trace_events(stream.data))}
    path = Path(config.output_dir, "traces/tasks.json.gz")
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


def trace_events(tasks):
    """Chrome's trace events: a process for each worker, a row in it for each of its threads."""
    workers = sorted({task["worker"] for task in tasks})
    for pid, worker in enumerate(workers):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"worker {worker}"}}
    threads = sorted({(task["worker"], task["thread"]) for task in tasks})
    for task in tasks:
        place = {"pid": workers.index(task["worker"]), "tid": threads.index((task["worker"], task["thread"]))}
        for part in task["startstops"]:
            name = key_split(task["key"]) if part["action"] == "compute" else part["action"]
            times = {"ts": 1e6 * part["start"], "dur": 1e6 * (part["stop"] - part["start"])}
            yield {"ph": "X", "name": name, **place, **times, "args": {"key": str(task["key"])}}
