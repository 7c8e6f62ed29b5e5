"""The same training with TensorFlow.

It is started once per worker, each with its TF_CONFIG, on this machine or in the pods of a TFJob.

Run:     python -m tfrun --num-workers 2 train_tensorflow.py train.yaml
Source:  TensorFlow's guide "Custom training loop with MultiWorkerMirroredStrategy".
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data import Batches, ImageData
from model import NUM_GROUPS, torch_network
from preempt import LEAVE, Notice
from runrecord import RunRecord, check_position, load_config
from storage import Checkpoints
from tfrun import be_patient
from train import depends_on, learning_rate_at, save_whole

# Keras 2: Keras 3 cannot train under this strategy.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf


def main():
    config, task = load_config(), json.loads(os.environ["TF_CONFIG"])
    rank, world_size = int(task["task"]["index"]), len(task["cluster"]["worker"])
    for set_threads in (
        tf.config.threading.set_intra_op_parallelism_threads,
        tf.config.threading.set_inter_op_parallelism_threads,
    ):
        set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(config.seed)
    if not config.use_gpu:
        tf.config.set_visible_devices([], "GPU")  # the strategy would take all that the machine has
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if config.use_gpu else kinds.RING
    )
    be_patient()  # Distributed: a worker that is busy for a moment is not taken for dead.
    # Distributed: starts this worker's server and waits for the others, whose addresses TF_CONFIG holds.
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    data = ImageData(config.rows_dir, "train")
    facts = {"attempt": int(os.environ.get("TFRUN_ATTEMPT", "0")), "phase": 0, "tensorflow": tf.__version__}
    with RunRecord(config.output_dir, rank, world_size, device="gpu" if config.use_gpu else "cpu", **facts) as run:
        # Distributed: variables made in the scope are mirrored: every worker begins with the first one's values.
        with strategy.scope():
            model = build(data.images.shape[1:], data.num_classes, config.width)
            optimizer = tf.keras.optimizers.SGD(0.0, momentum=0.9, nesterov=True)
            optimizer.build(model.trainable_variables)  # its state must be there to be restored
        keeper, exchange = tf.train.Checkpoint(model=model, optimizer=optimizer), sum_of(strategy)
        with Checkpoints(f"{config.checkpoint_dir}/tensorflow", config.output_dir, run) as checkpoints:
            position = {"epoch": 0, "step": 0, "loss_sum": 0.0}
            if folder := checkpoints.last():  # Distributed: all read the same files.
                keeper.read(str(folder / "state")).assert_existing_objects_matched()
                position = json.loads((folder / "position.json").read_text())
                check_position(folder, position.pop("depends_on"), depends_on(config, len(data)))
            # Distributed: the first worker's clock, on all of them.
            moment = exchange(time.time() if rank == 0 else 0.0)
            run.restore(position["epoch"], position["step"], generation=moment)

            def save():
                """All workers call it: to read mirrored variables takes all of them."""
                with tempfile.TemporaryDirectory() as elsewhere:
                    text = json.dumps({**position, "depends_on": depends_on(config, len(data))})
                    if rank > 0:  # Distributed: the first worker's files count.
                        keeper.write(f"{elsewhere}/state")
                        return
                    with checkpoints.save(position["epoch"], position["step"]) as folder:
                        keeper.write(str(folder / "state"))
                        (folder / "position.json").write_text(text)

            train(strategy, model, optimizer, position, save, exchange, data, config, run, rank, world_size)
        run.digest(variable.numpy() for variable in model.variables)
        if rank == 0:  # Distributed: all hold the same variables, so one writes the model.
            save_whole(as_torch(model, data, config.width), Path(config.model_path))


def train(strategy, model, optimizer, position, save, exchange, data, config, run, rank, world_size):
    """Trains from the position {epoch, step, loss_sum of the epoch so far, over all workers} to the end."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    batches = Batches(len(data), config.global_batch_size, config.seed)
    num_steps = config.num_epochs * batches.steps_per_epoch
    num_steps = min(num_steps, config.max_steps or num_steps)

    @tf.function(reduce_retracing=True)
    def step(images, labels, batch_size, wish):
        def on_replica(images, labels):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
                )
                scaled = loss / batch_size
            # Distributed: `minimize` adds up the gradients of all workers; each row weighs 1 / rows of the whole batch.
            optimizer.minimize(scaled, model.trainable_variables, tape=tape)
            return loss

        # Distributed: every worker runs the step at the same time, each on its own share.
        # The workers' wishes for a checkpoint (see preempt.py) are added up in it, too: all save after the same step.
        loss = strategy.run(on_replica, (images, labels))
        return loss, strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [wish]), axis=None)

    while (first := position["epoch"] * batches.steps_per_epoch) < num_steps:
        number, loss_sum, num_rows, began = position["epoch"], 0.0, 0, time.perf_counter()
        indices = range(position["step"], min(batches.steps_per_epoch, num_steps - first))
        for index, ids in zip(indices, batches.of_epoch(number, indices.start), strict=False):
            optimizer.learning_rate = learning_rate_at(number + index / batches.steps_per_epoch, config)
            own = ids[rank::world_size]  # Distributed: this worker's share of the batch
            run.rows(number, index, own)
            images, labels = data.read(own)
            wish = tf.constant(notice.wish(first + index + 1, index + 1 == indices.stop))
            loss, wish = step(images.transpose(0, 2, 3, 1), labels, float(len(ids)), wish)
            loss_sum += run.finite(float(loss), number, index)
            num_rows += len(ids)
            if int(wish):
                position["loss_sum"], loss_sum = position["loss_sum"] + exchange(loss_sum), 0.0
                position["step"] = index + 1
                save()
                if int(wish) >= LEAVE:
                    exchange(0.0)  # Distributed: nobody leaves before the first one has saved: tfrun ends the others.
                notice.saved(int(wish))
        done, rows_of_epoch = first + indices.stop, min(indices.stop * config.global_batch_size, len(data))
        run.metric("train/loss", (position["loss_sum"] + exchange(loss_sum)) / rows_of_epoch, done, number)
        if rank == 0 and num_rows:  # Distributed: all took as long, so one of them tells.
            run.metric("samples_per_second", num_rows / (time.perf_counter() - began), done, number, unit="samples/s")
        run.progress(done, num_steps, f"epoch {number + 1}")
        position.update(epoch=number + 1, step=0, loss_sum=0.0)
        save()
        notice.saved()


def sum_of(strategy):
    """A function: each worker's number -> the sum of all, the same everywhere."""

    @tf.function
    def total(value):
        # Distributed: each worker brings its own number; all get the sum.
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [value]), axis=None)

    return lambda value: float(total(tf.constant(value, tf.float64)))


def build(image_shape, num_classes, width):
    """model.py's network in Keras: images float32 (batch, height, width, channels) to logits (batch, num_classes)."""
    layers = tf.keras.layers

    def convolution(x, features, strides=1):
        # One pixel on each side, as PyTorch pads.
        x = layers.Conv2D(features, 3, strides, use_bias=False)(layers.ZeroPadding2D(1)(x))
        return layers.GroupNormalization(NUM_GROUPS, epsilon=1e-5)(x)

    def residual(x, features):
        inner = convolution(layers.ReLU()(convolution(x, features)), features)
        return layers.ReLU()(layers.Add()([x, inner]))

    inputs = tf.keras.Input(image_shape)
    x = residual(layers.ReLU()(convolution(inputs, width)), width)
    x = residual(layers.ReLU()(convolution(x, 2 * width, strides=2)), 2 * width)
    return tf.keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))


def as_torch(model, data, width):
    """The weights as the state of model.py's network, so that whatever trained it, one server serves it."""
    network = torch_network(data.images.shape[3], data.num_classes, width)
    state = network.state_dict()
    for (name, wanted), variable in zip(state.items(), model.weights, strict=True):
        value = variable.numpy()
        # Kernels: (height, width, in, out) here, (out, in, height, width) there; dense layers are transposed.
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value
        if value.shape != tuple(wanted.shape):
            raise ValueError(f"{variable.name} {value.shape} is not {name} {tuple(wanted.shape)}")
        state[name] = torch.from_numpy(np.ascontiguousarray(value))
    return state


if __name__ == "__main__":
    main()
