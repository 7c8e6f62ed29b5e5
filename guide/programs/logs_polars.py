"""Requests by team and hour out of access logs, in polars: parse, filter, join, window, aggregate. Threads."""

import os
from pathlib import Path

from meter import Meter

PATTERN = (
    r'^(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "\S+ /(?P<section>\w*)(?P<rest>\S*) [^"]*" '
    r'(?P<status>\d+) (?P<bytes>\d+) "[^"]*" "[^"]*" \S+$'
)
PAUSE = 1800  # seconds without a request that end a session


def answer(folder):
    import polars as pl

    lines = pl.scan_csv(
        Path(folder) / "*.log", has_header=False, separator="\x01", quote_char=None, new_columns=["line"]
    )
    teams = pl.scan_csv(Path(__file__).with_name("sections.csv"))
    requests = (
        lines.select(pl.col("line").str.extract_groups(PATTERN))
        .unnest("line")
        .filter(pl.col("status").is_not_null())
        .join(teams, on="section")
        .with_columns(
            pl.col("time").str.to_datetime("%d/%b/%Y:%H:%M:%S %z").dt.epoch("s"),
            pl.col("status", "bytes").cast(int),
        )
    )
    gap = pl.col("time") - pl.col("time").shift(1).over("client", order_by=["time", "section", "rest"])
    table = (
        requests.with_columns(session=gap.is_null() | (gap > PAUSE), hour=pl.col("time") // 3600)
        .group_by("team", "hour")
        .agg(pl.len(), (pl.col("status") >= 500).sum(), pl.col("bytes").sum(), pl.col("session").sum())
        .sort("team", "hour")
    )
    return {"table": table.collect(engine="streaming").rows()}


if __name__ == "__main__":
    meter = Meter()
    os.environ["POLARS_MAX_THREADS"] = str(meter.workers)
    import polars  # noqa: F401

    meter.ready()
    meter.measure(lambda: answer(meter.folder))
