"""What is derived from the settings, and which settings make no sense together.

As a program it checks a config without loading TensorFlow: python settings.py CONFIG.yaml NUM_WORKERS
"""

import math
import sys
from pathlib import Path

from runrecord import load_config

CHOICES = {
    "mode": ["multi_worker", "parameter_server", "parameter_server_fit", "mirrored", "tpu", "model_parallel"],
    "communication": ["auto", "ring", "nccl"],
    "auto_shard": ["data", "file", "own"],
    "input": ["memory", "tfrecord"],
    "partitioner": ["none", "min_size", "max_size", "fixed_shards"],
}
PROGRAMS = {name: f"main_{name}.py" for name in ("parameter_server", "parameter_server_fit", "model_parallel")}
AT_LEAST_ONE = ["num_epochs", "global_batch_size", "base_batch_size", "num_devices", "num_ps"]
AT_LEAST_ONE += ["num_files", "prefetch_batches", "steps_per_execution"]


def check_settings(config, num_workers, program=None):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(choices)}")
    wanted = PROGRAMS.get(config.mode, "main.py")
    if program not in (None, wanted):
        raise SystemExit(f"mode={config.mode} is another program: start {wanted}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.max_restarts < 0:
        raise SystemExit(f"max_restarts={config.max_restarts}: expected a whole number of at least 0")
    for key in ("learning_rate", "clip_norm"):
        if getattr(config, key) <= 0:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a number above 0")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    check_batch(config, num_workers)
    if config.mode == "multi_worker" and config.communication == "nccl" and not Path("/dev/nvidia0").exists():
        raise SystemExit(
            "communication=nccl needs NVIDIA GPUs and this machine has none: choose communication=ring or auto"
        )
    if config.profile and config.mode not in ("multi_worker", "mirrored"):
        raise SystemExit(f"profile=true needs mode=multi_worker or mirrored, not {config.mode}: say profile=false")
    if config.mode == "tpu":
        check_tpu(config)
    elif config.steps_per_execution > 1:
        raise SystemExit(
            f"steps_per_execution={config.steps_per_execution} is for mode=tpu; elsewhere every step is reported by "
            "itself: say 1"
        )
    return config


def check_batch(config, num_workers):
    """Raises SystemExit when batch, hidden layer or files do not fit the number of workers, or of devices."""
    if config.mode in ("mirrored", "model_parallel"):
        what, number = "num_devices", config.num_devices
    else:
        what, number = "the number of workers", num_workers
    if config.mode in ("multi_worker", "mirrored"):
        check_shares(config, number, what)
    if config.mode == "model_parallel" and 16 * config.width % number:
        raise SystemExit(
            f"num_devices={number} does not divide the hidden layer's 16 x width = {16 * config.width} units: choose "
            "a divisor, or another width"
        )
    if config.auto_shard == "file" and config.input != "tfrecord":
        raise SystemExit(
            "auto_shard=file divides files: it needs input=tfrecord; in memory there are rows: say auto_shard=data or "
            "own"
        )
    if config.input == "tfrecord" and config.mode != "multi_worker":
        raise SystemExit(f"input=tfrecord is shown by mode=multi_worker, not {config.mode}: say input=memory")


def check_shares(config, number, what="the number of replicas"):
    """Raises SystemExit unless a batch, and the files, can be divided among so many."""
    batch, files = config.global_batch_size, config.num_files
    if batch % number:
        raise SystemExit(
            f"global_batch_size={batch} cannot be divided by {what}, {number}: {batch} = {batch // number} x {number} "
            f"+ {batch % number}; choose {batch // number * number or number} or {(batch // number + 1) * number}"
        )
    if config.auto_shard == "file" and files % number:
        raise SystemExit(
            f"num_files={files} cannot be divided by {what}, {number}: some would have more rows than others; choose "
            f"{-(-files // number) * number}"
        )


def check_tpu(config):
    """Raises SystemExit where there is certainly no TPU."""
    if not config.tpu_name:
        raise SystemExit(
            "mode=tpu needs a TPU and none is named: set tpu_name=local on a TPU VM, or tpu_name=NAME tpu_zone=ZONE "
            "tpu_project=PROJECT for a TPU node. To get one: `gcloud compute tpus tpu-vm create NAME --zone=ZONE "
            "--accelerator-type=v5litepod-1 --version=tpu-vm-tf-<version>`; delete it when you are done, it costs "
            "money until then"
        )
    if config.tpu_name == "local" and not (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        raise SystemExit(
            "tpu_name=local, but this machine has no TPU (neither /dev/accel0 nor /dev/vfio/0): run on a TPU VM, or "
            "name a TPU node with tpu_name=NAME tpu_zone=ZONE tpu_project=PROJECT"
        )
    found = (
        config.tpu_name == "local" or config.tpu_name.startswith("grpc://") or (config.tpu_zone and config.tpu_project)
    )
    if not found:
        raise SystemExit(
            f"tpu_name={config.tpu_name} needs tpu_zone=ZONE and tpu_project=PROJECT to be found, or "
            "tpu_name=grpc://ADDRESS:8470"
        )


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
    Hutter 2016, "SGDR" (cosine).
    """
    peak = config.learning_rate * config.global_batch_size / config.base_batch_size
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.num_epochs - config.warmup_epochs, 1e-9)
    return peak * (1 + math.cos(math.pi * min(share, 1.0))) / 2


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config(config_words), int(num_workers))
