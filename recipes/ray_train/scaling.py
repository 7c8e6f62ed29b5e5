"""How many workers Ray Train starts, and with what each: a fixed number, or as many as there is room for (elastic)."""

import os

import ray
from ray.train import ScalingConfig

from workers import require_free

SLOT = "slot"  # the custom resource of which an elastic run's nodes have as many as workers are to be on them
START_SECONDS = 10  # elastic: how long workers are waited for whose node is gone and not yet counted as dead


def scaling_of(config):
    """The ScalingConfig of these settings. Raises SystemExit when there is no room for the (fewest) workers now."""
    need = {"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})}
    # Distributed: so many workers, each with these resources, placed together or not at all.
    # Distributed: SPREAD: on as many nodes as there are; left alone, Ray packs workers together.
    shape = {"use_gpu": config.use_gpu, "resources_per_worker": need, "placement_strategy": "SPREAD"}
    if not config.elastic:
        require_free(config.num_workers, need)
        return ScalingConfig(num_workers=config.num_workers, **shape)
    if SLOT in ray.cluster_resources():
        # Distributed: without it the CPUs that are there for Ray Data would count as room for a lost node's worker.
        need[SLOT] = 1.0
    require_free(config.min_workers, need)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
    # Distributed: from so many workers to so many. Ray Train looks again and again how many there is room for. When
    # that changes, all are started anew from the last checkpoint, in another number.
    return ScalingConfig(
        num_workers=(config.min_workers, config.num_workers),
        elastic_resize_monitor_interval_s=config.resize_seconds,
        **shape,
    )
