"""A machine learning workflow as a Kubeflow pipeline, from the data to the served model.

Steps:   data, validation, search, distributed training, gate, registry, served model.
Shows:   steps in processes of their own that exchange artifacts, trials side by side, a training step with several
         workers, retries, cached steps, a gate, a real model server and a smoke test; on a cluster TrainJob or
         PyTorchJob, Katib and KServe do the work.
Choose:  when the way from the data to the served model is to be repeated, by others and on a schedule, and each step
         looked up later.
Run:     python main.py config.yaml num_workers=2
Expect:  accuracy of at least 0.95 through the served endpoint, equal to the offline evaluation's; about a minute
         on two CPU cores.
Source:  Kubeflow's documentation: Pipelines (v2), Trainer, Katib, KServe; the Open Inference Protocol.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import kfp
import yaml
from kfp import compiler, local

from pictures import draw_graph, graph_of, lineage
from pipeline import pipeline_of
from runrecord import RunRecord, load_config
from settings import check_settings

HERE = Path(__file__).resolve().parent


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the model server is stopped on the way out
    config = check_settings(load_config())
    package = Path(config.output_dir) / "pipeline.yaml"
    package.parent.mkdir(parents=True, exist_ok=True)
    # Distributed: the compiled pipeline is a description: any Kubeflow cluster can run the same steps from it.
    pipeline = pipeline_of(config)
    compiler.Compiler().compile(pipeline, str(package))
    spec = next(yaml.safe_load_all(package.read_text()))
    with RunRecord(config.output_dir, 0, 1, role="driver", kfp=kfp.__version__) as run:
        began = time.time()
        try:
            if config.kubeflow_host:
                run_on_cluster(package, config, run)
            else:
                run_here(pipeline, spec, config, run)
        finally:
            report(spec, steps_of(config.output_dir, began), time.time() - began, config, run)


def run_here(pipeline, spec, config, run):
    """Runs every step as a process of this machine, by kfp's own local runner.

    Raises SystemExit when a step fails for good.
    """
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "STEP_RECORDS": f"{config.output_dir}/steps",
        "PIPELINE_PID": str(os.getpid()),
    }
    checkpoints, began = Path(config.checkpoint_dir), time.time()
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="kfp-", dir=config.output_dir) as scratch,
        StepWatcher(spec, config, began, run),
    ):
        os.environ["TMPDIR"] = scratch  # kfp's runner leaves a folder behind for each step
        # Distributed: the steps are processes, as they are pods elsewhere; they meet in files only.
        runner = local.SubprocessRunner(use_venv=False)
        # Distributed: a step whose code and inputs are the same is not run again: so a pipeline that was
        # cut off goes on.
        caching = {"enable_caching": True, "cache_root": str(checkpoints / "steps")}
        local.init(
            runner, pipeline_root=f"{config.output_dir}/artifacts", workspace_root=f"{scratch}/workspace", **caching
        )
        arguments = arguments_of(config) | {"data_dir": config.data_dir, "max_rows": config.max_rows or 0}
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            errors = [record for record in steps_of(config.output_dir, began) if "error" in record]
            why = f"{errors[-1]['step']}: {errors[-1]['error']}" if errors else str(error)
            raise SystemExit(f"the pipeline stopped at step {why}") from None
        finally:
            import steps

            steps.stop_server.__wrapped__(f"{config.output_dir}/server.json")


def run_on_cluster(package, config, run):
    """Hands the compiled pipeline to Kubeflow Pipelines, and waits for its end."""
    import manifests
    import submit

    # Distributed: what the steps will make there, and what has to be there before, to be read and applied by hand.
    manifests.write_all(config, f"{config.output_dir}/manifests")
    arguments = arguments_of(config) | {"data_dir": config.cluster_data_dir, "max_rows": config.max_rows or 0}
    submit.submit(package, arguments, config, run)


def arguments_of(config):
    """The pipeline's own parameters, which a user may change from run to run without compiling it again."""
    found = {key: getattr(config, key) for key in ("learning_rates", "num_epochs", "trial_epochs")}
    return found | {"min_accuracy": float(config.min_accuracy)}  # kfp takes no integer for a float


class StepWatcher:
    """Tells the record which steps have ended, while kfp runs them."""

    def __init__(self, spec, config, began, run):
        self.num_steps = len(graph_of(spec)[0]) - 1 + len(config.learning_rates)
        self.config, self.began, self.run, self.over = config, began, run, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        shown = None
        while not self.over.wait(0.5):
            ended = [record["step"] for record in steps_of(self.config.output_dir, self.began) if "error" not in record]
            if ended != shown:
                self.run.progress(len(ended), self.num_steps, f"last step: {ended[-1]}" if ended else "first step")
                shown = ended

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()


def steps_of(output_dir, since):
    """The records that steps left since then, in the order of their ends."""
    # Distributed: a step says in a file of its own what it did; none of them talks to this program.
    records = [json.loads(path.read_text()) for path in Path(output_dir).glob("steps/*.json")]
    return sorted((record for record in records if record["began"] >= since), key=lambda record: record["ended"])


def report(spec, records, seconds, config, run):
    """Metrics, a table of the steps, the lineage of the artifacts, and the graph with what became of each step."""
    done = {record["step"] for record in records}
    is_whole = any(record["step"] == "smoke_test" and "found" in record for record in records)
    cached = [step for step in graph_of(spec)[0] if is_whole and step.replace("-", "_") not in done]
    report_metrics(records, cached, seconds, run)
    report_steps(records, cached, run)
    if made := lineage(spec, f"{config.output_dir}/artifacts"):
        run.table("lineage", made)
    states = {step: [("cached", "cached")] for step in cached}
    for step in done:
        tries = [record for record in records if record["step"] == step]
        shown = tries if step == "trial" else tries[-1:]
        states[step.replace("_", "-")] = [
            ("failed" if "error" in r else "done", label_of(r, len(tries))) for r in shown
        ]
    draw_graph(config.output_dir, spec, states)


def report_metrics(records, cached, seconds, run):
    """What the steps found, and how long they took of the pipeline's `seconds`."""
    found = {record["step"]: record["found"] for record in records if "found" in record}
    names = {"evaluate": "eval", "smoke_test": "served"}
    if best := found.get("choose") or found.get("tune"):
        run.metric("search/best_score", best["score"], step=1)
        run.metric("search/learning_rate", best["learning_rate"], step=1)
    for step, name in names.items():
        if step in found:
            run.metric(f"{name}/accuracy", found[step]["accuracy"], step=1)
    if "smoke_test" in found:
        run.metric(
            "served/milliseconds_per_request", found["smoke_test"]["milliseconds_per_request"], step=1, unit="ms"
        )
    inside = sum(record["ended"] - record["began"] for record in records)
    run.metric("pipeline/seconds", seconds, step=1, unit="s")
    run.metric("pipeline/seconds_inside_steps", inside, step=1, unit="s")
    run.metric("pipeline/cached_steps", len(cached), step=1)


def report_steps(records, cached, run):
    """A row for each step: when, how long, where, and what it found."""
    rows = [
        {
            "step": r["step"],
            "began after s": round(r["began"] - records[0]["began"], 1),
            "seconds": round(r["ended"] - r["began"], 2),
            "host": r["host"],
            "process": r["pid"],
            "found": words_of(r),
        }
        for r in sorted(records, key=lambda r: r["began"])
    ]
    not_run = {"began after s": "", "seconds": "", "host": "", "process": "", "found": "taken from the cache"}
    rows += [{"step": step.replace("-", "_"), **not_run} for step in cached]
    if rows:
        run.table("steps", rows)


def label_of(record, num_tries):
    """What the picture says below a step's name."""
    seconds = f"{record['ended'] - record['began']:.1f} s"
    if record["step"] == "trial":
        return f"{seconds}, rate {record['found']['learning_rate']:g}" if "found" in record else seconds
    return f"{seconds}, {num_tries} tries" if num_tries > 1 else seconds


def words_of(record):
    if "error" in record:
        return f"failed: {record['error'].splitlines()[0][:90]}"
    short = {key: value for key, value in record["found"].items() if not isinstance(value, (list, dict))}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in short.items()
    )


if __name__ == "__main__":
    main()
