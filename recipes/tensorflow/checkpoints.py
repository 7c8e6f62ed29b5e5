"""Checkpoints of Keras's `fit`, at the end of an epoch and in the middle of one.

Keras's own BackupAndRestore is not used: it keeps one checkpoint and no sums of its files, so that a damaged one is the
end. And it saves before a preemption only where Google's own cluster announces it.
"""

import json
import tempfile
from pathlib import Path

from preempt import LEAVE, Notice
from runrecord import check_position
from runtime import task, tf
from settings import depends_on, num_steps_of
from storage import Checkpoints


class Backup(tf.keras.callbacks.Callback):
    """Saves model, optimizer and position {epoch, step, loss_sum of the epoch so far}; `fit` goes on from there.

    `sum_over_workers`: see `make_sum` in main.py. In one process it gives back what it is given.
    """

    def __init__(self, model, optimizer, batches, sum_over_workers, config, run):
        super().__init__()
        self.keeper = tf.train.Checkpoint(model=model, optimizer=optimizer)
        self.batches, self.num_steps = batches, num_steps_of(config, batches)
        self.sum_over_workers, self.depends_on = sum_over_workers, depends_on(config, batches.num_rows)
        self.notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
        self.store = Checkpoints(config.checkpoint_dir, config.output_dir, run)
        self.position = {"epoch": 0, "step": 0, "loss_sum": 0.0}
        # Distributed: all workers read the same files, whoever wrote them.
        if folder := self.store.last():
            self.keeper.read(str(folder / "state")).assert_existing_objects_matched()
            self.position = json.loads((folder / "position.json").read_text())
            check_position(folder, self.position.pop("depends_on"), self.depends_on)
            print(f"going on from {folder}: epoch {self.position['epoch']}, step {self.position['step']}", flush=True)

    def parts(self):
        """Yields (epoch, first step in it, steps of an epoch, epochs) of each `fit`.

        The first one takes the rest of an epoch, if there is one to be finished; the next one takes all others.
        """
        steps_per_epoch, num_epochs = self.batches.steps_per_epoch, -(-self.num_steps // self.batches.steps_per_epoch)
        if step := self.position["step"]:
            yield self.position["epoch"], step, steps_per_epoch - step, self.position["epoch"] + 1
        if self.position["epoch"] < num_epochs:
            yield self.position["epoch"], 0, steps_per_epoch, num_epochs

    def wish(self, epoch, step):
        """What this worker wants after a step of an epoch: see preempt.py."""
        done = epoch * self.batches.steps_per_epoch + step + 1
        return self.notice.wish(done, last=self.is_last(epoch, step + 1))

    def is_last(self, epoch, step):
        done = epoch * self.batches.steps_per_epoch + step
        return step == self.batches.steps_per_epoch or done >= self.num_steps

    def on_epoch_begin(self, epoch, logs=None):
        # What the epoch's part in an earlier try has left: `fit` counts from 0.
        self.first, self.loss_before = self.position["step"], self.position["loss_sum"]
        self.wished, self.leaving = 0.0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        step = self.first + batch + 1
        self.position["step"] = step
        self.position["loss_sum"] = self.loss_before + logs["loss"] * self.rows_between(self.first, step)
        # Distributed: the metric is the sum over all workers, so that all do the same after this step.
        wish, self.wished = logs["wishes"] - self.wished, logs["wishes"]
        if wish and self.is_last(self.position["epoch"], step):
            self.leaving = wish
        elif wish:
            self.save()
            self.leave(wish)

    def on_epoch_end(self, epoch, logs=None):
        self.position = {"epoch": epoch + 1, "step": 0, "loss_sum": 0.0}
        self.save()
        self.leave(self.leaving)

    def leave(self, wish):
        if wish >= LEAVE:
            self.store.wait()
            self.sum_over_workers(0.0)  # Distributed: nobody leaves before the first worker has saved.
        self.notice.saved(wish)

    def loss(self):
        """Mean over the rows of this epoch, those that an earlier try took included."""
        return self.position["loss_sum"] / self.rows_between(0, self.position["step"])

    def rows_between(self, first, last):
        """Rows of the steps from `first` to `last` of an epoch."""
        batch = self.batches.global_batch_size
        return min(last * batch, self.batches.num_rows) - min(first * batch, self.batches.num_rows)

    def save(self):
        """All workers call it, at the same step."""
        # Distributed: reading mirrored variables can take all workers, so all write; the first one's files count.
        if task().index > 0:
            with tempfile.TemporaryDirectory() as elsewhere:
                self.keeper.write(f"{elsewhere}/state")
            return
        with self.store.save(self.position["epoch"], self.position["step"]) as folder:
            self.keeper.write(str(folder / "state"))
            Path(folder / "position.json").write_text(json.dumps({**self.position, "depends_on": self.depends_on}))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.store.__exit__(*error)
