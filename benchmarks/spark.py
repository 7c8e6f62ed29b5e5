"""Measures parsing against other engines and other ways in Spark, and memory over input size: make bench RECIPE=spark

Prints the tables of the recipe's README. polars and DuckDB are installed into an environment of the benchmark's
own. With LOGHUB=FOLDER (the loghub collection's *_2k.log files with their *_structured.csv) it also parses
those, and compares templates.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import print_table, run_recipe, say, watched
from cookbook import ROOT, run_folder
from cookbook.prepare.tools import uv

HERE, PYTHON = ROOT / "recipes/spark", ROOT / ".venvs/spark/bin/python"
REPEATS = 3  # of each engine, by turns; each time in a new process, after a run that warms it up

SPARK = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession, functions as F
from formats import parse
from ingest import PARQUET, write_events
kind, source, target, repeats = sys.argv[2:5] + [int(sys.argv[5])]
spark = (SparkSession.builder.master("local[2]").config("spark.driver.memory", "2g")
         .config("spark.ui.enabled", False).config("spark.log.level", "ERROR")
         .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
         .config("spark.sql.session.timeZone", "UTC").config("spark.sql.files.maxPartitionBytes", "64m")
         .config("spark.driver.extraJavaOptions", "-XX:+UseParallelGC")
         .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS").getOrCreate())
PATTERN = r'^(\\S+) \\S+ \\S+ \\[([^\\]]+)\\] "(\\S+) (\\S+) [^"]*" (\\d+) (\\d+|-) "([^"]*)" "([^"]*)" ?(\\S*)$'
NAMES = ["client", "time", "method", "path", "status", "bytes", "referrer", "agent", "request_time"]
def work():
    if kind == "ingest":
        lines = spark.read.text(source).select("value", F.col("_metadata.file_path").alias("file"))
        return write_events(lines, "combined", target)
    lines = spark.read.text(source)
    if kind == "regexp":
        fields = {name: F.regexp_extract("value", PATTERN, n + 1) for n, name in enumerate(NAMES)}
        fields["time"] = F.try_to_timestamp(fields["time"], F.lit("dd/MMM/yyyy:HH:mm:ss Z"))
        for name, type_ in (("status", "int"), ("bytes", "bigint"), ("request_time", "double")):
            fields[name] = fields[name].try_cast(type_)
        table = lines.select(*[column.alias(name) for name, column in fields.items()])
    else:
        table = parse(lines, "combined").select(*NAMES)
    table.write.mode("overwrite").options(**PARQUET).parquet(target)
work()
times = []
for _ in range(repeats):
    started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
good = "status is not null and agent is not null" + (" and quality = 'good'" if kind == "ingest" else "")
rows = spark.read.parquet(target).where(good).count()
print("RESULT", json.dumps({"seconds": times, "rows": rows}), flush=True)
"""

OTHERS = """
import json, os, sys, time
os.environ["POLARS_MAX_THREADS"] = "2"
kind, source, target, repeats = sys.argv[1:4] + [int(sys.argv[4])]
PATTERN = (
    r'^(?P<client>\\S+) \\S+ \\S+ \\[(?P<time>[^\\]]+)\\] "(?P<method>\\S+) (?P<path>\\S+) [^"]*" (?P<status>\\d+) '
    r'(?P<bytes>\\d+|-) "(?P<referrer>[^"]*)" "(?P<agent>[^"]*)" ?(?P<request_time>\\S*)$'
)
def polars_work():
    import polars as pl
    # In pieces: a whole gigabyte of lines as one column would want several times its size in memory.
    lines = pl.scan_csv(source, has_header=False, separator="\\x01", quote_char=None, new_columns=["value"])
    fields = lines.select(pl.col("value").str.extract_groups(PATTERN)).unnest("value").with_columns(
        pl.col("time").str.to_datetime("%d/%b/%Y:%H:%M:%S %z", strict=False),
        pl.col("status").cast(pl.Int32, strict=False), pl.col("bytes").cast(pl.Int64, strict=False),
        pl.col("request_time").cast(pl.Float64, strict=False))
    fields.sink_parquet(target, compression="zstd")
def duckdb_work():
    import duckdb
    base = duckdb.connect(); base.execute("SET threads=2")
    names = "['client','time','method','path','status','bytes','referrer','agent','request_time']"
    plain = PATTERN
    import re
    plain = re.sub(r"\\?P<\\w+>", "", PATTERN).replace("'", "''")
    lines = f"read_csv('{source}', header=false, sep='\\x01', quote='', escape='', columns={{'value': 'VARCHAR'}})"
    columns = (
        "f.client, try_strptime(f.time, '%d/%b/%Y:%H:%M:%S %z') AS time, f.method, f.path, "
        "try_cast(f.status AS INT) AS status, try_cast(f.bytes AS BIGINT) AS bytes, f.referrer, f.agent, "
        "try_cast(f.request_time AS DOUBLE) AS request_time"
    )
    query = f"SELECT {columns} FROM (SELECT regexp_extract(value, '{plain}', {names}) AS f FROM {lines})"
    base.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
work = {"polars": polars_work, "duckdb": duckdb_work}[kind]
work()
times = []
for _ in range(repeats):
    started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
import duckdb
rows = duckdb.sql(f"SELECT count(*) FROM '{target}' WHERE status IS NOT NULL").fetchall()[0][0]
print("RESULT", json.dumps({"seconds": times, "rows": rows}), flush=True)
"""


def run(python, program, *arguments):
    done = subprocess.run([python, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or len(lines) != 1:
        raise SystemExit(f"a benchmark program failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(lines[0])


def parse_rates(folder, log, tools):
    """Rows of the table: MB/s of each engine, the same lines to Parquet with snappy."""
    megabytes, target = os.path.getsize(log) / 1e6, str(folder / "out")
    seconds, rows = {}, {}
    for repeat in range(REPEATS):
        for name in ("split", "ingest", "regexp", "polars", "duckdb"):
            say(f"parsing, {name}, repetition {repeat + 1} of {REPEATS}")
            if name in ("split", "ingest", "regexp"):
                got = run(PYTHON, SPARK, HERE, name, log, f"{target}-{name}", 1)
            else:
                got = run(tools, OTHERS, name, log, f"{target}-{name}.parquet", 1)
            seconds.setdefault(name, []).extend(got["seconds"])
            say(f"{megabytes / got['seconds'][-1]:,.0f} MB/s, {got['rows']:,} good lines")
            rows[name] = got["rows"]
    if len(set(rows.values())) > 1:
        raise SystemExit(f"the engines do not agree on the number of good lines: {rows}")
    rate = {name: megabytes / statistics.median(values) for name, values in seconds.items()}
    names = {
        "split": "Spark, this recipe's `parse`",
        "ingest": "the same with reasons, counts and quarantine, by day (this recipe's `ingest`)",
        "regexp": "Spark, one `regexp_extract` a field",
        "polars": "polars, `extract_groups`",
        "duckdb": "DuckDB, `regexp_extract` with a list of names",
    }
    table = [
        f"| parse {megabytes:,.0f} MB, {names[name]} | {rate[name]:,.0f} MB/s | recipe / this = "
        f"{rate['split'] / rate[name]:.2f} |"
        for name in names
    ]
    bounds = {
        "recipe / regexp_extract >= 3.5": rate["split"] >= 3.5 * rate["regexp"],
        "recipe / polars >= 0.5": rate["split"] >= 0.5 * rate["polars"],
    }
    return table, bounds


LOGHUB = """
import json, sys
from pathlib import Path
import pandas as pd
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession, functions as F
from formats import parse
from templates import template_of
spark = (SparkSession.builder.master("local[2]").config("spark.ui.enabled", False)
         .config("spark.driver.host", "127.0.0.1").getOrCreate())
for name in ("Apache", "BGL", "HDFS", "Linux", "OpenSSH"):
    path = Path(sys.argv[2]) / f"{name}_2k.log"
    truth = pd.read_csv(f"{path}_structured.csv")
    log_format = {"Linux": "syslog", "OpenSSH": "syslog"}.get(name, name.lower())
    lines = spark.read.text(str(path)).coalesce(1).withColumn("line", F.monotonically_increasing_id() + 1)
    rows = parse(lines, log_format).select("line", "reason", template_of(F.col("message")).alias("template")).toPandas()
    both = truth.merge(rows, left_on="LineId", right_on="line")
    assert len(both) == len(truth) == len(rows), (len(both), len(truth), len(rows))
    # Grouping accuracy (Zhu et al. 2019): a line counts when all lines of its template, and only those,
    # have one EventId.
    found = both.groupby("template")["line"].apply(frozenset)
    wanted = set(both.groupby("EventId")["line"].apply(frozenset))
    right = sum(len(group) for group in found if group in wanted)
    parsed = float(rows["reason"].isna().mean())
    print("RESULT", json.dumps([name, parsed, right / len(both), len(found), both["EventId"].nunique()]), flush=True)
"""


def loghub(folder, root):
    """Rows of the table over real logs, where LOGHUB names their folder."""
    text, *_ = watched([PYTHON, "-c", LOGHUB, HERE, folder], {"SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(HERE)})
    found = [json.loads(line.partition("RESULT ")[2]) for line in text.splitlines() if "RESULT " in line]
    rows = [
        f"| {name}, 2,000 lines | {parsed:.4f} of the lines parsed | templates: grouping accuracy {accuracy:.3f} "
        f"({ours} found, {theirs} by people) |"
        for name, parsed, accuracy, ours, theirs in found
    ]
    content = run_recipe(
        "spark",
        2,
        "data=log_files",
        f"data.path={folder}/BGL_2k.log",
        "data.format=bgl",
        "recipe.steps=[ingest,classify]",
        root=root,
    )
    scores = {name: value for name, value in content["metrics"].items() if name.endswith("_f1")}
    said = ", ".join(
        f"{name.removeprefix('classify/').removesuffix('_f1').replace('_', ' ')} {value:.3f}"
        for name, value in scores.items()
    )
    rows.append(f"| BGL, alerts among its lines | F1: {said} | |")
    return rows, {"parsed >= 0.99 of each real log": min(parsed for _, parsed, *_ in found) >= 0.99}


def memory(root):
    """Peak memory of the executors while they ingest ten times as much."""
    peaks = {}
    for lines in (550_000, 5_500_000):
        say(f"ingesting {lines:,} lines")
        words = [
            "recipe=spark",
            "recipe.steps=[ingest]",
            f"data.parameters.num_lines={lines}",
            f"output_root={root}",
            "resume=never",
        ]
        *_, peaks[lines] = watched(
            [sys.executable, "-m", "cookbook", *words], cwd=ROOT, only="CoarseGrainedExecutorBackend"
        )
    small, large = peaks.values()
    say(f"peak memory in MB: {peaks}")
    row = (
        "| peak memory of the two executors, 1 GB of logs against 100 MB "
        f"| {large:,.0f} MB against {small:,.0f} MB | {large / small:.2f} |"
    )
    return [row], {"memory, 1 GB / 100 MB <= 1.3": large <= 1.3 * small}


def main():
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        environment = root / "tools"
        subprocess.run([uv(), "venv", "-q", environment], check=True)
        subprocess.run(
            [uv(), "pip", "install", "-q", "--python", environment / "bin/python", "polars", "duckdb"],
            check=True,
        )
        rows, bounds = memory(root)
        content = run_folder.load(root / "spark/latest")
        log = root / "all.log"
        with open(log, "wb") as file:
            for path in sorted(Path(content["dataset"]["folder"]).glob("*.log")):
                file.write(path.read_bytes())
        found = [parse_rates(root, log, environment / "bin/python")]
        found += [loghub(os.environ["LOGHUB"], root)] if "LOGHUB" in os.environ else []
    for more, own_bounds in found:
        rows, bounds = rows + more, bounds | own_bounds
    print_table("spark", content["machine"], rows, bounds)


if __name__ == "__main__":
    main()
