"""Image classification in one process: main.py as it was before tf.distribute.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker. The rows come from memory, whatever `input` says.
"""

import time

import numpy as np

from checkpoints import Backup
from data import Batches, ImageData, elements, with_options
from model import Classifier, WarmupThenCosine, build, make_optimizer
from runrecord import RunRecord, load_config
from runtime import claim_checkpoints, prepare, tf
from settings import check_settings


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
        optimizer.build(model.trainable_variables)  # its state must be there to be restored
        model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)
        with Backup(model, optimizer, batches, lambda value: value, config, run) as backup:
            train(model, train_data, test_data, backup, config, run)
        run.digest(variable.numpy() for variable in model.variables)


def train(model, train_data, test_data, backup, config, run):
    """Trains from the last checkpoint to the end."""
    batches = backup.batches
    run.restore(backup.position["epoch"], backup.position["step"], generation=time.time())
    model.record_rows = row_recorder(run, backup)
    test_batches = Batches(len(test_data), config.global_batch_size, seed=None)
    for epoch, first, steps_per_epoch, num_epochs in backup.parts():
        begin, end = epoch * batches.steps_per_epoch + first, num_epochs * batches.steps_per_epoch
        model.fit(
            with_options(elements(train_data, batches, 1, range(begin, min(end, backup.num_steps))), config, "off"),
            initial_epoch=epoch,
            epochs=num_epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=with_options(
                elements(test_data, test_batches, 1, range(test_batches.steps_per_epoch), forever=True), config, "off"
            ),
            validation_steps=test_batches.steps_per_epoch,
            verbose=0,
            callbacks=[Report(run, backup, batches), backup],
        )


def row_recorder(run, backup):
    """A function for the training step to call with the rows that it takes; it returns what preempt.py calls a wish."""

    def record(epochs, steps, rows):
        run.rows(int(epochs[0]), int(steps[0]), rows[rows >= 0])
        return np.int64(backup.wish(int(epochs[0]), int(steps[0])))

    return record


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
        speed = self.backup.rows_between(self.first, steps) / self.seconds
        self.run.metric("train/loss", self.backup.loss(), self.done, epoch)
        self.run.metric("samples_per_second", speed, self.done, epoch, unit="samples/s")
        self.run.metric("eval/accuracy", logs["val_accuracy"], self.done, epoch)
        text = f"epoch {epoch + 1}  accuracy {logs['val_accuracy']:.4f}"
        self.run.progress(self.done, self.backup.num_steps, text)


if __name__ == "__main__":
    main()
