"""Runs in the Spark recipe's environment: every step of the recipe on datasets of logs, in one local session.

Arguments: a scratch folder, and [[name, path, format, options], ...] as JSON. Prints `FOUND {name: {step: outcome}}`,
an outcome being the step's result, {"skipped": reason}, {"refused": what a user would see} or {"crash": a traceback}.
"""

import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "recipes/spark"), str(ROOT / "runrecord")]

import log_files  # noqa: E402 - the path comes first
import yaml  # noqa: E402
from _common import DatasetError  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402

import main  # noqa: E402


def all_steps(spark, recipe, folder, path, name, options):
    folders = {key: str(folder / key.removesuffix("_dir")) for key in ("data_dir", "output_dir", "checkpoint_dir")}
    config = SimpleNamespace(**recipe, seed=0, **folders)
    for made in folders.values():
        Path(made).mkdir(parents=True)
    try:
        manifest = log_files.build(folder, path, name, **options)
    except DatasetError as error:
        return {"build": {"refused": str(error)}}
    Path(config.data_dir, "manifest.json").write_text(json.dumps(manifest))
    found = {"build": {"format": manifest["format"], "files": len(manifest["paths"])}}
    for number, step in enumerate(main.STEPS):
        try:
            found[step] = main.do(step, spark, config, Mock(), number)
        except SystemExit as error:
            found[step] = {"refused": str(error)}
        except Exception:  # a crash is an answer, too
            found[step] = {"crash": traceback.format_exc()[-3000:]}
        if step == "ingest" and found[step].keys() & {"refused", "crash"}:
            break
    return found


if __name__ == "__main__":
    scratch, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    recipe = yaml.safe_load((ROOT / "conf/recipe/spark.yaml").read_text())
    recipe |= {"model_rows": 300, "num_rounds": 2}
    conf = {key: value for key, value in recipe["spark_conf"].items() if key.startswith("spark.sql.")}
    conf |= {"spark.ui.enabled": False, "spark.driver.host": "127.0.0.1", "spark.sql.shuffle.partitions": 1}
    conf |= {"spark.ui.showConsoleProgress": False, "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1"}
    spark = SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    found = {name: all_steps(spark, recipe, scratch / name, *case) for name, *case in cases}
    print("FOUND", json.dumps(found, default=str))
