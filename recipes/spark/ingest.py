"""Reads log files, and writes them as one Parquet table: good lines by day, and malformed ones
beside them with the reason.

One pass over the lines and one commit: either the whole table is there, or none of it.
"""

import bz2
import glob
import gzip
import io
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import zstandard
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Observation
from pyspark.sql import functions as F

from formats import events_of, is_blank, parse, window_start
from logformat import FormatError, dated_by, from_dict, resolve, w3c_columns
from needs import Facts


def open_zst(path, mode):
    """All frames of a .zst, by lines: zstandard.open ends with the first one, and knows no lines."""
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, mode), read_across_frames=True))


OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".zst": open_zst}
LONGEST_KEPT = 10_000  # bytes of a malformed line that the quarantine keeps
# A dictionary for free text costs about a quarter of the time; without one, with zstd, the
# files are half as large again.
PARQUET = {"parquet.enable.dictionary": "false", "parquet.enable.dictionary#method": "true", "compression": "zstd"}


# A path that Spark reads as it is: ASCII only (Java in the locale C), no signs of a pattern, no hidden file (_ or .).
PLAIN = re.compile(r"(?=[ -~]*\Z)[^*?\[\]{}\\:^%]*/[^*?\[\]{}\\:^%_.][^*?\[\]{}\\:^%]*")


def input_files(config):
    """(paths, Format, manifest) of the log files: those that the dataset holds, or those that it points at."""
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    paths = manifest.get("paths") or sorted(glob.glob(f"{glob.escape(config.data_dir)}/*.log"))
    try:
        return paths, from_dict(manifest["entry"]) if "entry" in manifest else resolve(manifest["format"]), manifest
    except FormatError as error:
        raise SystemExit(str(error)) from None


def links(paths, config, all_of_them=False):
    """{path as Spark may have it: path}: links with plain names in <output_dir>/input stand for names that
    Spark would take for patterns."""
    folder, found = Path(config.output_dir) / "input", {}
    for number, path in enumerate(paths):
        if "://" in path:
            found[path] = path
            continue
        path = os.path.abspath(path)  # as Spark names it
        suffix = Path(path).suffix.lower()
        unpacked = suffix in OPENERS and Path(path).suffix != suffix  # Spark knows .gz, and takes .GZ for a text
        if PLAIN.fullmatch(path) and not unpacked and not all_of_them:
            found[path] = path
            continue
        link = folder / f"{number:06d}{suffix if suffix in OPENERS else '.log'}"
        try:
            folder.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path)
        except OSError as error:
            raise SystemExit(
                f"{path}: Spark takes such a name for a pattern, and {folder} cannot hold a link to it "
                f"({error.strerror}): rename the file"
            ) from None
        found[str(link)] = path
    return found


def literal(path):
    """A path for `spark.read`, which would take some of its characters for a pattern."""
    return path if "://" in path else re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


def ingest(spark, config, run):
    """Writes <output_dir>/events; returns the numbers of lines that were read, good and quarantined."""
    paths, fmt, manifest = input_files(config)
    folder, known = f"{config.output_dir}/events", links(paths, config)
    try:
        lines, columns, blank = read_lines(spark, known, fmt)
        counts = write_events(lines, fmt, folder, columns)
        counts["blank"] += blank.get["blank"] if blank else 0
    except (PySparkException, Py4JJavaError) as error:
        raise SystemExit(unreadable(error, known)) from None
    if not counts["read"]:
        raise SystemExit(f"there is no line in the {len(paths)} files of data.path: nothing was written")
    # A second count, of the rows that are in the written files.
    written = {
        row["quality"]: row["count"] for row in spark.read.parquet(literal(folder)).groupBy("quality").count().collect()
    }
    counts["written"] = sum(written.values())
    if counts["written"] != counts["read"] or written.get("malformed", 0) != counts["quarantined"]:
        raise SystemExit(f"{counts['read']:,} lines were read, but {written} were written")
    if counts["quarantined"] > config.max_malformed_share * counts["read"]:
        raise SystemExit(too_many_malformed(spark, counts, folder, fmt, config, known))
    return counts | {"located": quarantine(spark, config, run, known), "malformed": manifest.get("malformed")}


def read_lines(spark, known, fmt):
    """(lines with their file, {columns: files} of W3C files, the Observation that counts blank lines).

    The third is for events of several lines, out of which blank ones are taken here; elsewhere it is None.
    Raises SystemExit when Spark would read other files than the manifest's.
    """
    # Distributed: files are cut into splits (spark.sql.files.maxPartitionBytes), and each
    # split is one task on some executor.
    # Compressed files cannot be cut: one task each.
    lines = spark.read.text([literal(path) for path in known]).select(
        "value", F.col("_metadata.file_path").alias("file"), *extra_columns(fmt)
    )
    addresses = {plain_path(address): address for address in lines.inputFiles()}
    if not any("://" in path for path in known) and set(addresses) != set(known):
        missing, more = sorted(set(known) - set(addresses)), sorted(set(addresses) - set(known))
        raise SystemExit(
            f"Spark would not read the files that were asked for: {missing[:3]} left out, {more[:3]} besides. Rename "
            "them"
        )
    blank = Observation("blank") if fmt.start else None
    if blank:
        lines = lines.observe(blank, F.count_if(is_blank(fmt)).alias("blank")).where(~is_blank(fmt))
    if fmt.may_lack_year():
        lines = lines.withColumn(
            "dated", dated(fmt, {known[path]: address for path, address in addresses.items() if path in known})
        )
    if fmt.start:
        lines = events_of(lines, fmt.start)
    columns = {}
    if fmt.w3c:
        # Distributed: the lines that name the columns, wherever they stand; a file has one list of them, or is refused.
        named = lines.where(F.col("value").startswith("#Fields:")).distinct().collect()
        for row in named:
            columns.setdefault(tuple(w3c_columns(row["value"])), []).append(row["file"])
        several = [
            file for file in {row["file"] for row in named} if sum(file in files for files in columns.values()) > 1
        ]
        if several:
            raise SystemExit(
                f"{known.get(plain_path(several[0]), several[0])} changes its columns ('#Fields:') in the middle: cut "
                "it there into two files"
            )
        lines = lines.where(~F.col("value").startswith("#"))  # directives are no events
    return lines.drop("block", "modified"), columns, blank


def extra_columns(fmt):
    return [
        *([F.col("_metadata.file_modification_time").alias("modified")] if fmt.may_lack_year() else []),
        *([F.col("_metadata.file_block_start").alias("block")] if fmt.start else []),
    ]


def plain_path(address):
    """The path of a local file's address; other addresses as they are."""
    parts = urlparse(address)
    return unquote(parts.path) if parts.scheme in ("", "file") else address


def dated(fmt, addresses):
    """A column: year * 10,000 + month * 100 + day up to which a line without a year is of that year; later ones
    are of the year before."""
    last = F.col("modified") + F.expr("INTERVAL 1 DAY")
    column = F.year(last) * 10_000 + F.month(last) * 100 + F.dayofmonth(last)
    column = F.lit(fmt.year * 10_000 + 1231) if fmt.year else column
    groups = {}
    for path, (year, day) in fmt.years.items():
        if path in addresses and (
            fmt.year or not Path(path).exists() or (year, day) != dated_by(Path(path).stat().st_mtime)
        ):
            groups.setdefault(year * 10_000 + day, []).append(addresses[path])
    for number, files in groups.items():
        column = F.when(F.col("file").isin(files), number).otherwise(column)
    return column


def write_events(lines, fmt, folder, columns=None):
    """Parses the lines and writes them by quality and day; returns how many were read, good, quarantined and blank."""
    seen, good, blank = Observation("lines"), F.col("reason").isNull(), F.col("blank")
    numbers = {"read": ~blank, "quarantined": ~blank & ~good, "blank": blank}
    events = (
        parse(lines, fmt, columns)
        .withColumn("blank", is_blank(fmt))
        # Distributed: counted by the tasks while they write; only those that succeed count. All at once: each
        # observation of its own costs some percent.
        .observe(seen, *[F.count_if(which).alias(name) for name, which in numbers.items()])
        .where(~blank)
        .drop("blank")
        .withColumns({"quality": F.when(good, "good").otherwise("malformed"), "date": F.when(good, F.to_date("time"))})
        # A good line needs no copy of itself, nor of the name of its file; of a malformed one
        # the bytes are kept as they are.
        .withColumns({"line": F.when(~good, F.col("value").cast("binary")), "file": F.when(~good, F.col("file"))})
        .drop("value")
    )
    # Distributed: each task writes files of its own; the driver lets all of them appear when
    # the last task has succeeded.
    events.write.mode("overwrite").options(**PARQUET).partitionBy("quality", "date").parquet(folder)
    counts = seen.get
    return counts | {"good": counts["read"] - counts["quarantined"]}


def too_many_malformed(spark, counts, folder, fmt, config, known):
    """The error's text; what was written goes: it would be mistaken for a result."""
    malformed = spark.read.parquet(literal(folder)).where("quality = 'malformed'")
    first = malformed.select("line", "reason").first()
    worst = malformed.groupBy("file").count().orderBy(F.desc("count"), "file").first()
    shutil.rmtree(folder, ignore_errors=True)
    file = known.get(plain_path(worst["file"]), worst["file"])
    return (
        f"{counts['quarantined']:,} of {counts['read']:,} lines are malformed, more than "
        f"max_malformed_share={config.max_malformed_share:g} allows. One of them ({first['reason']}): "
        f"{bytes(first['line'][:120]).decode(errors='replace')!r}. {worst['count']:,} of them are in {file}. Is "
        f"data.format={fmt.pattern if fmt.name == 'regex' else fmt.name} the right format? data.format=auto looks "
        "which one is"
    )


FACTS = {}  # output_dir -> what is known of its events: measured once


def facts_of(spark, config):
    """What the good events have, for the steps that need it."""
    if config.output_dir not in FACTS:
        events = good_events(spark, config)
        own = [name for name in events.columns if name not in ("file", "line", "reason", "quality", "date")]
        counts = [F.count(name).alias(name) for name in own]
        window = F.count_distinct(window_start(config.window_minutes)).alias("windows of time")
        row = events.agg(F.count(F.lit(1)).alias("lines in all"), window, *counts).first()
        found = tuple(name for name in own if row[name])
        FACTS[config.output_dir] = Facts(found, row["lines in all"], row["windows of time"], config.window_minutes)
    return FACTS[config.output_dir]


def is_web(events):
    """Whether they are a web server's: a status of a regular expression may be a text."""
    return dict(events.dtypes).get("status") == "int"


def good_events(spark, config):
    return spark.read.parquet(literal(f"{config.output_dir}/events")).where("quality = 'good'")


def quarantine(spark, config, run, known):
    """Writes <output_dir>/quarantine: file, offset in bytes (of the unpacked file), reason, line;
    returns the number of its lines.

    A table of the reasons goes into the report.
    """
    malformed = spark.read.parquet(literal(f"{config.output_dir}/events")).where("quality = 'malformed'")
    # Distributed: each file with malformed lines is read again by one task, which finds out where they begin.
    found = (
        malformed.select("file", "line", "reason")
        .distinct()
        .rdd.map(lambda row: (row["file"], (bytes(row["line"]), row["reason"])))
        .groupByKey()
        .flatMap(lambda pair: offsets(*pair, known))
    )
    columns, folder = "file string, offset long, reason string, line string", f"{config.output_dir}/quarantine"
    spark.createDataFrame(found, columns).write.mode("overwrite").parquet(folder)
    table = spark.read.parquet(literal(folder))
    reasons = table.groupBy("reason").agg(
        F.count("*").alias("lines"), F.min_by(F.substring("line", 1, 80), "offset").alias("example")
    )
    rows = [row.asDict() for row in reasons.orderBy(F.desc("lines")).collect()]
    run.table("quarantined lines", rows or [{"reason": "none", "lines": 0, "example": ""}])
    return table.count()


def offsets(file, malformed, known):
    """(file, offset or None, reason, line) of each malformed line [(bytes, reason), ...]; None
    where the file is not local.

    `known`: {path as Spark has it: path}. Of an event of several lines the first one is looked for.
    """
    reasons, path = {line.partition(b"\n")[0]: (reason, line) for line, reason in malformed}, plain_path(file)
    if "://" in path:
        return [(file, None, reason, text.decode(errors="replace")) for reason, text in reasons.values()]
    found, offset = [], 0
    if known.get(path, path) != path:
        file = Path(known[path]).as_uri()
    with OPENERS.get(Path(path).suffix, open)(path, "rb") as chunks:
        for chunk in chunks:
            for line in chunk.splitlines(keepends=True):  # a lone carriage return ends a line, too, for Spark
                text = (line.removeprefix(b"\xef\xbb\xbf") if not offset else line).rstrip(b"\r\n")
                if (entry := reasons.get(text)) is not None:
                    found.append((file, offset, entry[0], entry[1][:LONGEST_KEPT].decode(errors="replace")))
                offset += len(line)
    return found


def unreadable(error, known):
    """What a failed read means for the user. `known`: {path as Spark has it: path}."""
    text = str(error)
    if "StackOverflowError" in text:
        return (
            "a line is too long for the regular expression: where a group is repeated, as in (a|b)* or (?:\\w+ )*, "
            "Java needs stack for each repetition. Nothing was written. Say the group with a + behind, (a|b)*+, where "
            "nothing of it has to be given back, or repeat a set, [ab]*"
        )
    if "No space left on device" in text:
        return "No space left on device: nothing was written. Make room below output_root, or choose another one"
    named = [path for address, path in known.items() if address in unquote(text)]
    file = re.search(r"(?:file|s3a?|gs|hdfs):/[^\s\]]+[^\s\].]", text)
    if not named and not file:
        raise error
    damaged = re.search("EOFException|incorrect|invalid|corrupt|ZipException|Truncated", text, re.I)
    return (
        f"{max(named, key=len) if named else file[0]} {'is cut off or damaged' if damaged else 'cannot be read'}: "
        "nothing was written. Mend or remove it, or leave it out of data.path"
    )
