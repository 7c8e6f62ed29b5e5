"""Ray Train with TensorFlow: the trainer gives each worker its TF_CONFIG, MultiWorkerMirroredStrategy does the rest.

Shows:   the same input, scaling, failures and checkpoints as main.py, with another framework inside the workers.
Choose:  when the model is TensorFlow's and the rest of the program is Ray's. Else `tensorflow` or main.py.
Run:     python -m rayrun --num-cpus 4 main_tensorflow.py config.yaml num_workers=2
Expect:  test accuracy of at least 0.97 on handwritten digits, about a minute on two CPU cores.
Source:  Ray Train's documentation, "Get Started with Distributed Training using TensorFlow/Keras"; TensorFlow's
         multi-worker guide.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer

from batches import joined, my_shards, options
from checkpoints import fit, last_whole, report, with_status
from data import datasets_of, num_rows_of, read_manifest, remove_shards, write_shards
from model_tensorflow import build
from preempt import Notice
from runrecord import RunRecord, check_position, load_config, read_records
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import for_arrow
from tfrun import be_patient
from workers import connect, keep_profile, require_free


@dataclass
class Training:
    """What a checkpoint holds. TensorFlow is imported in the workers only, so its types have no names here."""

    model: Any
    optimizer: Any
    keeper: Any  # tf.train.Checkpoint of both
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # of the epoch so far, over all workers
    accuracy: float = 0.0  # after the epoch before


def main():
    config = check_settings(load_config())
    manifest = read_manifest(config)
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        began, clock = time.time(), time.perf_counter()
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(config.poll_seconds)
        if "RAYRUN_SECONDS" in os.environ:
            os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this instance's machine away
        connect(run)
        need = {"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})}
        require_free(config.num_workers, need)
        run.progress(0, 1, "preparing the rows")
        shards = write_shards(config, manifest)
        # Distributed: every worker must reach the checkpoints: a folder that all see, or an object store.
        storage_path, file_system = for_arrow(config.checkpoint_dir)
        trainer = TensorflowTrainer(
            with_status(train_worker),
            train_loop_config={"config": vars(config), "manifest": manifest, "began": began},
            # Distributed: so many workers, on as many nodes as there are. Ray tells each the addresses of
            # all, in TF_CONFIG.
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.use_gpu,
                resources_per_worker=need,
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name="train",
                storage_path=storage_path,
                storage_filesystem=file_system,
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                # Distributed: when a worker dies, all are started anew, so many times, from the last checkpoint.
                failure_config=FailureConfig(max_failures=config.max_restarts),
            ),
            datasets=datasets_of(config, manifest, shards),
            dataset_config=DataConfig(datasets_to_split=[]),
        )
        run.metric("seconds/prepare", time.perf_counter() - clock, step=0, unit="s")
        if not (status := fit(trainer)):
            remove_shards(config, shards)
        keep_profile(config)
    return status


def train_worker(settings):
    """Runs in each worker process that Ray Train has started."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf

    # Keras 2, by its own name (Ray has loaded tf.keras before): Keras 3 cannot train under this strategy.
    import tf_keras as keras

    config, manifest = SimpleNamespace(**settings["config"]), settings["manifest"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    if not config.use_gpu:
        tf.config.set_visible_devices([], "GPU")  # Ray hides none from a worker that asked for none
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if config.use_gpu else kinds.RING
    )
    be_patient()  # Distributed: a worker that is busy for a moment is not taken for dead.
    # Distributed: starts this worker's server, and waits for the others.
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    # Distributed: variables made here are mirrored; every worker begins with the first one's values.
    with strategy.scope():
        model = build(keras, manifest["schema"]["images"]["shape"][1:], len(manifest["classes"]), config.width)
        optimizer = keras.optimizers.SGD(0.0, config.momentum, nesterov=config.momentum > 0)
        optimizer.build(model.trainable_variables)  # its state must be there to be restored
    keeper = tf.train.Checkpoint(model=model, optimizer=optimizer)
    training = Training(model, optimizer, keeper, num_rows_of(config, manifest, "train"))
    load_checkpoint(training, config)
    exchange = sum_of(tf, strategy)
    earlier = [
        events for events in read_records(config.output_dir) if events[0]["rank"] == 0 and events[0]["role"] == "worker"
    ]
    # Distributed: the ranks must agree, and only one of them can count.
    attempt = int(exchange(sum(events[0]["time"] >= settings["began"] for events in earlier) if rank == 0 else 0))
    generation = exchange(time.time() if rank == 0 else 0.0)
    facts = {
        "ray": ray.__version__,
        "tensorflow": tf.__version__,
        "device": "gpu" if config.use_gpu else "cpu",
        "node": context.get_node_rank(),
    }
    with RunRecord(config.output_dir, rank, world_size, context.get_local_rank(), attempt=attempt, **facts) as run:
        run.restore(training.epoch, training.step, generation=generation)
        train(training, make_train_step(tf, strategy, model, optimizer), exchange, config, manifest, run)
        run.digest(variable.numpy() for variable in model.variables)
        exchange(0.0)  # Distributed: nobody leaves while another still waits for an answer.


def make_train_step(tf, strategy, model, optimizer):
    """A function: (this worker's share {image, label}, rows of all shares, a wish) -> (summed loss, all wishes)."""

    @tf.function(reduce_retracing=True)
    def step(images, labels, size, wish):
        def on_replica(images, labels):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
                )
                scaled = loss / size
            # Distributed: `minimize` adds up the gradients of all workers; each row weighs 1 / rows of the whole batch.
            optimizer.minimize(scaled, model.trainable_variables, tape=tape)
            return loss

        # Distributed: every worker runs the step at the same time, each on its own share.
        # The workers' wishes for a checkpoint (see preempt.py) are added up in it, too: all save after the same step.
        loss = strategy.run(on_replica, (images, labels))
        return loss, strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [wish]), axis=None)

    return lambda batch, size, wish: step(batch["image"], batch["label"], float(size), tf.constant(wish))


def train(training, train_step, exchange, config, manifest, run):
    """Trains from where `training` is to the end. `exchange`: a number of each worker -> the sum, the same on all."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    steps_per_epoch, num_steps = num_steps_of(config, training.num_rows)
    shards = my_shards(config, "train")
    tests = [batch for shard in my_shards(config, "test") for batch in shard.iter_batches(batch_size=256)]
    while (first := training.epoch * steps_per_epoch) < num_steps:
        epoch, started, loss_sum, taken = training.epoch, time.perf_counter(), 0.0, 0
        steps = range(training.step, min(steps_per_epoch, num_steps - first))
        streams = [shard.iter_batches(**options(config, epoch)) for shard in shards]
        for step, batch in zip(steps, joined(streams, steps, np.concatenate), strict=True):
            run.rows(epoch, step, batch["id"])
            # Of all workers together.
            size = min(config.global_batch_size, training.num_rows - step * config.global_batch_size)
            training.optimizer.learning_rate = learning_rate_at(epoch + step / steps_per_epoch, config)
            loss, wish = train_step(batch, size, notice.wish(first + step + 1, step + 1 == steps.stop))
            loss_sum += run.finite(float(loss), epoch, step)
            taken += size
            if int(wish):
                training.loss_sum, loss_sum = training.loss_sum + exchange(loss_sum), 0.0
                training.step = step + 1
                save_checkpoint(training, config, run)
                notice.saved(int(wish))
        done, rows_of_epoch = first + steps.stop, min(steps.stop * config.global_batch_size, training.num_rows)
        run.metric("train/loss", (training.loss_sum + exchange(loss_sum)) / rows_of_epoch, done, epoch)
        # Distributed: all took as long, so one of them tells.
        if taken and ray.train.get_context().get_world_rank() == 0:
            run.metric("samples_per_second", taken / (time.perf_counter() - started), done, epoch, unit="samples/s")
        right = sum(int((training.model(batch["image"]).numpy().argmax(1) == batch["label"]).sum()) for batch in tests)
        training.accuracy = exchange(right) / manifest["rows"]["test"]
        run.metric("eval/accuracy", training.accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {training.accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config, run)
        notice.saved()


def save_checkpoint(training, config, run):
    """Hands a checkpoint to Ray Train, which copies it to `storage_path` and only then counts it as one."""
    position = {"epoch": training.epoch, "step": training.step, "accuracy": training.accuracy}
    position["loss_sum"] = training.loss_sum
    with tempfile.TemporaryDirectory() as folder:
        # Distributed: reading mirrored variables can take all workers, so all write; the first one's files
        # are handed on.
        training.keeper.write(str(Path(folder) / "state"))
        text = json.dumps({**position, "depends_on": depends_on(config, training.num_rows)})
        (Path(folder) / "position.json").write_text(text)
        first = ray.train.get_context().get_world_rank() == 0
        report(position, folder if first else None)
    if first:  # Distributed: one notes it for all.
        run.checkpoint(config.checkpoint_dir, training.epoch, training.step)


def load_checkpoint(training, config):
    """Reads the last checkpoint, if there is one, and goes on from there."""
    # Distributed: each worker reads what the first one has written, wherever it runs.
    with last_whole() as folder:
        if folder is None:
            return
        position = json.loads((Path(folder) / "position.json").read_text())
        mine = depends_on(config, training.num_rows)
        check_position(config.checkpoint_dir, position["depends_on"], mine)
        training.keeper.read(str(Path(folder) / "state")).assert_existing_objects_matched()
    training.epoch, training.step = position["epoch"], position["step"]
    training.loss_sum, training.accuracy = position["loss_sum"], position["accuracy"]


def sum_of(tf, strategy):
    """A function: each worker's number -> the sum of all, the same everywhere."""

    @tf.function
    def total(value):
        # Distributed: each worker brings its own number; all get the sum.
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [value]), axis=None)

    return lambda value: float(total(tf.constant(value, tf.float64)))


if __name__ == "__main__":
    sys.exit(main())
