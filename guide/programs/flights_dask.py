"""Flights by carrier and airport, in Dask: the functions of the pandas program, on parts, in `workers` processes."""

import dask.dataframe as dd
from dask_local import start
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
    with start(meter.workers, meter.memory_mb):  # Distributed: a scheduler and worker processes
        meter.ready()
        meter.measure(lambda: answer(meter.folder))
