"""Asynchronous training with TensorFlow by Keras `fit`.

The chief only calls it, and Keras gives the steps to the workers.

Shows:   ParameterServerStrategy under `model.fit`, with a dataset that every worker makes for itself.
Choose:  when a Keras program is to run on parameter servers as it is. main_parameter_server.py, with a loop of
         its own, can say who takes which rows, and that each is taken once; `fit` cannot: each worker draws from
         an endless stream.
Run:     python -m tfrun --num-workers 2 --chief --num-ps 1 main_parameter_server_fit.py config.yaml
Expect:  test accuracy of at least 0.95 on handwritten digits, within a minute on two CPU cores.
Source:  TensorFlow's tutorial "Parameter server training", section "Training with Model.fit".
"""

import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np

from data import Batches, ImageData
from model import WarmupThenCosine, build, make_optimizer, train_step
from parameter_servers import (
    Kept,
    clear,
    evaluate,
    make_log,
    next_place,
    note,
    own_process,
    report_epoch,
    report_steps,
    serve,
)
from runrecord import RunRecord, load_config
from runtime import claim_checkpoints, prepare, task, tf
from settings import check_settings, num_steps_of
from strategies import make_partitioner


def main():
    me = task()
    config = check_settings(load_config(), me.num_workers, program="main_parameter_server_fit.py")
    claim_checkpoints(config, "main_parameter_server.py")  # `fit` writes the same ones
    facts = {"device": prepare(config), "tensorflow": tf.__version__}
    # Distributed: one program, three roles; TF_CONFIG tells this process which one it has.
    if me.kind == "chief":
        with RunRecord(config.output_dir, 0, me.num_workers, 0, "chief", me.attempt, **facts) as run:
            fit(config, run)
    else:
        serve(me, config, facts)


def fit(config, run):
    """The chief's work."""
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    # Distributed: connects to all workers and ps; a variable is put on a ps, or cut into parts on several of them.
    strategy = tf.distribute.ParameterServerStrategy(resolver, make_partitioner(config))
    # Distributed: a step that a lost worker has begun is given out again: more places than steps.
    log = make_log(2 * batches.steps_per_epoch, config.global_batch_size)
    with strategy.scope():
        model = build(train_data.images.shape[1:], train_data.num_classes, config.width, AsynchronousClassifier)
        model.log = log
        # Distributed: divided by the staleness of the gradients plus one: it is num_workers - 1 on average (Zhang et
        # al. 2016).
        slower = SimpleNamespace(**vars(config) | {"learning_rate": config.learning_rate / task().num_workers})
        optimizer = make_optimizer(config, WarmupThenCosine(slower, batches.steps_per_epoch), config.clip_norm)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer=optimizer)
    checkpoints = Kept(model, optimizer, config, run)
    run.restore(int(checkpoints.epoch), 0, generation=time.time())
    num_whole, rest = divmod(num_steps, batches.steps_per_epoch)
    # All whole epochs, then the one that `max_steps` cuts.
    for num_epochs, steps in ((num_whole, batches.steps_per_epoch), (num_whole + 1, rest)):
        if steps and int(checkpoints.epoch) < num_epochs:
            model.fit(
                # Distributed: called once for each worker, and run there.
                tf.keras.utils.experimental.DatasetCreator(lambda context: stream_of(train_data, config)),
                initial_epoch=int(checkpoints.epoch),
                epochs=num_epochs,
                # Distributed: the steps of all workers together; a faster worker takes more of them.
                steps_per_epoch=steps,
                verbose=0,
                callbacks=[Report(run, log, checkpoints, batches, num_steps, test_data, config)],
            )
    run.digest(variable.numpy() for variable in model.variables)


def stream_of(data, config):
    """An endless stream of shuffled batches of one size: image, label, row, weight."""
    images, labels = data.read(np.arange(len(data)))

    def shuffled(times):
        # Distributed: all workers run this same graph: without a seed of its own each would draw the same rows.
        seed = tf.stack([tf.strings.to_hash_bucket_fast(own_process(), 2**62), times])
        return tf.data.Dataset.from_tensor_slices(
            tf.random.experimental.stateless_shuffle(tf.range(len(data), dtype=tf.int64), seed)
        )

    def element(rows):
        batch = {"image": tf.gather(images, rows), "label": tf.gather(labels, rows), "row": rows}
        return batch | {"weight": tf.fill([config.global_batch_size], 1 / config.global_batch_size)}

    rows = tf.data.Dataset.counter().flat_map(shuffled).batch(config.global_batch_size, drop_remainder=True)
    return rows.map(element).prefetch(config.prefetch_batches)


class AsynchronousClassifier(tf.keras.Model):
    """A model whose training step runs on a worker, with variables on the ps, and notes there which rows it took."""

    log = None

    def train_step(self, batch):
        losses = train_step(self, self.optimizer, batch)
        with tf.control_dependencies([losses]):
            note(self.log, next_place(self.log), batch["row"], losses)
        return {"loss": tf.reduce_mean(losses)}


class Report(tf.keras.callbacks.Callback):
    """After each epoch: what the workers have noted, loss, speed and accuracy, and a checkpoint."""

    def __init__(self, run, log, checkpoints, batches, num_steps, test_data, config):
        super().__init__()
        self.run, self.log, self.checkpoints, self.batches = run, log, checkpoints, batches
        self.num_steps, self.test_data, self.config = num_steps, test_data, config

    def on_epoch_begin(self, epoch, logs=None):
        clear(self.log)
        self.started, self.over, self.noted = time.perf_counter(), threading.Event(), set()
        # Distributed: `fit` gives its steps out without waiting, so it has no callback for a batch that is
        # done; the ps knows.
        self.teller = threading.Thread(target=self.tell, args=(epoch,), daemon=True)
        self.teller.start()

    def tell(self, epoch):
        while not self.over.wait(1):
            with contextlib.suppress(tf.errors.OpError):  # a ps that is lost is noticed by `fit`
                report_steps(self.log, epoch, self.noted, self.run)
                place = epoch * self.batches.steps_per_epoch + len(self.noted)
                self.run.progress(place, self.num_steps, f"epoch {epoch + 1}, {len(self.noted)} steps")

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        self.over.set()
        self.teller.join()
        report_steps(self.log, epoch, self.noted, self.run)
        num_rows = len(self.noted) * self.config.global_batch_size
        loss = float(self.log["loss"].numpy().sum()) / num_rows
        accuracy = evaluate(self.model, self.test_data, self.config.global_batch_size)
        done = min(self.num_steps, (epoch + 1) * self.batches.steps_per_epoch)
        self.run.finite(loss, epoch, (done - 1) % self.batches.steps_per_epoch)
        report_epoch(self.run, epoch, done, self.num_steps, loss, num_rows / seconds, accuracy)
        self.checkpoints.save(epoch + 1)  # Distributed: the chief saves what the ps hold


if __name__ == "__main__":
    main()
