"""Where the time of a step goes (`profile=true`): TensorFlow's profiler over a few steps, and what it says in shares.

Each rank keeps a trace, traces/rank<N>.json.gz, which https://ui.perfetto.dev opens. The report gets a table with the
shares of all ranks.
"""

import gzip
import json
import re
import tempfile
from pathlib import Path

# Turns what the profiler writes into a trace. TensorFlow has no public name for it: TensorBoard's plugin is a package.
from tensorflow.python.profiler.internal import _pywrap_profiler_plugin as converter

from runtime import task, tf

SKIPPED, STEPS = 4, 20  # the first ones warm up


class Profile(tf.keras.callbacks.Callback):
    """Profiles steps of `fit`: Keras itself names each of them in the trace."""

    def __init__(self, run, sum_over_workers, output_dir):
        super().__init__()
        self.run, self.sum_over_workers, self.taken, self.folder = run, sum_over_workers, 0, None
        self.path = Path(output_dir, f"traces/rank{task().index}.json.gz")  # Distributed: each rank keeps its own.

    def on_train_batch_end(self, batch, logs=None):
        self.taken += 1
        if self.taken == SKIPPED:
            self.folder = tempfile.TemporaryDirectory()
            tf.profiler.experimental.start(self.folder.name)

    def on_train_batch_begin(self, batch, logs=None):
        if self.taken == SKIPPED + STEPS:
            self.keep()

    def on_train_end(self, logs=None):
        self.keep()

    def keep(self):
        """Ends the profile and writes the trace. Every rank must call it: the ranks put their shares together here."""
        if self.folder is None:
            return
        tf.profiler.experimental.stop()
        with self.folder as name:
            written = [str(path) for path in Path(name).rglob("*.xplane.pb")]
            trace, _ = converter.xspace_to_tools_data(written, "trace_viewer@", {})
        self.folder = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(gzip.compress(trace))
        if tf.config.list_physical_devices("GPU"):
            return  # the sums below know the names of a CPU's operations only
        shares, rows = shares_of(json.loads(trace)["traceEvents"]), []
        for rank in range(task().num_workers):
            # Distributed: each rank has looked at its own steps only; sums with zeros bring its numbers to all.
            mine = float(rank == task().index)
            replicas = self.sum_over_workers(mine)
            row = {name: self.sum_over_workers(mine * value) / replicas for name, value in shares.items()}
            rows.append({"rank": rank} | {name: round(value, 2) for name, value in row.items()})
        if task().index == 0 and shares:  # Distributed: all have the same rows; one writes them.
            self.run.table("where the time of a step goes, in percent", rows)


def shares_of(events):
    """Percent of the profiled steps by what they were spent for, of a trace's events; they add up to 100.

    The exchange overlaps with computing: what of it does not is `exchanging or waiting for the others`.
    """
    threads = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one["name"] == "thread_name"}
    steps, data, computing, exchange = [], [], [], []
    for one in events:
        if one["ph"] != "X":
            continue
        span = (one["ts"], one["ts"] + one["dur"])
        if re.fullmatch(r"train \d+", one["name"]):
            steps.append(span)
        elif one["name"].startswith("IteratorGetNext"):
            data.append(span)
        elif one["name"].startswith("CollectiveReduce"):
            exchange.append(span)
        elif threads[one["pid"], one["tid"]].startswith("tf_Compute"):
            computing.append(span)
    whole = length(steps)
    if not whole:
        return {}

    def percent(*kinds):
        """Of the steps' time, with at least one of these under way."""
        spans = [span for kind in kinds for span in kind]
        return 100 * (length(spans) + whole - length(spans + steps)) / whole

    waiting, busy, all_three = percent(data), percent(data, computing), percent(data, computing, exchange)
    return {
        "steps": len(steps),
        "ms for a step": whole / len(steps) / 1000,
        "data": waiting,
        "computing": busy - waiting,
        "exchanging or waiting for the others": all_three - busy,
        "the rest": 100 - all_three,
        "an exchange under way": percent(exchange),
    }


def length(spans):
    """How much time is in at least one of the spans (start, end)."""
    total, reached = 0, float("-inf")
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
