"""Flights by carrier and airport, in Dask: the functions of the pandas program, on parts, in `workers` processes."""

import dask.dataframe as dd
from distributed import Client, LocalCluster
from flights_pandas import COLUMNS, SUMS, flown, per_airport, planes_of, total
from meter import Meter


def answer(folder):
    flights = dd.read_parquet(f"{folder}/flights-*.parquet", columns=COLUMNS)
    flights = flights.map_partitions(flown, planes_of(folder))
    # Distributed: all flights of a plane must lie in one part, or the window would miss the flight before.
    flights = flights.shuffle("tailnum")
    empty = {"carrier": "string", "origin": "string", **dict.fromkeys(SUMS, "float64")}
    # Distributed: each part gives its own sums; only these small tables travel.
    return {"table": total(flights.map_partitions(per_airport, meta=empty).compute())}


if __name__ == "__main__":
    meter = Meter()
    # Distributed: a scheduler and worker processes; their memory is bounded, more goes to disk.
    cluster = LocalCluster(
        n_workers=meter.workers,
        threads_per_worker=1,
        memory_limit=f"{meter.memory_mb}MB",
        host="127.0.0.1",
        dashboard_address=None,
    )
    with cluster, Client(cluster):  # Distributed: all work of this process goes there
        meter.ready()
        meter.measure(lambda: answer(meter.folder))
