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

from data import Batches, ImageData, distributed, write_tfrecords
from model import Classifier, WarmupThenCosine, build, make_optimizer
from runrecord import RunRecord, load_config
from runtime import Copies, claim_checkpoints, prepare, task, tf
from settings import check_settings, num_steps_of
from strategies import make_strategy


def main():
    config = check_settings(load_config(), task().num_workers, program="main.py")
    copies = Copies(config)
    claim_checkpoints(config, "main.py")
    device = prepare(config)
    # Distributed: starts this worker's server and waits for the others, whose addresses TF_CONFIG holds.
    strategy = make_strategy(config)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)

    me, facts = task(), {"device": device, "tensorflow": tf.__version__}
    with RunRecord(config.output_dir, me.index, me.num_workers, 0, "worker", me.attempt, **facts) as run, copies:
        # Distributed: variables made in the scope are mirrored: one copy per replica, with the values of the first one.
        with strategy.scope():
            model = build(train_data.images.shape[1:], train_data.num_classes, config.width, Classifier)
            optimizer = make_optimizer(config, WarmupThenCosine(config, batches.steps_per_epoch))
            model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)
        train(model, strategy, batches, train_data, test_data, copies, config, run)
        run.digest(variable.numpy() for variable in model.variables)


def train(model, strategy, batches, train_data, test_data, copies, config, run):
    """Trains from the last checkpoint to the end; the variables then are equal on every worker."""
    num_steps, folder = num_steps_of(config, batches), Path(config.checkpoint_dir)
    mean_over_workers = make_mean(strategy)
    first_epoch = epoch_to_go_on_with(folder)
    if config.input == "tfrecord" and task().index == 0:
        # Distributed: one worker writes the files that all read; the exchange just below makes the others wait for it.
        write_tfrecords(train_data, Path(config.output_dir) / "tfrecords", config.num_files)
    # Distributed: the mean of the workers' clocks is a number that all share and that is larger than any before. From
    # it the reader of the record knows which steps an earlier start took in vain.
    run.restore(first_epoch, 0, generation=mean_over_workers(time.time()))
    if config.mode == "tpu":
        batches.handed_out = []  # no Python runs in a compiled step: there the pipeline on the host says what it fed
    else:
        model.record_rows = row_recorder(run)
    first_step = first_epoch * batches.steps_per_epoch
    # Distributed: the test rows are divided too: each replica judges a share, and the counts are added up.
    test_batches = Batches(len(test_data), config.global_batch_size, seed=None)
    model.fit(
        distributed(train_data, batches, strategy, config, range(first_step, num_steps)),
        epochs=-(-num_steps // batches.steps_per_epoch),
        steps_per_epoch=batches.steps_per_epoch,
        validation_data=distributed(
            test_data, test_batches, strategy, config, range(test_batches.steps_per_epoch), forever=True
        ),
        validation_steps=test_batches.steps_per_epoch,
        verbose=0,
        callbacks=[
            Report(run, mean_over_workers, batches, num_steps),
            # Distributed: all workers call it at the end of an epoch, since reading a variable can take all of
            # them; the files of the first one count, the others write theirs to a temporary folder. At the start
            # all read the same.
            tf.keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=False),
            ReportCheckpoint(run, folder, copies),
        ],
    )


def epoch_to_go_on_with(folder):
    """What BackupAndRestore is going to begin with: the epoch after the saved one. The input must begin there, too."""
    path = tf.train.latest_checkpoint(folder / "chief")
    if path is None:
        return 0
    epoch = int(tf.train.load_variable(path, "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1
    print(f"going on from {path}: epoch {epoch}", flush=True)
    return epoch


def row_recorder(run):
    """A function for the training step to call with what arrives on a replica.

    Replicas of one process call it by turns.
    """
    lock = threading.Lock()

    def record(epochs, steps, rows):
        with lock:
            run.rows(int(epochs[0]), int(steps[0]), rows[rows >= 0])
        return np.int64(0)

    return record


def make_mean(strategy):
    """A function: a number that each worker has its own value of -> the mean, the same on all."""

    @tf.function
    def mean(value):
        # Distributed: every replica brings its value into an exchange that all of them take part in.
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, strategy.run(tf.identity, [value]), axis=None)

    return lambda value: float(mean(tf.constant(value, tf.float64)))


class Report(tf.keras.callbacks.Callback):
    """Reports loss, accuracy and speed of each epoch, and stops the training after `num_steps`."""

    def __init__(self, run, mean_over_workers, batches, num_steps):
        super().__init__()
        self.run, self.mean_over_workers = run, mean_over_workers
        self.batches, self.num_steps = batches, num_steps

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.done = epoch, epoch * self.batches.steps_per_epoch
        self.begun = self.shown = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.done = self.epoch * self.batches.steps_per_epoch + batch + 1
        while self.batches.handed_out and self.batches.handed_out[0][:2] <= (self.epoch, batch):
            self.run.rows(*self.batches.handed_out.pop(0))
        self.run.finite(logs["loss"], self.epoch, batch)
        if time.perf_counter() - self.shown > 2:
            self.shown = time.perf_counter()
            self.run.progress(self.done, self.num_steps, f"epoch {self.epoch + 1}, step {batch + 1}")
        if self.done >= self.num_steps:  # in the middle of an epoch, with scale.max_steps
            self.model.stop_training = True

    def on_test_begin(self, logs=None):
        self.seconds = time.perf_counter() - self.begun

    def on_epoch_end(self, epoch, logs=None):
        steps = self.done - epoch * self.batches.steps_per_epoch
        num_rows = min(steps * self.batches.global_batch_size, self.batches.num_rows)
        # Distributed: the workers stop their clocks at slightly different times.
        seconds = self.mean_over_workers(self.seconds)
        self.run.metric("train/loss", logs["loss"], self.done, epoch)
        self.run.metric("samples_per_second", num_rows / seconds, self.done, epoch, unit="samples/s")
        self.run.metric("eval/accuracy", logs["val_accuracy"], self.done, epoch)
        self.run.progress(self.done, self.num_steps, f"epoch {epoch + 1}  accuracy {logs['val_accuracy']:.4f}")


class ReportCheckpoint(tf.keras.callbacks.Callback):
    """Stands behind BackupAndRestore: what it reports is on disk, whole."""

    def __init__(self, run, folder, copies):
        super().__init__()
        self.run, self.folder, self.copies = run, folder, copies

    def on_epoch_end(self, epoch, logs=None):
        if task().index == 0:  # Distributed: the first worker's files are the ones that count.
            self.copies.report(self.run, tf.train.latest_checkpoint(self.folder / "chief"), epoch + 1)


if __name__ == "__main__":
    main()
