"""What this process is in the cluster, and the strategy that goes with it. Import this before TensorFlow."""

import json
import os

# Keras 3 cannot train under MultiWorkerMirroredStrategy ("PerReplica cannot be converted"): tf-keras is the Keras that can.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tf_keras


def task():
    """(kind, index, number of workers) of this process, from the TF_CONFIG that its launcher gave it."""
    config = json.loads(
        os.environ.get("TF_CONFIG")
        or '{"cluster": {"worker": ["localhost:0"]}, "task": {"type": "worker", "index": 0}}'
    )
    return config["task"]["type"], config["task"]["index"], len(config["cluster"]["worker"])


def set_threads():
    # TensorFlow does not heed OMP_NUM_THREADS, which carries the number of threads that this worker may use.
    tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", "0")))
    tf.config.threading.set_inter_op_parallelism_threads(2)  # with one, closing the input waits for half a minute


def facts():
    """What the run record notes about this process."""
    gpus = tf.config.list_logical_devices("GPU")
    return {
        "attempt": int(os.environ.get("TFRUN_ATTEMPT", "0")),
        "device": f"{len(gpus)} GPU" if gpus else f"{len(tf.config.list_logical_devices('CPU'))} CPU",
        "tensorflow": tf.__version__,
        "tf_keras": tf_keras.__version__,
    }
