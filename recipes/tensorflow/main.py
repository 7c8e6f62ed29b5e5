"""Synchronous data parallelism with MultiWorkerMirroredStrategy and Keras `fit`.

Shows:   the strategy and its scope, sharded `tf.data`, exact weights for unequal shares, BackupAndRestore, who writes what.
Choose:  when the training is written in Keras; every worker holds the whole model and steps wait for all of them.
Run:     python -m tfrun --num-workers 2 main.py config.yaml
Expect:  test accuracy of at least 0.97 on handwritten digits, within two minutes on two CPU cores.
Source:  TensorFlow's guide, "Multi-worker training with Keras" and "Distributed input".
"""

import os
import time
from pathlib import Path

import numpy as np
from cluster import facts, set_threads, task, tf  # first: it decides which Keras TensorFlow brings

from data import Batches, ImageData, dataset_of
from model import network
from runrecord import RunRecord, load_config
from settings import check_settings, learning_rate_at, num_steps_of


def main():
    config = check_settings(load_config())
    _, rank, world_size = task()
    check_settings(config, world_size)  # Distributed: some settings depend on the number of workers.
    set_threads()
    strategy = make_strategy(config)
    tf.keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    with RunRecord(config.output_dir, rank, world_size, **facts()) as run:
        with (
            strategy.scope()
        ):  # Distributed: variables made in here get a copy on every worker, all with the chief's values.
            model = Classifier(network(train_data.images.shape[1:], train_data.num_classes, config.width))
            model.record = run
            model.compile(tf.keras.optimizers.SGD(config.learning_rate, config.momentum, nesterov=config.momentum > 0))
        train(model, strategy, train_data, test_data, batches, config, run, rank)
        run.digest(variable.numpy() for variable in model.variables)


def make_strategy(config):
    collective = tf.distribute.experimental.CommunicationImplementation
    implementation = {"auto": collective.AUTO, "ring": collective.RING, "nccl": collective.NCCL}[config.communication]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    # Distributed: reads TF_CONFIG, starts a server for the other workers and waits until all are there.
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Classifier(tf.keras.Model):
    """The network, with a training step that notes which rows this worker really took."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.record = inner, None
        self.loss_sum = tf.keras.metrics.Sum(name="loss_sum")  # Distributed: read, it is the sum over all workers.

    def call(self, images, training=False):
        return self.inner(images, training=training)

    def train_step(self, data):
        images, labels, weights, place = data  # place: epoch, step and number of each row
        noted = tf.numpy_function(self.note, [place], tf.int64)
        with tf.control_dependencies([noted]):
            images = tf.identity(
                images
            )  # on record before the gradients are exchanged: whoever dies, the step is known
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self(images, training=True))
            # Distributed: a weighted sum, not a mean of one's own share: each row counts as much as any other of its global
            # batch, however the last one falls among the workers.
            loss = tf.reduce_sum(losses * weights)
        gradients = tape.gradient(loss, self.trainable_variables)
        # Distributed: the exchange: inside, the gradients of all workers are summed before any is applied.
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_sum.update_state(losses)
        return {"loss_sum": self.loss_sum.result()}

    @property
    def metrics(self):
        return [self.loss_sum]  # `fit` sets them to zero at the start of each epoch

    def note(self, place):
        if len(place):
            self.record.rows(int(place[0, 0]), int(place[0, 1]), place[:, 2])
        return np.int64(0)


def train(model, strategy, train_data, test_data, batches, config, run, rank):
    num_steps, backup_dir = num_steps_of(config, batches), Path(config.checkpoint_dir) / "backup"
    first_epoch = epoch_after_backup(backup_dir)
    run.restore(first_epoch, 0, generation=float(os.environ.get("TFRUN_GENERATION", time.time())))
    data = dataset_of(tf, train_data, batches, first_epoch, num_steps, config)
    # Distributed: every worker keeps a backup (only the chief's is real, the others write to a folder of their own that is
    # thrown away); after a restart all go on with the same epoch.
    backup = tf.keras.callbacks.BackupAndRestore(str(backup_dir), delete_checkpoint=False)
    model.build((None, *train_data.images.shape[1:]))
    model.fit(
        # Distributed: each worker gets its part of every batch.
        strategy.experimental_distribute_dataset(data),
        epochs=-(-num_steps // batches.steps_per_epoch), steps_per_epoch=min(batches.steps_per_epoch, num_steps), verbose=0,
        callbacks=[backup, Story(strategy, test_data, batches, num_steps, backup_dir, config, run, rank)],
    )  # fmt: skip


def epoch_after_backup(folder):
    """The epoch that `fit` will go on with, which its data must begin with too."""
    path = tf.train.latest_checkpoint(str(folder / "chief"))
    if path is None:
        return 0
    return int(tf.train.load_checkpoint(path).get_tensor("ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1


class Story(tf.keras.callbacks.Callback):
    """Sets the learning rate of each step, and reports each epoch once its backup is written."""

    def __init__(self, strategy, test_data, batches, num_steps, backup_dir, config, run, rank):
        super().__init__()
        self.strategy, self.test_data, self.batches, self.num_steps = strategy, test_data, batches, num_steps
        self.backup_dir, self.config, self.run, self.rank = backup_dir, config, run, rank
        self.world_size = strategy.num_replicas_in_sync

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.started = epoch, time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        rate = learning_rate_at(self.epoch + batch / self.batches.steps_per_epoch, self.config)
        self.model.optimizer.learning_rate.assign(rate)

    def on_epoch_end(self, epoch, logs=None):
        done = min(self.num_steps, (epoch + 1) * self.batches.steps_per_epoch)
        num_steps = done - epoch * self.batches.steps_per_epoch
        num_rows = min(num_steps * self.config.global_batch_size, self.batches.num_rows)
        correct, seconds = self.over_workers([self.count_correct(), time.perf_counter() - self.started])
        self.run.metric("train/loss", logs["loss_sum"] / num_rows, done, epoch)
        self.run.metric("samples_per_second", num_rows / (seconds / self.world_size), done, epoch, unit="samples/s")
        accuracy = correct / len(self.test_data)
        self.run.metric("eval/accuracy", accuracy, done, epoch)
        self.run.progress(done, self.num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        if self.rank == 0:  # Distributed: the chief's backup is the one that counts.
            self.run.checkpoint(self.backup_dir, epoch + 1, 0)

    def count_correct(self):
        """Correct answers on this worker's share of the test rows."""
        rows, num_correct = np.arange(self.rank, len(self.test_data), self.world_size), 0  # Distributed: its share.
        for start in range(0, len(rows), self.config.global_batch_size):
            images, labels = self.test_data.read(rows[start : start + self.config.global_batch_size])
            num_correct += int((self.model.inner(images, training=False).numpy().argmax(1) == labels).sum())
        return num_correct

    def over_workers(self, values):
        """Sums of these numbers over all workers."""
        own = tf.constant(values, tf.float64)
        # Distributed: counts add up exactly over unequal shares, a mean of means would not.
        return self.sum_up(own).numpy().tolist()

    @tf.function
    def sum_up(self, own):
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, self.strategy.run(tf.identity, args=(own,)), axis=None)


if __name__ == "__main__":
    main()
