"""Flights by carrier and airport, in polars: filter, join, window, aggregate. One process, `workers` threads."""

import os
from pathlib import Path

from meter import Meter

ORDER = ["time_hour", "minute", "flight", "dep_delay", "arr_delay"]


def answer(folder):
    import polars as pl

    flights = pl.scan_parquet(Path(folder) / "flights-*.parquet").filter(pl.col("arr_delay").is_not_null())
    planes = pl.scan_parquet(Path(folder) / "planes.parquet").select("tailnum", "seats")
    before = pl.col("arr_delay").shift(1).over("tailnum", order_by=ORDER)
    table = (
        flights.select("tailnum", "carrier", "origin", *ORDER)
        .join(planes, on="tailnum")
        .with_columns(knock_on=((pl.col("dep_delay") > 15) & (before > 15)).fill_null(False))
        .group_by("carrier", "origin")
        .agg(pl.len(), pl.col("arr_delay").sum().cast(int), pl.col("seats").sum(), pl.col("knock_on").sum())
        .sort("carrier", "origin")
    )
    return {"table": table.collect(engine="streaming").rows()}


if __name__ == "__main__":
    meter = Meter()
    os.environ["POLARS_MAX_THREADS"] = str(meter.workers)
    import polars  # noqa: F401

    meter.ready()
    meter.measure(lambda: answer(meter.folder))
