"""Measures parsing against other engines and other ways in Spark, and memory over input size: make bench RECIPE=spark

Prints the tables of the recipe's README. polars and DuckDB are installed into an environment of the benchmark's own. With
LOGHUB=FOLDER (the loghub collection's *_2k.log files with their *_structured.csv) it also parses those, and compares templates.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from cookbook import ROOT, environments
from cookbook.bench import print_table, run_recipe, say

HERE, PYTHON = Path(__file__).resolve().parent, ROOT / ".venvs/spark/bin/python"
REPEATS = 3

SPARK = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession, functions as F
from formats import parse
kind, source, target, repeats = sys.argv[2:5] + [int(sys.argv[5])]
spark = (SparkSession.builder.master("local[2]").config("spark.driver.memory", "2g").config("spark.ui.enabled", False).config("spark.log.level", "ERROR")
         .config("spark.sql.session.timeZone", "UTC").config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
         .config("spark.sql.files.maxPartitionBytes", "64m").getOrCreate())
PATTERN = r'^(\\S+) \\S+ \\S+ \\[([^\\]]+)\\] "(\\S+) (\\S+) [^"]*" (\\d+) (\\d+|-) "([^"]*)" "([^"]*)" ?(\\S*)$'
NAMES = ["client", "time", "method", "path", "status", "bytes", "referrer", "agent", "request_time"]
def work():
    lines = spark.read.text(source)
    if kind == "regexp":
        fields = {name: F.regexp_extract("value", PATTERN, n + 1) for n, name in enumerate(NAMES)}
        fields["time"] = F.try_to_timestamp(fields["time"], F.lit("dd/MMM/yyyy:HH:mm:ss Z"))
        for name, type_ in (("status", "int"), ("bytes", "bigint"), ("request_time", "double")):
            fields[name] = fields[name].try_cast(type_)
        table = lines.select(*[column.alias(name) for name, column in fields.items()])
    else:
        table = parse(lines, "combined").select(*NAMES)
    table.write.mode("overwrite").parquet(target)
work()
times = []
for _ in range(repeats):
    started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
print("RESULT", json.dumps({"seconds": times, "rows": spark.read.parquet(target).where("status is not null").count()}), flush=True)
"""

OTHERS = """
import json, os, sys, time
os.environ["POLARS_MAX_THREADS"] = "2"
kind, source, target, repeats = sys.argv[1:4] + [int(sys.argv[4])]
PATTERN = r'^(?P<client>\\S+) \\S+ \\S+ \\[(?P<time>[^\\]]+)\\] "(?P<method>\\S+) (?P<path>\\S+) [^"]*" (?P<status>\\d+) (?P<bytes>\\d+|-) "(?P<referrer>[^"]*)" "(?P<agent>[^"]*)" ?(?P<request_time>\\S*)$'
def polars_work():
    import polars as pl
    # In pieces: a whole gigabyte of lines as one column would want several times its size in memory.
    lines = pl.scan_csv(source, has_header=False, separator="\\x01", quote_char=None, new_columns=["value"])
    fields = lines.select(pl.col("value").str.extract_groups(PATTERN)).unnest("value").with_columns(
        pl.col("time").str.to_datetime("%d/%b/%Y:%H:%M:%S %z", strict=False), pl.col("status").cast(pl.Int32, strict=False),
        pl.col("bytes").cast(pl.Int64, strict=False), pl.col("request_time").cast(pl.Float64, strict=False))
    fields.sink_parquet(target, compression="snappy")
def duckdb_work():
    import duckdb
    base = duckdb.connect(); base.execute("SET threads=2")
    names = "['client','time','method','path','status','bytes','referrer','agent','request_time']"
    plain = PATTERN
    import re
    plain = re.sub(r"\\?P<\\w+>", "", PATTERN).replace("'", "''")
    base.execute(f"COPY (SELECT f.client, try_strptime(f.time, '%d/%b/%Y:%H:%M:%S %z') AS time, f.method, f.path, try_cast(f.status AS INT) AS status, try_cast(f.bytes AS BIGINT) AS bytes, f.referrer, f.agent, try_cast(f.request_time AS DOUBLE) AS request_time FROM (SELECT regexp_extract(value, '{plain}', {names}) AS f FROM read_csv('{source}', header=false, sep='\\x01', quote='', escape='', columns={{'value': 'VARCHAR'}}))) TO '{target}' (FORMAT parquet, COMPRESSION snappy)")
work = {"polars": polars_work, "duckdb": duckdb_work}[kind]
work()
times = []
for _ in range(repeats):
    started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
import duckdb
rows = duckdb.sql(f"SELECT count(*) FROM '{target}' WHERE status IS NOT NULL").fetchone()[0]
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
        for name in ("split", "regexp", "polars", "duckdb"):
            say(f"parsing, {name}, repetition {repeat + 1} of {REPEATS}")
            if name in ("split", "regexp"):
                got = run(PYTHON, SPARK, HERE, name, log, f"{target}-{name}", 1)
            else:
                got = run(tools, OTHERS, name, log, f"{target}-{name}.parquet", 1)
            seconds.setdefault(name, []).extend(got["seconds"])
            rows[name] = got["rows"]
    if len(set(rows.values())) > 1:
        raise SystemExit(f"the engines do not agree on the number of good lines: {rows}")
    rate = {name: megabytes / statistics.median(values) for name, values in seconds.items()}
    names = {"split": "Spark, split at the quotes (this recipe)", "regexp": "Spark, one `regexp_extract` a field",
             "polars": "polars, `extract_groups`", "duckdb": "DuckDB, `regexp_extract` with a list of names"}  # fmt: skip
    table = [
        f"| parse {megabytes:,.0f} MB, {names[name]} | {rate[name]:,.0f} MB/s | recipe / this = {rate['split'] / rate[name]:.2f} |"
        for name in names
    ]
    bounds = {
        "recipe / regexp_extract >= 3.5": rate["split"] >= 3.5 * rate["regexp"],
        "recipe / polars >= 0.5": rate["split"] >= 0.5 * rate["polars"],
    }
    return table, bounds


def main():
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        content = run_recipe("spark", 2, root=root)
        environment = root / "tools"
        subprocess.run([environments.uv(), "venv", "-q", environment], check=True)
        subprocess.run(
            [environments.uv(), "pip", "install", "-q", "--python", environment / "bin/python", "polars", "duckdb"],
            check=True,
        )
        big = run_recipe("spark", 2, "scale=bench", "data.parameters.num_lines=5500000", root=root)
        log = root / "all.log"
        with open(log, "wb") as file:
            for path in sorted(Path(big["dataset"]["folder"]).glob("*.log")):
                file.write(path.read_bytes())
        rows, bounds = parse_rates(root, log, environment / "bin/python")
    print_table("spark", content["machine"], rows, bounds)


if __name__ == "__main__":
    main()
