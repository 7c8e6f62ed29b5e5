"""Reads log files, and writes them as one Parquet table: good lines by day, and malformed ones beside them with the reason.

One pass over the lines and one commit: either the whole table is there, or none of it.
"""

import bz2
import glob
import gzip
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import zstandard
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Observation
from pyspark.sql import functions as F

from formats import parse

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".zst": zstandard.open}
LONGEST_KEPT = 10_000  # bytes of a malformed line that the quarantine keeps
# A dictionary for free text costs about a quarter of the time; without one, with zstd, the files are half as large again.
PARQUET = {"parquet.enable.dictionary": "false", "parquet.enable.dictionary#method": "true", "compression": "zstd"}


def input_files(config):
    """(paths, format, manifest) of the log files: those that the dataset holds, or those that it points at."""
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    paths = manifest.get("paths") or sorted(glob.glob(f"{config.data_dir}/*.log"))
    return paths, manifest["format"], manifest


def ingest(spark, config, run):
    """Writes <output_dir>/events; returns the numbers of lines that were read, good and quarantined."""
    paths, name, manifest = input_files(config)
    folder = f"{config.output_dir}/events"
    try:
        counts = write_events(spark, paths, name, folder)
    except (PySparkException, Py4JJavaError) as error:
        raise SystemExit(unreadable(error)) from None
    # Counted once more, by who reads what was written.
    written = {row["quality"]: row["count"] for row in spark.read.parquet(folder).groupBy("quality").count().collect()}
    counts["written"] = sum(written.values())
    if counts["written"] != counts["read"] or written.get("malformed", 0) != counts["quarantined"]:
        raise SystemExit(f"{counts['read']:,} lines were read, but {written} were written")
    if counts["quarantined"] > config.max_malformed_share * counts["read"]:
        raise SystemExit(too_many_malformed(spark, counts, folder, name, config))
    return counts | {"located": quarantine(spark, config, run), "malformed": manifest.get("malformed")}


def write_events(spark, paths, name, folder):
    """Parses the lines and writes them by quality and day; returns how many were read, good and quarantined."""
    # Distributed: files are cut into splits (spark.sql.files.maxPartitionBytes), and each split is one task on some executor.
    # Compressed files cannot be cut: one task each.
    lines = spark.read.text(paths).select("value", F.col("_metadata.file_path").alias("file"))
    seen, good = Observation("lines"), F.col("reason").isNull()
    events = (
        parse(lines, name)
        # Distributed: counted by the tasks while they write; only those that succeed count.
        .observe(seen, F.count(F.lit(1)).alias("read"), F.count("reason").alias("quarantined"))
        .withColumns({"quality": F.when(good, "good").otherwise("malformed"), "date": F.when(good, F.to_date("time"))})
        # A good line needs no copy of itself, nor of the name of its file; of a malformed one the bytes are kept as they are.
        .withColumns({"line": F.when(~good, F.col("value").cast("binary")), "file": F.when(~good, F.col("file"))})
        .drop("value")
    )
    # Distributed: each task writes files of its own; the driver lets all of them appear when the last task has succeeded.
    events.write.mode("overwrite").options(**PARQUET).partitionBy("quality", "date").parquet(folder)
    counts = seen.get
    return counts | {"good": counts["read"] - counts["quarantined"]}


def too_many_malformed(spark, counts, folder, name, config):
    """The error's text; what was written goes: it would be mistaken for a result."""
    first = spark.read.parquet(folder).where("quality = 'malformed'").select("line", "reason").first()
    shutil.rmtree(folder, ignore_errors=True)
    return (
        f"{counts['quarantined']:,} of {counts['read']:,} lines are malformed, more than max_malformed_share={config.max_malformed_share:g} allows. "
        f"One of them ({first['reason']}): {bytes(first['line'][:120]).decode(errors='replace')!r}. Is data.format={name} the right format?"
    )


def good_events(spark, config):
    return spark.read.parquet(f"{config.output_dir}/events").where("quality = 'good'")


def quarantine(spark, config, run):
    """Writes <output_dir>/quarantine: file, offset in bytes (of the unpacked file), reason, line; returns the number of its lines.

    A table of the reasons goes into the report.
    """
    malformed = spark.read.parquet(f"{config.output_dir}/events").where("quality = 'malformed'")
    # Distributed: each file with malformed lines is read again by one task, which finds out where they begin.
    found = (
        malformed.select("file", "line", "reason").distinct().rdd.map(lambda row: (row["file"], (bytes(row["line"]), row["reason"])))
        .groupByKey().flatMap(lambda pair: offsets(*pair))
    )  # fmt: skip
    columns, folder = "file string, offset long, reason string, line string", f"{config.output_dir}/quarantine"
    spark.createDataFrame(found, columns).write.mode("overwrite").parquet(folder)
    table = spark.read.parquet(folder)
    reasons = table.groupBy("reason").agg(
        F.count("*").alias("lines"), F.min_by(F.substring("line", 1, 80), "offset").alias("example")
    )
    rows = [row.asDict() for row in reasons.orderBy(F.desc("lines")).collect()]
    run.table("quarantined lines", rows or [{"reason": "none", "lines": 0, "example": ""}])
    return table.count()


def offsets(file, malformed):
    """(file, offset or None, reason, line) of each malformed line [(bytes, reason), ...]; None where the file is not local."""
    reasons, address = dict(malformed), urlparse(file)
    if address.scheme not in ("", "file"):
        return [(file, None, reason, text.decode(errors="replace")) for text, reason in reasons.items()]
    found, offset, path = [], 0, unquote(address.path)
    with OPENERS.get(Path(path).suffix, open)(path, "rb") as chunks:
        for chunk in chunks:
            for line in chunk.splitlines(keepends=True):  # a lone carriage return ends a line, too, for Spark
                text = line.rstrip(b"\r\n")
                if (reason := reasons.get(text)) is not None:
                    found.append((file, offset, reason, text[:LONGEST_KEPT].decode(errors="replace")))
                offset += len(line)
    return found


def unreadable(error):
    """What a failed read means for the user."""
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device: nothing was written. Make room below output_root, or choose another one"
    file = re.search(r"(?:file|s3a?|gs|hdfs):/[^\s\]]+[^\s\].]", text)
    if not file:
        raise error
    damaged = re.search("EOFException|incorrect|invalid|corrupt|ZipException|Truncated", text, re.I)
    return (
        f"{file[0]} {'is cut off or damaged' if damaged else 'cannot be read'}: nothing was written. Mend or remove it, or leave it out "
        "of data.path"
    )
