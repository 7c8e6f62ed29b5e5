"""What kfp costs: the same steps run by kfp's local runner, and called as functions. Run: make bench RECIPE=kubeflow

One worker, one learning rate, so that both sides do the same work one after the other; the two ways take turns, the
median of each counts. The server is started and stopped in both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import print_table
from cookbook import ROOT
from cookbook.prepare import datasets, environments
from cookbook.report import pages
from cookbook.settings import compose_recipe, worker_settings
from tests.helpers import Silent

HERE = ROOT / "recipes/kubeflow"
REPEATS = 5
DIRECT = """
import json, os, sys, time, types
import steps, pipeline
config = types.SimpleNamespace(**json.load(open(sys.argv[1])))
out, began = config.output_dir, time.perf_counter()
os.environ["PIPELINE_PID"] = str(os.getpid())
settings = pipeline.settings_of_training(config, False)
rows, model, predictions = f"{out}/rows", f"{out}/model", f"{out}/predictions"
steps.ingest(config.data_dir, 0, rows)
steps.validate(rows)
scores = [steps.trial(rows, rate, config.trial_epochs, settings)["score"] for rate in config.learning_rates]
rate = steps.choose(scores, config.learning_rates)["learning_rate"]
steps.train(rows, rate, config.num_epochs, settings, model)
accuracy = steps.evaluate(rows, model, predictions)["accuracy"]
steps.gate(accuracy, config.min_accuracy)
folder = steps.register(model, accuracy, f"{out}/registry", "digits")["folder"]
url = steps.deploy(folder, "digits", 0, 60, f"{out}/server.json")["url"]
served = steps.smoke_test(url, "digits", rows, predictions, config.min_accuracy, 60)["accuracy"]
steps.stop_server(f"{out}/server.json")
print(json.dumps({"seconds": time.perf_counter() - began, "served": served}))
"""


def main():
    words = ["cluster.num_workers=1", "recipe.learning_rates=[0.03]", "recipe.num_epochs=6", "recipe.min_accuracy=0.9"]
    config, _ = compose_recipe("kubeflow", words)
    python, _ = environments.ensure("kubeflow", config["cache_dir"], Silent(), "bench")
    with tempfile.TemporaryDirectory() as folder:
        data_dir, _ = datasets.ensure(
            config["data"], config["cache_dir"], python, Silent(), Path(folder) / "data.log", "bench"
        )
        found = {"kfp": [], "functions": []}
        for number in range(REPEATS):
            for way in found:
                out = Path(folder) / f"{way}-{number}"
                out.mkdir()
                settings = worker_settings(config, data_dir, out)
                (out / "config.yaml").write_text(json.dumps(settings))
                found[way].append(run(way, python, out))
                print(f"{way} {number + 1} of {REPEATS}: {found[way][-1]:.2f} s", file=sys.stderr)
        num_steps = len(list((Path(folder) / "kfp-0/steps").glob("*.json")))
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
    each = (medians["kfp"] - medians["functions"]) / num_steps
    rows = [
        f"| called as functions, in one process | {medians['functions']:.2f} s ({span(found['functions'])}) | 1.00 |",
        (
            f"| kfp's local runner, {num_steps} steps | {medians['kfp']:.2f} s ({span(found['kfp'])}) | "
            f"{medians['kfp'] / medians['functions']:.2f} |"
        ),
        f"| kfp, more per step | {each:.2f} s | |",
    ]
    starts = starts_of(python)
    rows.append(
        "| a step's start: Python, kfp's own modules, NumPy, PyTorch | "
        + ", ".join(f"{seconds:.2f} s" for seconds in starts)
        + f" | kfp's modules / kfp's cost of a step = {starts[1] / each:.2f} |"
    )
    print_table("kubeflow", pages.machine(), rows, {})


def starts_of(python):
    """Seconds that a new process takes for Python, and for kfp's modules, NumPy and PyTorch beyond that."""
    programs = ("pass", "import kfp.dsl.executor_main", "import numpy", "import torch")
    environment = {**os.environ, "_KFP_RUNTIME": "true"}  # as kfp starts a step: without its compiler and client
    found = [[] for _ in programs]
    for _ in range(2 * REPEATS):
        for seconds, program in zip(found, programs, strict=True):
            began = time.perf_counter()
            subprocess.run([python, "-c", program], env=environment, check=True)
            seconds.append(time.perf_counter() - began)
    bare, kfp, numpy, torch = map(statistics.median, found)
    return [bare, kfp - bare, numpy - bare, torch - numpy]


def run(way, python, out):
    """Seconds of the workflow itself, without the start of Python and the imports of kfp."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    if way == "functions":
        argv = [python, "-c", DIRECT, out / "config.yaml"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
    subprocess.run(
        [python, HERE / "main.py", out / "config.yaml"], env=environment, capture_output=True, text=True, check=True
    )
    events = [json.loads(line) for path in out.glob("workers/driver*.jsonl") for line in path.read_text().splitlines()]
    return next(event["value"] for event in events if event.get("name") == "pipeline/seconds")


def span(seconds):
    return f"{min(seconds):.2f} to {max(seconds):.2f}"


if __name__ == "__main__":
    began = time.time()
    main()
    print(f"\n{time.time() - began:.0f} s in all", file=sys.stderr)
