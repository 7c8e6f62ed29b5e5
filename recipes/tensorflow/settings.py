"""What is derived from the settings, and which settings make no sense together.

As a program it checks a config without loading TensorFlow: python settings.py CONFIG.yaml NUM_WORKERS
"""

import math
import sys

from runrecord import load_config

CHOICES = {
    "strategy": ["multi_worker"],
    "communication": ["auto", "ring", "nccl"],
    "auto_shard": ["data", "file", "off"],
}
AT_LEAST_ONE = ["num_epochs", "global_batch_size", "base_batch_size"]


def check_settings(config, world_size=None):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(choices)}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.max_restarts < 0:
        raise SystemExit(f"max_restarts={config.max_restarts}: expected a whole number of at least 0")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    if world_size is not None and config.global_batch_size % world_size:
        raise SystemExit(
            f"global_batch_size={config.global_batch_size} cannot be divided among {world_size} workers: "
            f"try {config.global_batch_size // world_size * world_size or world_size}"
        )
    return config


def num_steps_of(config, batches):
    """Optimizer steps of the whole run."""
    wanted = config.num_epochs * batches.steps_per_epoch
    return wanted if config.max_steps is None else min(wanted, config.max_steps)


def learning_rate_at(epoch, config):
    """The learning rate at a fractional epoch: grows with the batch, after a warm-up from 0, and ends at 0 (half a cosine).

    Sources: Goyal et al. 2017, "Accurate, Large Minibatch SGD" (linear scaling, warm-up); Loshchilov and Hutter 2016, "SGDR".
    """
    peak = config.learning_rate * config.global_batch_size / config.base_batch_size
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.num_epochs - config.warmup_epochs, 1e-9)
    return peak * (1 + math.cos(math.pi * min(share, 1.0))) / 2


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config(config_words), int(num_workers))
