"""Measures raw flights to features, by this recipe, by pandas and by polars in one process: make bench RECIPE=dask

Prints the table of the recipe's README. polars is installed into an environment of the benchmark's own. All three read
the same Parquet, make the same features and write Parquet; the recipe also checks each row, and accounts for it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import print_table, say, watched
from cookbook import ROOT, run_folder
from cookbook.prepare.tools import uv

HERE, PYTHON = ROOT / "recipes/dask", ROOT / ".venvs/dask/bin/python"
REPEATS = 3  # of each, by turns

PANDAS = """
import sys, time
started = time.perf_counter()
from pathlib import Path
import pandas as pd
sys.path.insert(0, sys.argv[1])
import features as f
data, out = Path(sys.argv[2]), Path(sys.argv[3])
begun = time.perf_counter()
flights = pd.concat([pd.read_parquet(path) for path in sorted(data.glob("flights-*.parquet"))], ignore_index=True)
flights["id"] = flights.index
days = pd.to_datetime(flights[["year", "month", "day"]])
flights["scheduled"] = days + pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min")
counts = flights.groupby(flights["scheduled"].dt.strftime("%Y-%m-%d")).size().to_dict()
_, split = f.calendar_of(counts, 60000, 0.2)
flights = f.recent_delays(flights.set_index("scheduled")).reset_index()
weather = pd.read_parquet(data / "weather.parquet", columns=["origin", "time_hour", *f.WEATHER])
planes = pd.read_parquet(data / "planes.parquet", columns=["tailnum", "year", "seats"])
planes = planes.rename(columns={"year": "built"})
airports = pd.read_parquet(data / "airports.parquet", columns=["faa", "lat", "lon", "alt"])
airports.columns = ["dest", "dest_lat", "dest_lon", "dest_alt"]
flights = flights.merge(weather, on=["origin", "time_hour"], how="left")
flights = flights.merge(planes, on="tailnum", how="left")
flights = flights.merge(airports, on="dest", how="left")
flights = f.calendar_features(flights, split)
train = flights[(flights["part"] == "train") & flights["late"].notna()]
counted = []
for name in f.ENCODED:
    count = train.groupby([name, "fold"])["late"].agg(["sum", "count"]).reset_index()
    counted.append(count.rename(columns={name: "value"}).assign(column=name))
flights = f.encode(flights, *f.encodings(pd.concat(counted), train["late"].sum(), len(train)))
flights[["id", "scheduled", "part", "late", *f.CATEGORIES, *f.NUMERIC]].to_parquet(out / "features.parquet")
print("RESULT", time.perf_counter() - begun, float(flights["origin_delay_2h"].sum()), flush=True)
"""

POLARS = """
import os, sys, time
os.environ["POLARS_MAX_THREADS"] = "2"
from pathlib import Path
import polars as pl
import math
data, out = Path(sys.argv[2]), Path(sys.argv[3])
begun = time.perf_counter()
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
f = pl.read_parquet(str(data / "flights-*.parquet")).with_row_index("id")
minutes = pl.col("hour").cast(pl.Int64) * 60 + pl.col("minute")
f = f.with_columns(scheduled=pl.datetime("year", "month", "day") + pl.duration(minutes=minutes))
f = f.with_columns(left=pl.col("scheduled") + pl.duration(minutes=pl.col("dep_delay"))).sort("scheduled", "id")
for who in ("origin", "carrier"):
    delay = pl.col("dep_delay")
    events = f.filter(delay.is_not_null() & delay.is_not_nan()).select(who, "left", "dep_delay").sort("left")
    events = events.with_columns(total=delay.cum_sum().over(who), number=delay.cum_count().over(who)).drop("dep_delay")
    for name, moment in (("last", pl.col("scheduled")), ("first", pl.col("scheduled") - pl.duration(hours=2))):
        # Departures strictly before the moment: the one with the last running sum.
        asked = f.select("id", who, moment=moment - pl.duration(microseconds=1)).sort("moment")
        found = asked.join_asof(events, left_on="moment", right_on="left", by=who, strategy="backward").select(
            "id",
            pl.col("total").fill_null(0.0).alias(f"{name}_total"),
            pl.col("number").fill_null(0).alias(f"{name}_number"),
        )
        f = f.join(found, on="id", how="left")
    count = pl.col("last_number").cast(pl.Int64) - pl.col("first_number").cast(pl.Int64)
    delay = (pl.col("last_total") - pl.col("first_total")) / count
    f = f.with_columns(delay.alias(f"{who}_delay_2h"), count.cast(pl.Float64).alias(f"{who}_flights_2h"))
    f = f.drop("last_total", "last_number", "first_total", "first_number")
weather = pl.read_parquet(data / "weather.parquet").select("origin", "time_hour", *WEATHER)
f = f.join(weather, on=["origin", "time_hour"], how="left")
planes = pl.read_parquet(data / "planes.parquet").select("tailnum", pl.col("year").alias("built"), "seats")
f = f.join(planes, on="tailnum", how="left")
airports = pl.read_parquet(data / "airports.parquet").select(
    pl.col("faa").alias("dest"),
    pl.col("lat").alias("dest_lat"),
    pl.col("lon").alias("dest_lon"),
    pl.col("alt").alias("dest_alt"),
)
f = f.join(airports, on="dest", how="left")
per_day = f.group_by(pl.col("scheduled").dt.date().alias("date")).len().sort("date")
per_day = per_day.with_columns(before=pl.col("len").cum_sum() - pl.col("len"))
split = per_day.filter(pl.col("before") >= 0.8 * len(f))["date"][0]
moment, delay = pl.col("scheduled").dt, pl.col("arr_delay")
hours, day = moment.hour() + moment.minute() / 60, moment.ordinal_day()
f = f.with_columns(
    time_sine=(hours * (2 * math.pi / 24)).sin(),
    time_cosine=(hours * (2 * math.pi / 24)).cos(),
    year_sine=(day * (2 * math.pi / 365.25)).sin(),
    year_cosine=(day * (2 * math.pi / 365.25)).cos(),
    hour=moment.hour().cast(pl.Float64),
    weekday=(moment.weekday() - 1).cast(pl.Float64),
    month=moment.month().cast(pl.Float64),
    weekend=(moment.weekday() > 5).cast(pl.Float64),
    plane_age=moment.year() - pl.col("built"),
    late=(delay > 15).cast(pl.Float64),
    known=delay.is_not_null() & delay.is_not_nan(),
    part=pl.when(moment.date() < split).then(pl.lit("train")).otherwise(pl.lit("test")),
    fold=pl.col("id") % 5,
)
train = f.filter((pl.col("part") == "train") & pl.col("known"))
prior = train["late"].mean()
for name in ("carrier", "dest", "tailnum"):
    whole = train.group_by(name).agg(pl.col("late").sum().alias("s"), pl.len().alias("n"))
    own = train.group_by(name, "fold").agg(pl.col("late").sum().alias("fs"), pl.len().alias("fn"))
    f = f.join(whole, on=name, how="left").join(own, on=[name, "fold"], how="left")
    without = pl.col("part") == "train"
    s = pl.col("s").fill_null(0.0) - pl.when(without).then(pl.col("fs").fill_null(0.0)).otherwise(0.0)
    own_n = pl.col("fn").fill_null(0).cast(pl.Int64)
    n = pl.col("n").fill_null(0).cast(pl.Int64) - pl.when(without).then(own_n).otherwise(0)
    f = f.with_columns(((s + 50 * prior) / (n + 50)).alias(f"{name}_late_share")).drop("s", "n", "fs", "fn")
f.write_parquet(out / "features.parquet", compression="snappy")
print("RESULT", time.perf_counter() - begun, float(f["origin_delay_2h"].fill_nan(None).sum()), flush=True)
"""


def recipe(copies, root):
    """(seconds of the steps, peak memory in MB of the whole family, run.json)."""
    words = [
        "recipe=dask",
        "recipe.steps=[ingest,features]",
        f"data.parameters.num_copies={copies}",
        f"output_root={root}",
        "resume=never",
    ]
    *_, peak = watched([sys.executable, "-m", "cookbook", *words], cwd=ROOT, only=".venvs/dask")
    content = run_folder.load(root / "dask/latest")
    return content["metrics"]["ingest/seconds"] + content["metrics"]["features/seconds"], peak, content


def alone(python, program, data, out):
    text, _, peak = watched([python, "-c", program, HERE, data, out], {"PYTHONPATH": str(HERE)})
    (line,) = [line for line in text.splitlines() if line.startswith("RESULT ")]
    seconds, check = map(float, line.split()[1:])
    return seconds, peak, check


def main():
    with tempfile.TemporaryDirectory() as root:
        root, rows = Path(root), []
        tools = root / "tools"
        subprocess.run([uv(), "venv", "-q", tools], check=True)
        subprocess.run([uv(), "pip", "install", "-q", "--python", tools / "bin/python", "polars"], check=True)
        for copies in (1, 10):
            found, checks = {"recipe": [], "pandas": [], "polars": []}, set()
            for repeat in range(REPEATS):
                say(f"{copies} x the flights, repetition {repeat + 1} of {REPEATS}")
                *measured, content = recipe(copies, root)
                found["recipe"].append(measured)
                data = Path(content["dataset"]["folder"])
                for name, python, program in (("pandas", PYTHON, PANDAS), ("polars", tools / "bin/python", POLARS)):
                    *measured, check = alone(python, program, data, root)
                    found[name].append(measured)
                    checks.add(round(check, 3))
            if len(checks) > 1:
                raise SystemExit(f"pandas and polars do not make the same features: {checks}")
            middle = {
                name: [statistics.median(column) for column in zip(*values, strict=True)]
                for name, values in found.items()
            }
            say(json.dumps(middle))
            count = content["account"]["read"]
            for name, (seconds, peak) in middle.items():
                what = "recipe, 2 workers" if name == "recipe" else f"{name}, one process"
                rows.append(
                    f"| {count:,} flights, raw to features: {what} | {seconds:.1f} s, peak {peak:,.0f} MB | recipe / "
                    f"this = {middle['recipe'][0] / seconds:.2f} of the time, {middle['recipe'][1] / peak:.2f} of the "
                    "memory |"
                )
    print_table("dask", content["machine"], rows, {})


if __name__ == "__main__":
    main()
