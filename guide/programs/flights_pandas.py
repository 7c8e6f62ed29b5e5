"""Flights by carrier and airport, in pandas: filter, join, window, aggregate. One process, one thread.

The functions are what the programs for Dask and Ray Data use on their parts.
"""

from pathlib import Path

import pandas as pd

ORDER = ["time_hour", "minute", "flight", "dep_delay", "arr_delay"]
COLUMNS = ["tailnum", "carrier", "origin", *ORDER]
KEYS, SUMS = ["carrier", "origin"], ["flights", "arr_delay", "seats", "knock_on"]


def planes_of(folder):
    return pd.read_parquet(Path(folder) / "planes.parquet", columns=["tailnum", "seats"])


def flown(flights, planes):
    """The flights that arrived, with the seats of their planes."""
    return flights[flights["arr_delay"].notna()].merge(planes, on="tailnum")


def per_airport(flights):
    """The sums of all flights of some planes, by carrier and airport."""
    flights = flights.sort_values(ORDER)
    before = flights.groupby("tailnum")["arr_delay"].shift(1).fillna(0)
    flights = flights.assign(flights=1, knock_on=((flights["dep_delay"] > 15) & (before > 15)).astype("int64"))
    return flights.groupby(KEYS, as_index=False)[SUMS].sum()


def total(parts):
    """The sums of several parts, as rows."""
    table = parts.groupby(KEYS)[SUMS].sum().astype("int64").sort_index()
    return [[*key, *map(int, row)] for key, row in zip(table.index, table.to_numpy(), strict=True)]


if __name__ == "__main__":
    from meter import Meter

    meter = Meter()
    meter.ready()

    def answer():
        paths = sorted(Path(meter.folder).glob("flights-*.parquet"))
        flights = pd.concat([pd.read_parquet(path, columns=COLUMNS) for path in paths])
        return {"table": total(per_airport(flown(flights, planes_of(meter.folder))))}

    meter.measure(answer)
