"""What is derived from the settings, and which settings make no sense together.

As a program it checks a config without loading Ray: python settings.py CONFIG.yaml NUM_WORKERS
"""

import math
import sys

from runrecord import load_config

AT_LEAST_ONE = ["num_epochs", "global_batch_size", "base_batch_size", "num_shards", "rows_per_file"]
AT_LEAST_ONE += ["shuffle_rows", "num_data_cpus", "num_tasks", "object_mb"]


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    for key in ("max_restarts", "prefetch_batches"):
        if getattr(config, key) < 0:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 0")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    if config.object_store_mb < 80:
        raise SystemExit(f"object_store_mb={config.object_store_mb}: Ray wants at least 80")
    shards, workers, batch = config.num_shards, config.num_workers, config.global_batch_size
    if config.mode == "core":
        return config
    if config.elastic:
        check_elastic(config)
    elif shards % workers:
        raise SystemExit(
            f"num_shards={shards} cannot be divided among {workers} workers: set it to {math.lcm(shards, workers)}, "
            "or another multiple of the number of workers"
        )
    if batch % shards:
        raise SystemExit(
            f"global_batch_size={batch} cannot be divided among num_shards={shards}: each step takes the same number "
            f"of rows from every shard; try {batch // shards * shards or shards}"
        )
    return config


def check_elastic(config):
    """Raises SystemExit when the workers could not become fewer, or more, with these settings."""
    if config.mode != "pytorch":
        raise SystemExit(f"elastic=true needs mode=pytorch, not {config.mode}")
    if not 1 <= config.min_workers <= config.num_workers:
        raise SystemExit(
            f"min_workers={config.min_workers}: expected a whole number from 1 to the number of workers, "
            f"{config.num_workers}"
        )
    if not config.max_restarts:
        raise SystemExit(
            "elastic=true with max_restarts=0: to Ray Train a lost worker is a failure, and the first one would end "
            "the run. Set max_restarts to the number of losses after which the run may go on, such as 3"
        )
    if config.num_shards < config.num_workers:
        raise SystemExit(
            f"num_shards={config.num_shards} are too few for {config.num_workers} workers: each needs one at least"
        )


def num_steps_of(config, num_rows):
    """(steps of an epoch, steps of the whole run)"""
    steps_per_epoch = -(-num_rows // config.global_batch_size)
    wanted = config.num_epochs * steps_per_epoch
    return steps_per_epoch, wanted if config.max_steps is None else min(wanted, config.max_steps)


def depends_on(config, num_rows):
    """What a position (epoch) depends on: with other values the same position stands for other rows."""
    return {
        "seed": config.seed,
        "global_batch_size": config.global_batch_size,
        "num_shards": config.num_shards,
        "shuffle_rows": config.shuffle_rows,
        "num_rows": num_rows,
    }


def learning_rate_at(epoch, config):
    """The rate at a fractional epoch: grows with the batch, after a warm-up from 0, and ends at 0 (half a cosine).

    Sources: Goyal et al. 2017, "Accurate, Large Minibatch SGD" (linear scaling, warm-up); Loshchilov and
    Hutter 2016, "SGDR".
    """
    peak = config.learning_rate * config.global_batch_size / config.base_batch_size
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.num_epochs - config.warmup_epochs, 1e-9)
    return peak * (1 + math.cos(math.pi * min(share, 1.0))) / 2


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={num_workers}"]))
