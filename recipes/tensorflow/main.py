"""Image classification with TensorFlow on several workers: MultiWorkerMirroredStrategy and Keras `fit`.

Shows:   the few lines that make a single-process Keras program a distributed one (all tagged): a strategy, a scope, a
         dataset that is divided among the workers, callbacks of which one writes and all can go on.
Choose:  when the model is Keras and fits on one device. `recipe.mode=mirrored` (several devices of one process) and
         `tpu` are this program too: only the strategy differs. `parameter_server` and `model_parallel` have their own.
Run:     python -m tfrun --num-workers 2 main.py config.yaml
Expect:  test accuracy of at least 0.97 on handwritten digits, within a minute on two CPU cores.
Source:  TensorFlow's guides "Distributed training with TensorFlow" and "Multi-worker training with Keras".
"""

import threading
import time
from pathlib import Path

import numpy as np

from checkpoints import Backup
from data import Batches, ImageData, distributed, write_tfrecords
from model import Classifier, WarmupThenCosine, build, make_optimizer
from profiles import Profile
from runrecord import RunRecord, load_config
from runtime import claim_checkpoints, prepare, task, tf
from settings import check_settings, check_shares
from strategies import make_strategy


def main():
    config = check_settings(load_config(), task().num_workers, program="main.py")
    claim_checkpoints(config, "main.py")
    device = prepare(config)
    # Distributed: starts this worker's server and waits for the others, whose addresses TF_CONFIG holds.
    strategy = make_strategy(config)
    check_shares(config, strategy.num_replicas_in_sync)  # Distributed: a worker has a replica on each of its devices.
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)

    me, facts = task(), {"device": device, "tensorflow": tf.__version__}
    with RunRecord(config.output_dir, me.index, me.num_workers, 0, "worker", me.attempt, **facts) as run:
        # Distributed: variables made in the scope are mirrored: one copy per replica, with the values of the first one.
        with strategy.scope():
            model = build(train_data.images.shape[1:], train_data.num_classes, config.width, Classifier)
            optimizer = make_optimizer(config, WarmupThenCosine(config, batches.steps_per_epoch))
            optimizer.build(model.trainable_variables)  # its state must be there to be restored
            model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)
        with Backup(model, optimizer, batches, make_sum(strategy), config, run) as backup:
            train(model, strategy, train_data, test_data, backup, config, run)
        run.digest(variable.numpy() for variable in model.variables)


def train(model, strategy, train_data, test_data, backup, config, run):
    """Trains from the last checkpoint to the end; the variables then are equal on every worker."""
    batches = backup.batches
    if config.input == "tfrecord" and task().index == 0:
        # Distributed: one worker writes the files that all read; the exchange just below makes the others wait for it.
        write_tfrecords(train_data, Path(config.output_dir) / "tfrecords", config.num_files)
    # Distributed: the mean of the workers' clocks is a number that all share and that is larger than any before, also
    # with fewer workers. From it the reader of the record knows which steps an earlier start took in vain.
    moment = backup.sum_over_workers(time.time()) / backup.sum_over_workers(1.0)  # each replica brings its own number
    run.restore(backup.position["epoch"], backup.position["step"], generation=moment)
    if config.mode == "tpu":
        batches.handed_out = []  # no Python runs in a compiled step: there the pipeline on the host says what it fed
    else:
        model.record_rows = row_recorder(run, backup)
    # Distributed: the test rows are divided too: each replica judges a share, and the counts are added up.
    test_batches = Batches(len(test_data), config.global_batch_size, seed=None)
    profile = [Profile(run, backup.sum_over_workers, config.output_dir)] if config.profile else []
    for epoch, first, steps_per_epoch, num_epochs in backup.parts():
        begin, end = epoch * batches.steps_per_epoch + first, num_epochs * batches.steps_per_epoch
        model.fit(
            distributed(train_data, batches, strategy, config, range(begin, min(end, backup.num_steps))),
            initial_epoch=epoch,
            epochs=num_epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=distributed(
                test_data, test_batches, strategy, config, range(test_batches.steps_per_epoch), forever=True
            ),
            validation_steps=test_batches.steps_per_epoch,
            verbose=0,
            # Distributed: all workers save, since reading a variable can take all of them.
            callbacks=[Report(run, backup, batches), backup, *profile],
        )


def row_recorder(run, backup):
    """A function for the training step to call with what arrives on a replica; it returns the worker's wish.

    Replicas of one process call it by turns.
    """
    lock = threading.Lock()

    def record(epochs, steps, rows):
        with lock:
            run.rows(int(epochs[0]), int(steps[0]), rows[rows >= 0])
            return np.int64(backup.wish(int(epochs[0]), int(steps[0])))

    return record


def make_sum(strategy):
    """A function: a number that each replica has its own value of -> the sum, the same on all."""

    @tf.function
    def total(value):
        # Distributed: every replica brings its value into an exchange that all of them take part in.
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [value]), axis=None)

    return lambda value: float(total(tf.constant(value, tf.float64)))


class Report(tf.keras.callbacks.Callback):
    """Reports loss, accuracy and speed of each epoch, and stops the training after the last step.

    It stands before the backup, which knows the steps that an earlier try has taken of the epoch.
    """

    def __init__(self, run, backup, batches):
        super().__init__()
        self.run, self.backup, self.batches = run, backup, batches

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.first = epoch, self.backup.position["step"]
        self.begun = self.shown = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        step = self.first + batch
        self.done = self.epoch * self.batches.steps_per_epoch + step + 1
        while self.batches.handed_out and self.batches.handed_out[0][:2] <= (self.epoch, step):
            self.run.rows(*self.batches.handed_out.pop(0))
        self.run.finite(logs["loss"], self.epoch, step)
        if time.perf_counter() - self.shown > 2:
            self.shown = time.perf_counter()
            self.run.progress(self.done, self.backup.num_steps, f"epoch {self.epoch + 1}, step {step + 1}")
        if self.done >= self.backup.num_steps:  # in the middle of an epoch, with scale.max_steps
            self.model.stop_training = True

    def on_test_begin(self, logs=None):
        self.seconds = time.perf_counter() - self.begun

    def on_epoch_end(self, epoch, logs=None):
        steps = self.done - epoch * self.batches.steps_per_epoch
        # Distributed: the workers stop their clocks at slightly different times: their mean is the same on all.
        seconds = self.backup.sum_over_workers(self.seconds) / self.backup.sum_over_workers(1.0)
        speed = self.backup.rows_between(self.first, steps) / seconds
        self.run.metric("train/loss", self.backup.loss(), self.done, epoch)
        self.run.metric("samples_per_second", speed, self.done, epoch, unit="samples/s")
        self.run.metric("eval/accuracy", logs["val_accuracy"], self.done, epoch)
        text = f"epoch {epoch + 1}  accuracy {logs['val_accuracy']:.4f}"
        self.run.progress(self.done, self.backup.num_steps, text)


if __name__ == "__main__":
    main()
