"""Log mining with Spark: from raw lines to anomalies, models and a stream that is scored as it comes.

Shows:   parsing with native expressions, one write with a quarantine, Spark SQL, message templates, KMeans on windows
         of time, cross-validated classifiers, a forecast, recommendations, Structured Streaming, and gradient descent
         on an RDD.
Choose:  when the data does not fit one machine, or is on a cluster already. Up to some hundred GB a single-node engine
         (polars, DuckDB) is simpler and faster per core.
Run:     spark-submit --master local-cluster[2,1,1024] main.py config.yaml
Expect:  every line good or quarantined; the incidents in the generated logs found (recall 0.9, precision 0.8 at least).
Source:  Spark's documentation (SQL, MLlib, Structured Streaming guides); each module names the methods it uses.
"""

import json
import os
import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession

from anomalies import anomalies
from explore import explore
from gradient_descent import gradient_descent
from ingest import facts_of, ingest
from models import classify, forecast, recommend
from needs import lacking
from profiles import keep, with_event_log
from runrecord import RunRecord, check_position, load_config
from settings import check_settings, depends_on
from streaming import stream
from templates import templates
from workers import Executors

# Each step reads what the first one wrote, and leaves its results in <checkpoint_dir>/<step>.json.
STEPS = {
    step.__name__: step
    for step in (ingest, explore, templates, anomalies, classify, forecast, recommend, gradient_descent, stream)
}


def main():
    config = check_settings(load_config())
    # Distributed: the tasks' Python must be this one, which has the packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Distributed: this program is the driver; master, memory and the like come from spark-submit. Executors start now.
    spark = with_event_log(SparkSession.builder.appName("log mining"), config).getOrCreate()
    with RunRecord(config.output_dir, 0, 1, role="driver", master=spark.sparkContext.master) as run:
        # Distributed: modules that tasks need travel to the executors.
        for module in Path(__file__).parent.glob("*.py"):
            spark.sparkContext.addPyFile(str(module))
        # Distributed: the tasks themselves say which process they run in; what this program believes is no evidence.
        executors = Executors(spark, config)
        executors.look()
        for number, name in enumerate(config.steps):
            run.progress(number, len(config.steps), name)
            spark.sparkContext.setJobDescription(name)
            result = done_before(config, name) or do(name, spark, config, run, number)
            report(name, result, run, number)
            # Distributed: an executor may have died meanwhile; Spark has repeated its tasks and started another one.
            executors.look()
        run.progress(len(config.steps), len(config.steps), "done")
        executors.close()
    application = spark.sparkContext.applicationId
    spark.stop()
    keep(application, config, run)


def do(name, spark, config, run, number):
    started = time.perf_counter()
    reason = None if name == "ingest" else lacking(name, facts_of(spark, config))
    result = ({"skipped": reason} if reason else STEPS[name](spark, config, run)) | {
        "seconds": round(time.perf_counter() - started, 3),
        "depends_on": depends_on(config, name),
    }
    path = result_path(config, name)
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".partial").write_text(json.dumps(result) + "\n")
    path.with_suffix(".partial").replace(path)
    run.checkpoint(path, 0, number + 1)
    return result


def result_path(config, name):
    return Path(config.checkpoint_dir) / f"{name}.json"


def done_before(config, name):
    """The result of a step that an earlier try of this run has finished, or None.

    Raises SystemExit when it was made with other settings.
    """
    path = result_path(config, name)
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    check_position(path, result.get("depends_on", {}), depends_on(config, name))
    return result


def report(name, result, run, number):
    if name == "ingest":
        run.account(result["read"], result["good"], result["quarantined"])
        run.metric("lines_per_second", result["read"] / result["seconds"], number, unit="lines/s")
    if "skipped" in result:
        run.skip(name, result["skipped"])
    for feature, reason in result.get("left_out", {}).items():
        run.skip(f"{name}: {feature}", reason)
    for key, value in result.items():
        if isinstance(value, (int, float)):
            run.metric(f"{name}/{key}", value, number)


if __name__ == "__main__":
    main()
