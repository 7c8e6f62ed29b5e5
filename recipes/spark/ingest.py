"""Reads log files, and writes them as one Parquet table: good lines by day, and malformed ones beside them with the reason.

One pass over the lines and one commit: either the whole table is there, or none of it.
"""

import bz2
import glob
import gzip
import json
import lzma
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from pyspark.errors import PySparkException
from pyspark.sql import Observation
from pyspark.sql import functions as F

from formats import parse

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def input_files(config):
    """(paths, format, manifest) of the log files: those that the dataset holds, or those that it points at."""
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    paths = manifest.get("paths") or sorted(glob.glob(f"{config.data_dir}/*.log"))
    return paths, manifest["format"], manifest


def ingest(spark, config, run):
    """Writes <output_dir>/events; returns the numbers of lines that were read, good and quarantined."""
    paths, name, manifest = input_files(config)
    # Distributed: files are cut into splits (spark.sql.files.maxPartitionBytes), and each split is one task on some executor.
    # Compressed files cannot be cut: one task each.
    lines = spark.read.text(paths).select("value", F.col("_metadata.file_path").alias("file"))
    seen = Observation("lines")
    good = F.col("reason").isNull()
    events = (
        parse(lines, name)
        # Distributed: counted by the tasks while they write; only those that succeed count.
        .observe(seen, F.count(F.lit(1)).alias("read"), F.count("reason").alias("quarantined"))
        .withColumns({"quality": F.when(good, "good").otherwise("malformed"), "date": F.when(good, F.to_date("time"))})
        # A good line needs no copy of itself, nor of the name of its file.
        .withColumns({"value": F.when(~good, F.make_valid_utf8("value")), "file": F.when(~good, F.col("file"))})
    )
    folder = f"{config.output_dir}/events"
    try:
        events.write.mode("overwrite").partitionBy("quality", "date").parquet(folder)
    except PySparkException as error:
        raise SystemExit(unreadable(error)) from None
    counts = seen.get
    counts["good"] = counts["read"] - counts["quarantined"]
    # Counted once more, by who reads what was written.
    written = {row["quality"]: row["count"] for row in spark.read.parquet(folder).groupBy("quality").count().collect()}
    counts["written"] = sum(written.values())
    if counts["written"] != counts["read"] or written.get("malformed", 0) != counts["quarantined"]:
        raise SystemExit(f"{counts['read']:,} lines were read, but {written} were written")
    counts["malformed"] = manifest.get("malformed")
    quarantine(spark, config, run)
    return counts


def good_events(spark, config):
    return spark.read.parquet(f"{config.output_dir}/events").where("quality = 'good'")


def quarantine(spark, config, run):
    """Writes <output_dir>/quarantine: file, offset in bytes (of the unpacked file), reason, line; a table of the reasons."""
    events = (
        spark.read.parquet(f"{config.output_dir}/events")
        .where("quality = 'malformed'")
        .select("file", "value", "reason")
    )
    # Distributed: each file with malformed lines is read again by one task, which finds out where they begin.
    found = (
        events.rdd.map(lambda row: (row["file"], (row["value"], row["reason"]))).groupByKey().flatMap(lambda pair: offsets(*pair))
    )  # fmt: skip
    columns = "file string, offset long, reason string, line string"
    spark.createDataFrame(found, columns).write.mode("overwrite").parquet(f"{config.output_dir}/quarantine")
    reasons = spark.read.parquet(f"{config.output_dir}/quarantine").groupBy("reason").agg(
        F.count("*").alias("lines"), F.min_by(F.substring("line", 1, 80), "offset").alias("example")
    )  # fmt: skip
    rows = [row.asDict() for row in reasons.orderBy(F.desc("lines")).collect()]
    run.table("quarantined lines", rows or [{"reason": "none", "lines": 0, "example": ""}])


def offsets(file, malformed):
    """(file, offset or None, reason, line) of each malformed line [(text, reason), ...]; None where the file is not local."""
    reasons, address = dict(malformed), urlparse(file)
    if address.scheme not in ("", "file"):
        return [(file, None, reason, text) for text, reason in malformed]
    found, offset, path = [], 0, unquote(address.path)
    known = {same(text): reason for text, reason in reasons.items()}
    with OPENERS.get(Path(path).suffix, open)(path, "rb") as lines:
        for line in lines:
            text = line.rstrip(b"\r\n").decode(errors="replace")
            if (reason := known.get(same(text))) is not None:
                found.append((file, offset, reason, text))
            offset += len(line)
    return found


def same(text):
    """Java and Python put different numbers of replacement characters for the same bytes."""
    return re.sub("\ufffd+", "\ufffd", text)


def unreadable(error):
    """What a failed read means for the user."""
    text = str(error)
    file = re.search(r"(?:file|s3a?|gs|hdfs):/[^\s\]]+", text)
    what = (
        "is cut off or damaged"
        if re.search("EOFException|incorrect|invalid|corrupt|ZipException", text, re.I)
        else "cannot be read"
    )
    return (
        f"{file[0] if file else 'a log file'} {what} ({text.splitlines()[0][:200]}): nothing was written. Mend or remove it, or leave "
        "it out of data.path"
    )
