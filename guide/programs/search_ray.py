"""A search of 32 trials in Ray Tune: a grid, a task for each trial."""

import os
import tempfile

import ray
from meter import Meter
from ray import tune
from search_trial import PENALTIES, RATES, TRIALS, best_of, loss_of

os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "RAY_TRAIN_V2_ENABLED": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


def answer(folder, scratch):
    def trial(config):
        return {"loss": loss_of(config, folder)}  # Tune takes what a trial returns for its last report

    space = {"rate": tune.grid_search(RATES), "penalty": tune.grid_search(PENALTIES)}
    # Distributed: as many trials at a time as the cluster has processors.
    tuner = tune.Tuner(trial, param_space=space, run_config=tune.RunConfig(storage_path=scratch, verbose=0))
    found = {(one.config["rate"], one.config["penalty"]): one.metrics["loss"] for one in tuner.fit()}
    return best_of([found[one["rate"], one["penalty"]] for one in TRIALS])


if __name__ == "__main__":
    meter = Meter()
    # Distributed: a cluster of Ray's on this machine.
    ray.init(num_cpus=meter.workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as scratch:
        meter.ready()
        meter.measure(lambda: answer(meter.folder, scratch))
