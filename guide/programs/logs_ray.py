"""Requests by team and hour out of access logs, in Ray Data: the functions of the pandas program, in tasks."""

from pathlib import Path

import pandas as pd
import ray
from logs_pandas import parsed, per_hour, teams, total
from meter import Meter
from ray_local import start


def answer(folder, num_buckets):
    table = teams()

    def bucketed(batch):
        found = parsed(batch["text"], table)
        # Distributed: all requests of a client must lie in one bucket, or the window would miss the request before.
        return found.assign(bucket=pd.util.hash_array(found["client"].to_numpy(object)) % num_buckets)

    paths = [str(path) for path in sorted(Path(folder).glob("*.log"))]
    requests = ray.data.read_text(paths).map_batches(bucketed, batch_format="pandas", batch_size=100_000)
    # Distributed: the buckets travel between the processes; each gives its own sums.
    parts = requests.groupby("bucket").map_groups(per_hour, batch_format="pandas")
    return {"table": total(parts.to_pandas())}


if __name__ == "__main__":
    meter = Meter()
    start(meter.workers, meter.memory_mb)  # Distributed: a cluster of Ray's on this machine
    meter.ready()
    meter.measure(lambda: answer(meter.folder, 4 * meter.workers))
