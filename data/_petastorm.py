"""What the builders of Petastorm stores share: a Spark session on this machine, and Parquet
with a Unischema beside it."""

import os
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
from _common import DatasetError
from petastorm.codecs import ScalarCodec
from petastorm.etl.dataset_metadata import materialize_dataset
from petastorm.unischema import Unischema, UnischemaField
from pyspark.sql import SparkSession
from pyspark.sql.types import FloatType, LongType


def local_spark(folder, name):
    address_of(folder)
    # Java writes a name that its locale cannot spell as question marks.
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable  # the executors' Python must have the packages
    return (
        SparkSession.builder.master("local[2]")
        .appName(name)
        .config("spark.ui.enabled", False)
        .config("spark.local.dir", str(folder / "scratch"))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", 4)
        .config("spark.ui.showConsoleProgress", False)
        .config("spark.sql.execution.arrow.pyspark.enabled", True)
        .getOrCreate()
    )


def address_of(folder):
    """The folder as Petastorm and Spark take it: they decode nothing, so blanks and umlauts stand there as they are."""
    path = str(folder.absolute())
    if bad := set(path) & set("#?,"):
        raise DatasetError(
            f"{path}: Petastorm's addresses end at {min(bad)!r}; put the dataset into a folder whose path lacks it"
        )
    return f"file://{path}"


def scalar_schema(name, columns):
    """A Unischema of `id` int64 and float32 columns: plain Parquet, which every reader understands."""
    fields = [UnischemaField("id", np.int64, (), ScalarCodec(LongType()), False)]
    return Unischema(
        name, fields + [UnischemaField(column, np.float32, (), ScalarCodec(FloatType()), False) for column in columns]
    )


def write_store(spark, frame, folder, schema, rows_per_group):
    """Writes a store in the order of `id`; returns its number of rows.

    A row group is what a reader reads, and shuffles, at once: here it is a file. Small stores get seven of them, so
    that workers have something to share; the last one is smaller: groups seldom divide evenly.
    """
    url, count = address_of(folder), frame.count()
    rows_per_group = min(rows_per_group, count // 7 + 1)
    with materialize_dataset(spark, url, schema):
        frame.coalesce(1).sortWithinPartitions("id").write.option("maxRecordsPerFile", rows_per_group).option(
            "compression", "snappy"
        ).parquet(url)
        # Before Petastorm notes the names of the files: Spark's differ from run to run, and the same
        # data shall be the same bytes.
        for number, path in enumerate(sorted(folder.glob("part-*.parquet"))):
            path.rename(folder / f"part-{number:05d}.parquet")
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def tidy(folder):
    """Takes away what Spark leaves beside the data."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    for pattern in (".*.crc", "_SUCCESS"):
        for path in folder.rglob(pattern):
            path.unlink()
