"""Makes the strategy that the settings name. Only here do multi_worker, mirrored and tpu differ."""

from runtime import tf
from tfrun import be_patient


def make_strategy(config):
    """The tf.distribute.Strategy of recipe.mode; raises SystemExit where the machine lacks what it needs."""
    if config.mode == "mirrored":
        # Distributed: one process, a replica on each of its devices; they exchange gradients within the process.
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)][: config.num_devices]
        return tf.distribute.MirroredStrategy([name.removeprefix("/device:") for name in devices])
    if config.mode == "tpu":
        return tpu_strategy(config)
    if config.communication == "nccl" and not tf.config.list_physical_devices("GPU"):
        raise SystemExit("communication=nccl needs GPUs and this worker has none: choose communication=ring or auto")
    kinds = tf.distribute.experimental.CommunicationImplementation
    # Distributed: how the gradients travel. RING works over gRPC on any device, NCCL between GPUs; AUTO leaves it
    # to TensorFlow.
    options = tf.distribute.experimental.CommunicationOptions(implementation=kinds[config.communication.upper()])
    be_patient()  # Distributed: a worker that is busy for a moment is not taken for dead.
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def tpu_strategy(config):
    """Connects to the TPU and wipes its memory, as TensorFlow's guide "Use TPUs" does."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=config.tpu_name, zone=config.tpu_zone, project=config.tpu_project
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
        raise SystemExit(
            f"no TPU answers as tpu_name={config.tpu_name!r}, tpu_zone={config.tpu_zone}, "
            f"tpu_project={config.tpu_project}: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "On a TPU VM say tpu_name=local; create one with `gcloud compute tpus tpu-vm create NAME --zone=ZONE "
            "--accelerator-type=v5litepod-1 --version=tpu-vm-tf-<version>`, and delete it when you are done: it "
            "costs money as long as it exists"
        ) from None
    # The matrix unit's own format; variables stay float32.
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    # Distributed: one replica on each TPU core.
    return tf.distribute.TPUStrategy(resolver)


def make_partitioner(config):
    """How ParameterServerStrategy cuts variables into parts, one on each ps; None leaves them whole."""
    partitioners = tf.distribute.experimental.partitioners
    return {
        "none": lambda: None,
        # Distributed: as many parts as there are ps, but none smaller than this: each part is one more message.
        "min_size": lambda: partitioners.MinSizePartitioner(min_shard_bytes=4 << 10, max_shards=config.num_ps),
        "max_size": lambda: partitioners.MaxSizePartitioner(max_shard_bytes=64 << 10, max_shards=config.num_ps),
        "fixed_shards": lambda: partitioners.FixedShardsPartitioner(config.num_ps),
    }[config.partitioner]()
