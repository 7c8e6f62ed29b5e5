"""The one place that imports TensorFlow, because some of its switches count only before that.

It also knows the role of this process.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

# Keras 2: with Keras 3, `fit` under MultiWorkerMirroredStrategy cannot convert a PerReplica to a tensor.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no word about GPUs that are not there

import tensorflow as tf

from runrecord import check_position
from settings import depends_on
from storage import is_address


def task():
    """What TF_CONFIG makes of this process: kind (chief, ps, worker), index, num_workers, num_ps, attempt.

    Alone: worker 0 of 1.
    """
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    mine, cluster = config.get("task", {}), config.get("cluster", {})
    return SimpleNamespace(
        kind=mine.get("type", "worker"),
        index=int(mine.get("index", 0)),
        num_workers=len(cluster.get("worker", [0])),
        num_ps=len(cluster.get("ps", [])),
        attempt=int(os.environ.get("TFRUN_ATTEMPT", "0")),
    )


def claim_checkpoints(config, program):
    """Notes whose checkpoints the folder holds, and of which batches.

    Raises SystemExit when they are another program's, which this one cannot read, or of other batches.
    """
    if is_address(config.checkpoint_dir):
        return  # the other programs keep theirs in folders
    note = Path(config.checkpoint_dir) / "program.txt"
    if note.exists() and (theirs := note.read_text()) != program:
        raise SystemExit(
            f"checkpoint_dir={config.checkpoint_dir} has the checkpoints of {theirs}, this is {program} "
            f"(mode={config.mode}): use another checkpoint_dir, or the mode of that run"
        )
    num_rows = json.loads((Path(config.data_dir) / "manifest.json").read_text())["rows"]["train"]
    mine, batches = depends_on(config, min(num_rows, config.max_rows or num_rows)), note.with_name("depends_on.json")
    # Checkpoints that have no such note beside them cannot be checked. Without a checkpoint there is nothing to check,
    # and the note is written anew.
    saved = any(note.parent.glob("*/checkpoint.json"))
    if saved and batches.exists():
        check_position(note.parent, json.loads(batches.read_text()), mine)
    note.parent.mkdir(parents=True, exist_ok=True)
    for path, text in [(note, program), *([] if saved else [(batches, json.dumps(mine))])]:
        # Distributed: all write the same; renamed, so that nobody reads half of it. Not named by process: in containers
        # the numbers are alike.
        partial = path.with_suffix(f".{task().kind}-{task().index}")
        partial.write_text(text)
        partial.replace(path)


def prepare(config):
    """Threads, seeds and devices, before TensorFlow does anything. Returns what the devices are, as a text."""
    # TensorFlow does not heed OMP_NUM_THREADS, which carries the number of threads that this worker may use.
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(config.seed)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        if config.mode in ("mirrored", "model_parallel") and config.num_devices > len(gpus):
            raise SystemExit(
                f"num_devices={config.num_devices}: TensorFlow sees {len(gpus)} GPUs; choose as many at most, or hide "
                "them (CUDA_VISIBLE_DEVICES=-1) to have the CPU cut into devices"
            )
        return f"{len(gpus)} gpu"
    if config.mode in ("mirrored", "model_parallel"):
        # Cuts the CPU into devices: the same code as on a machine with several GPUs, without their speed.
        cpu = tf.config.list_physical_devices("CPU")[0]
        part = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [part] * config.num_devices)
        return f"{config.num_devices} logical cpu"
    return "cpu"
