"""Requests by team and hour out of access logs, in Dask: the functions of the pandas program, in processes."""

import csv

import dask.dataframe as dd
from dask_local import start
from logs_pandas import SUMS, parsed, per_hour, teams, total
from meter import Meter

TEXTS = dict.fromkeys(["client", "section", "rest", "team"], "object")


def answer(folder):
    lines = dd.read_csv(
        f"{folder}/*.log", sep="\x01", header=None, names=["line"], quoting=csv.QUOTE_NONE, blocksize="32MB"
    )
    table = teams()

    def requests(part):
        return parsed(part["line"], table)[[*TEXTS, "time", "status", "bytes"]]

    found = lines.map_partitions(requests, meta={**TEXTS, **dict.fromkeys(["time", "status", "bytes"], "int64")})
    # Distributed: all requests of a client must lie in one part, or the window would miss the request before.
    found = found.shuffle("client")
    empty = {"team": "object", "hour": "int64", **dict.fromkeys(SUMS, "int64")}
    # Distributed: each part gives its own sums; only these small tables travel.
    return {"table": total(found.map_partitions(per_hour, meta=empty).compute())}


if __name__ == "__main__":
    meter = Meter()
    with start(meter.workers, meter.memory_mb):  # Distributed: a scheduler and worker processes
        meter.ready()
        meter.measure(lambda: answer(meter.folder))
