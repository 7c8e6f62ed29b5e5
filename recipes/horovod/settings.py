"""What is derived from the settings, and which settings make no sense together. Used by both frameworks.

As a program it checks a config without loading a framework: python settings.py CONFIG.yaml NUM_WORKERS
"""

import math
import sys

from runrecord import load_config

CHOICES = {
    "mode": ["pytorch", "tensorflow"],
    "controller": ["gloo", "mpi"],
    "op": ["average", "adasum"],
    "compression": ["none", "fp16"],
}
AT_LEAST_ONE = ["num_epochs", "global_batch_size", "base_batch_size", "backward_passes_per_step", "commit_every_steps"]


def check_settings(config, framework, world_size=None):
    """Checks the settings of the program that is written in `framework`.

    Returns the config, or raises SystemExit with the value, what was expected and what to do.
    """
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(choices)}")
    if config.mode != framework:
        program = {"pytorch": "main.py", "tensorflow": "main_tensorflow.py"}[config.mode]
        raise SystemExit(f"mode={config.mode} is another program: start {program}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    if config.op == "adasum" and config.controller != "mpi":
        raise SystemExit("op=adasum needs controller=mpi: Horovod's Gloo has no Adasum")
    if config.elastic and (config.controller != "gloo" or config.mode != "pytorch"):
        raise SystemExit(
            f"elastic=true needs controller=gloo and mode=pytorch, not {config.controller} and {config.mode}"
        )
    if config.elastic and (config.fusion_threshold_mb is not None or config.cycle_time_ms is not None):
        # ParameterManager::SetTensorFusionThresholdBytes writes out of bounds when Horovod 0.28.1 starts a second time
        # in a process with one of them fixed, which is what an elastic restart does: a segmentation fault.
        raise SystemExit(
            "elastic=true needs fusion_threshold_mb=null and cycle_time_ms=null: Horovod 0.28.1 cannot restart with "
            "them fixed"
        )
    if world_size is not None:
        if config.global_batch_size < world_size:
            raise SystemExit(
                f"global_batch_size={config.global_batch_size} is less than world_size={world_size}: some workers "
                f"would have nothing to do; set it to {world_size} at least"
            )
        if config.op == "adasum" and world_size & (world_size - 1):
            raise SystemExit(f"op=adasum needs a power of two workers, not {world_size}")
    return config


def num_steps_of(config, batches):
    """Optimizer steps of the whole run."""
    wanted = config.num_epochs * batches.steps_per_epoch
    return wanted if config.max_steps is None else min(wanted, config.max_steps)


def depends_on(config, num_rows):
    """What a position (epoch, step) depends on: with other values the same position stands for other rows."""
    return {"seed": config.seed, "global_batch_size": config.global_batch_size, "num_rows": num_rows}


def learning_rate_at(epoch, config):
    """The learning rate at a fractional epoch.

    It grows with the batch, after a warm-up from 0, and ends at 0 (half a cosine).

    Sources: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2 (linear scaling, warm-up); Loshchilov and
    Hutter 2016, "SGDR" (cosine). The rate follows the global batch and not, as in Horovod's own examples, the number of
    workers: there each worker keeps its batch, here the global one is set.
    """
    peak = config.learning_rate * config.global_batch_size / config.base_batch_size
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.num_epochs - config.warmup_epochs, 1e-9)
    return peak * (1 + math.cos(math.pi * min(share, 1.0))) / 2


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    checked = load_config(config_words)
    check_settings(checked, checked.mode, int(num_workers))
