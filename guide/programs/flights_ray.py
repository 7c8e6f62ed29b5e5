"""Flights by carrier and airport, in Ray Data: the functions of the pandas program, on buckets, in `workers` tasks."""

from pathlib import Path

import pandas as pd
import ray
from flights_pandas import COLUMNS, flown, per_airport, planes_of, total
from meter import Meter
from ray_local import start


def answer(folder, num_buckets):
    planes = planes_of(folder)

    def bucketed(flights):
        found = flown(flights, planes)
        # Distributed: all flights of a plane must lie in one bucket, or the window would miss the flight before.
        return found.assign(bucket=pd.util.hash_array(found["tailnum"].to_numpy(object)) % num_buckets)

    paths = [str(path) for path in sorted(Path(folder).glob("flights-*.parquet"))]
    flights = ray.data.read_parquet(paths, columns=COLUMNS).map_batches(bucketed, batch_format="pandas")
    # Distributed: the buckets travel between the processes; each gives its own sums.
    parts = flights.groupby("bucket").map_groups(per_airport, batch_format="pandas")
    return {"table": total(parts.to_pandas())}


if __name__ == "__main__":
    meter = Meter()
    start(meter.workers, meter.memory_mb)  # Distributed: a cluster of Ray's on this machine
    meter.ready()
    meter.measure(lambda: answer(meter.folder, 4 * meter.workers))
