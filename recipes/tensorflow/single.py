"""Image classification in one process: main.py as it was before tf.distribute.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker. The rows come from memory, whatever `input` says.
"""

import time
from pathlib import Path

import numpy as np

from data import Batches, ImageData, elements, with_options
from model import Classifier, WarmupThenCosine, build, make_optimizer
from runrecord import RunRecord, load_config
from runtime import claim_checkpoints, prepare, tf
from settings import check_settings, num_steps_of


def main():
    config = check_settings(load_config(), 1, program="main.py")
    claim_checkpoints(config, "main.py")
    device = prepare(config)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)

    facts = {"device": device, "tensorflow": tf.__version__}
    with RunRecord(config.output_dir, 0, 1, **facts) as run:
        model = build(train_data.images.shape[1:], train_data.num_classes, config.width, Classifier)
        optimizer = make_optimizer(config, WarmupThenCosine(config, batches.steps_per_epoch))
        model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)
        train(model, batches, train_data, test_data, config, run)
        run.digest(variable.numpy() for variable in model.variables)


def train(model, batches, train_data, test_data, config, run):
    """Trains from the last checkpoint to the end."""
    num_steps, folder = num_steps_of(config, batches), Path(config.checkpoint_dir)
    first_epoch = epoch_to_go_on_with(folder)
    run.restore(first_epoch, 0, generation=time.time())
    model.record_rows = row_recorder(run)
    first_step = first_epoch * batches.steps_per_epoch
    test_batches = Batches(len(test_data), config.global_batch_size, seed=None)
    model.fit(
        with_options(elements(train_data, batches, 1, range(first_step, num_steps)), config, "off"),
        epochs=-(-num_steps // batches.steps_per_epoch),
        steps_per_epoch=batches.steps_per_epoch,
        validation_data=with_options(
            elements(test_data, test_batches, 1, range(test_batches.steps_per_epoch), forever=True), config, "off"
        ),
        validation_steps=test_batches.steps_per_epoch,
        verbose=0,
        callbacks=[
            Report(run, batches, num_steps),
            tf.keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=False),
            ReportCheckpoint(run, folder),
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
    """A function for the training step to call with the rows that it takes."""

    def record(epochs, steps, rows):
        run.rows(int(epochs[0]), int(steps[0]), rows[rows >= 0])
        return np.int64(0)

    return record


class Report(tf.keras.callbacks.Callback):
    """Reports loss, accuracy and speed of each epoch, and stops the training after `num_steps`."""

    def __init__(self, run, batches, num_steps):
        super().__init__()
        self.run, self.batches, self.num_steps = run, batches, num_steps

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.done = epoch, epoch * self.batches.steps_per_epoch
        self.begun = self.shown = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.done = self.epoch * self.batches.steps_per_epoch + batch + 1
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
        self.run.metric("train/loss", logs["loss"], self.done, epoch)
        self.run.metric("samples_per_second", num_rows / self.seconds, self.done, epoch, unit="samples/s")
        self.run.metric("eval/accuracy", logs["val_accuracy"], self.done, epoch)
        self.run.progress(self.done, self.num_steps, f"epoch {epoch + 1}  accuracy {logs['val_accuracy']:.4f}")


class ReportCheckpoint(tf.keras.callbacks.Callback):
    """Stands behind BackupAndRestore: what it reports is on disk, whole."""

    def __init__(self, run, folder):
        super().__init__()
        self.run, self.folder = run, folder

    def on_epoch_end(self, epoch, logs=None):
        self.run.checkpoint(tf.train.latest_checkpoint(self.folder / "chief"), epoch + 1, 0)


if __name__ == "__main__":
    main()
