"""Feature engineering with Dask: raw flights to a feature store, and models that say which flights will be late.

Shows:   a bag of tasks, data frames (shuffle, look-back over partitions, joins), arrays, lazy graphs, dask-ml,
         scikit-learn over joblib, adaptive and unequal clusters, and what happens when a worker dies.
Choose:  when pandas and scikit-learn code has outgrown one core or one machine's memory and should stay as it is.
Run:     python main.py config.yaml num_workers=2
Expect:  AUC of at least 0.70 for "more than 15 minutes late", on the last fifth of the year, in under a
         minute on two cores.
Source:  Dask's and dask-ml's documentation; each module names the methods it uses.
"""

import contextlib
import json
import time
from pathlib import Path

import dask
from distributed import performance_report

from features import features
from graph import draw_graph
from ingest import ingest
from learn import learn
from profiles import profiled
from runrecord import RunRecord, check_position, load_config
from settings import check_settings, depends_on
from storage import open_folder
from store import store
from workers import Pool, Workers


def main():
    config = check_settings(load_config())
    with RunRecord(config.output_dir, 0, 1, role="driver", dask=dask.__version__) as run:
        # Distributed: a cluster of processes, or (chosen by config) threads or processes of this machine, which get
        # the same graphs.
        workers = Workers(config) if config.mode == "distributed" else Pool(config)
        # Distributed: a page of what each worker of a cluster did when, kept with the run.
        page = Path(config.output_dir, "traces/dask-performance.html")
        page.parent.mkdir(exist_ok=True)
        with (
            performance_report(filename=str(page)) if workers.client else contextlib.nullcontext(),
            profiled(config, workers.client),
        ):
            work(config, run, workers)
        workers.close()


def work(config, run, workers):
    """All steps, one after the other.

    Each reads what the one before has written, and a step that was done before is not done again.
    """
    steps = {
        "ingest": lambda done: ingest(config, run),
        "features": lambda done: features(config, done["ingest"]["days"]),
        "store": lambda done: store(config, run),
        "learn": lambda done: learn(config, run, workers.client, done["store"]["chosen"]),
    }
    done, results = {}, open_folder(config.checkpoint_dir)
    for number, (name, step) in enumerate(steps.items()):
        if name not in config.steps:
            continue
        run.progress(number, len(steps), name)
        # Distributed: a worker may have died meanwhile; Dask has given its tasks to others, and its nanny has
        # started it again.
        workers.look()
        if f"{name}.json" not in results.files():
            started = time.perf_counter()
            result = step(done) | {"seconds": round(time.perf_counter() - started, 3)}
            result["depends_on"] = depends_on(config, name)
            results.write(f"{name}.json", json.dumps(result).encode() + b"\n")
            run.checkpoint(f"{results.address}/{name}.json", 0, number + 1)
        done[name] = json.loads(results.read(f"{name}.json"))
        check_position(f"{results.address}/{name}.json", done[name].get("depends_on", {}), depends_on(config, name))
        for key, value in done[name].items():
            if isinstance(value, (int, float)):
                run.metric(f"{name}/{key}", value, number)
        if name == "ingest":
            # Distributed: each task has counted its own rows; together they must be all there are.
            run.account(*(done[name][key] for key in ("read", "good", "quarantined")))
            # Distributed: and has said in which process it ran.
            workers.note(done[name]["places"])
    run.progress(len(steps), len(steps), "done")
    draw_graph(config)


if __name__ == "__main__":
    main()
