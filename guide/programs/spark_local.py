"""A session of Spark's with executors of its own on this machine, for the programs that use it."""

import os
import sys

from pyspark.sql import SparkSession


def start(num_workers, memory_mb):
    """Starts it: `num_workers` executors with one core each."""
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    return (
        # Distributed: each executor is a process of its own, as on a cluster.
        SparkSession.builder.master(f"local-cluster[{num_workers},1,{memory_mb}]")
        .config("spark.executor.memory", f"{memory_mb}m")
        .config("spark.driver.memory", "1g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", False)
        .config("spark.log.level", "ERROR")
        .config("spark.sql.session.timeZone", "UTC")
        # Distributed: as many parts behind an exchange as there are workers, four times over.
        .config("spark.sql.shuffle.partitions", 4 * num_workers)
        .getOrCreate()
    )
