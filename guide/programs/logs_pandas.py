"""Requests by team and hour out of access logs, in pandas: parse, filter, join, window, aggregate. One thread.

The functions are what the programs for Dask and Ray Data use on their parts.
"""

from pathlib import Path

import pandas as pd

PATTERN = (
    r'^(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "\S+ /(?P<section>\w*)(?P<rest>\S*) [^"]*" '
    r'(?P<status>\d+) (?P<bytes>\d+) "[^"]*" "[^"]*" \S+$'
)
PAUSE = 1800  # seconds without a request that end a session
KEYS, SUMS = ["team", "hour"], ["requests", "errors", "bytes", "sessions"]


def teams():
    return pd.read_csv(Path(__file__).with_name("sections.csv"))


def parsed(lines, teams):
    """The requests in the lines of a log; lines that are none are left out."""
    fields = lines.astype("object").str.extract(PATTERN).dropna(subset="status").merge(teams, on="section")
    time = pd.to_datetime(fields["time"], format="%d/%b/%Y:%H:%M:%S %z").astype("datetime64[s, UTC]").astype("int64")
    return fields.assign(time=time, status=fields["status"].astype("int64"), bytes=fields["bytes"].astype("int64"))


def per_hour(requests):
    """The sums of all requests of some clients, by team and hour."""
    requests = requests.sort_values(["time", "section", "rest"])
    gap = (requests["time"] - requests.groupby("client")["time"].shift(1)).fillna(PAUSE + 1)
    requests = requests.assign(
        hour=requests["time"] // 3600,
        requests=1,
        errors=(requests["status"] >= 500).astype("int64"),
        sessions=(gap > PAUSE).astype("int64"),
    )
    return requests.groupby(KEYS, as_index=False)[SUMS].sum()


def total(parts):
    """The sums of several parts, as rows."""
    table = parts.groupby(KEYS)[SUMS].sum().sort_index()
    return [[team, int(hour), *map(int, row)] for (team, hour), row in zip(table.index, table.to_numpy(), strict=True)]


if __name__ == "__main__":
    from meter import Meter

    meter = Meter()
    meter.ready()

    def answer():
        texts = [path.read_text().splitlines() for path in sorted(Path(meter.folder).glob("*.log"))]
        lines = pd.concat([pd.Series(text, name="line") for text in texts])
        return {"table": total(per_hour(parsed(lines, teams())))}

    meter.measure(answer)
