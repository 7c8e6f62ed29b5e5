"""Flights by carrier and airport, in Spark: filter, join, window, aggregate, in `workers` executors."""

from meter import Meter
from pyspark.sql import Window
from pyspark.sql import functions as F
from spark_local import start

ORDER = ["time_hour", "minute", "flight", "dep_delay", "arr_delay"]


def answer(spark, folder):
    flights = spark.read.parquet(f"{folder}/flights-*.parquet").where("arr_delay IS NOT NULL")
    planes = spark.read.parquet(f"{folder}/planes.parquet").select("tailnum", "seats")
    # Distributed: the small table goes to all executors, so that the large one need not travel for the join.
    flights = flights.join(F.broadcast(planes), "tailnum")
    before = F.lag("arr_delay").over(Window.partitionBy("tailnum").orderBy(*ORDER))
    table = (
        flights.withColumn("before", before)
        .groupBy("carrier", "origin")
        .agg(
            F.count("*"),
            F.sum("arr_delay").cast("long"),
            F.sum("seats").cast("long"),
            F.count_if((F.col("dep_delay") > 15) & (F.col("before") > 15)),
        )
        .orderBy("carrier", "origin")
    )
    return {"table": [list(row) for row in table.collect()]}


if __name__ == "__main__":
    meter = Meter()
    spark = start(meter.workers, meter.memory_mb)  # Distributed: a driver, a master and executors
    meter.ready()
    meter.measure(lambda: answer(spark, meter.folder))
    spark.stop()
