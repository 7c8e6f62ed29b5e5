"""What is derived from the settings, and which settings make no sense together.

As a program it checks a config without loading PyTorch: python settings.py CONFIG.yaml NUM_WORKERS
"""

import math
import sys

from runrecord import load_config

CHOICES = {
    "mode": ["ddp", "ft_ddp", "fsdp", "tensor_parallel", "pipeline", "collectives", "single"],
    "backend": ["auto", "gloo", "nccl"],
    "precision": ["float32", "bfloat16"],
    "schedule": ["gpipe", "1f1b"],
}
AT_LEAST_ONE = ["num_epochs", "global_batch_size", "base_batch_size", "accumulation_steps", "num_layers"]
AT_LEAST_ONE += [
    "model_width",
    "num_heads",
    "num_microbatches",
    "num_message_sizes",
    "num_repeats",
    "exchange_timeout_seconds",
]


def check_settings(config, world_size=None):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(choices)}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    for key in ("max_restarts", "max_shift", "num_loader_workers"):
        if getattr(config, key) < 0:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a number of at least 0")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    if config.model_width % (2 * config.num_heads):
        raise SystemExit(
            f"model_width={config.model_width} is not a multiple of 2 x num_heads={config.num_heads}: a head needs an "
            "even number of features; try "
            f"model_width={2 * config.num_heads * max(1, config.model_width // (2 * config.num_heads))}"
        )
    if config.profile and config.mode != "ddp":
        raise SystemExit(f"profile=true needs mode=ddp, not {config.mode}: say profile=false")
    if world_size is not None:
        check_world(config, world_size)
    return config


def check_world(config, world_size):
    """Whether batch, heads and layers can be divided among the workers."""
    batch = config.global_batch_size
    if config.mode == "ft_ddp" and config.min_workers > world_size:
        raise SystemExit(f"min_workers={config.min_workers}: expected at most the number of workers, {world_size}")
    if config.mode == "ft_ddp" and config.backend == "nccl":
        raise SystemExit("backend=nccl with mode=ft_ddp was never run: set backend=gloo or auto")
    if config.mode in ("ddp", "ft_ddp") and batch < world_size:
        raise SystemExit(
            f"global_batch_size={batch} is less than world_size={world_size}: some workers would have nothing to do; "
            f"set it to {world_size} at least"
        )
    if config.mode == "collectives" and world_size < 2:
        raise SystemExit("mode=collectives measures what workers exchange, and one has nobody to: start at least 2")
    if config.mode == "fsdp":
        divides("global_batch_size", batch, "workers", world_size)
    if config.mode == "tensor_parallel":
        divides("num_heads", config.num_heads, "workers", world_size)
        divides("model_width", config.model_width, "workers", world_size)
    if config.mode == "pipeline":
        divides("num_layers", config.num_layers, "stages (workers)", world_size)
        divides("global_batch_size", batch, "num_microbatches", config.num_microbatches)
        if config.schedule == "1f1b" and config.num_microbatches < world_size:
            raise SystemExit(
                f"num_microbatches={config.num_microbatches} is less than the {world_size} stages that schedule=1f1b "
                f"has to fill: set it to {world_size} at least"
            )


def divides(name, value, of, parts):
    if value % parts:
        below, above = value // parts * parts, (value // parts + 1) * parts
        raise SystemExit(
            f"{name}={value} cannot be divided among {parts} {of}: {value} = {parts} x {value // parts} + "
            f"{value % parts}; try {name}={below or above} or {above}"
        )


def check_rows(num_rows, config, split="train"):
    """The language model's batches must all be of one size. Returns the number of rows."""
    batch = config.global_batch_size
    if num_rows % batch:
        raise SystemExit(
            f"{num_rows} {split} rows are no multiple of global_batch_size={batch} ({num_rows} = {batch} x "
            f"{num_rows // batch} + {num_rows % batch}): set data.parameters.num_{split}_rows or scale.max_rows to "
            f"{num_rows // batch * batch or batch}"
        )
    return num_rows


def num_steps_of(config, batches):
    """Optimizer steps of the whole run."""
    wanted = config.num_epochs * batches.steps_per_epoch
    return wanted if config.max_steps is None else min(wanted, config.max_steps)


def depends_on(config, num_rows):
    """What a position (epoch, step) depends on: with other values the same position stands for other rows."""
    return {"seed": config.seed, "global_batch_size": config.global_batch_size, "num_rows": num_rows}


def learning_rate_at(epoch, config):
    """The classifier's rate at a fractional epoch.

    It grows with the batch, after a warm-up from 0, and ends at 0 (half a cosine).

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
    check_settings(load_config(config_words), int(num_workers))
