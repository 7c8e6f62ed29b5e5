"""Where the training rows are read from: the store as it is, or what Spark's converter makes of a data frame."""

import contextlib
import os
import sys
from pathlib import Path
from urllib.parse import urlparse

import torch.distributed as dist

from readers import address_of, columns_of


@contextlib.contextmanager
def open_store(config, manifest):
    """The folder of the training rows. With reader=converter it exists for the time of the block only."""
    folder = f"{config.data_dir}/train"
    if config.reader != "converter":
        yield folder
        return
    answer, converter, spark = [None], None, None
    if dist.get_rank() == 0:  # Distributed: one rank runs Spark, the others only need to know where the result is.
        converter, spark = convert(folder, manifest, config)
        answer = [urlparse(converter.cache_dir_url).path]
    # Distributed: rank 0's answer, on all ranks; until it is there they wait.
    dist.broadcast_object_list(answer, 0)
    yield answer[0]
    # Distributed: nobody may still be reading.
    dist.barrier()
    if converter:
        converter.delete()
        spark.stop()


def convert(folder, manifest, config):
    """(converter, Spark session) of a data frame of the training rows.

    `make_spark_converter` writes it once, as Parquet.
    """
    from petastorm.spark import SparkDatasetConverter, make_spark_converter
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["LC_ALL"] = "C.UTF-8"  # Java writes a name that its locale cannot spell as question marks
    cache = Path(config.output_dir).absolute() / "scratch/converter"
    cache.mkdir(parents=True, exist_ok=True)
    spark = (
        SparkSession.builder.master("local[1]")
        .appName("petastorm")
        .config("spark.ui.enabled", False)
        .config("spark.ui.showConsoleProgress", False)
        .config(SparkDatasetConverter.PARENT_CACHE_DIR_URL_CONF, address_of(cache))
        .getOrCreate()
    )
    frame = spark.read.parquet(folder).select(*columns_of(manifest))
    # Several files, so that there is a row group for each shard.
    frame = frame.repartitionByRange(4 * config.num_shards, "id").sortWithinPartitions("id")
    return make_spark_converter(frame, parquet_row_group_size_bytes=8 << 20), spark
