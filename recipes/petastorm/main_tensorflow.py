"""From Spark's Parquet to TensorFlow with Petastorm: `make_petastorm_dataset` under MultiWorkerMirroredStrategy.

Shows:   a tf.data pipeline that is fed by Petastorm's column reader, a shard for each worker, and a training loop that
         goes on when one worker has run out of rows. Flights only; main.py has the other readers, and the tensors.
Choose:  as in main.py, when the model is TensorFlow.
Run:     python -m tfrun --num-workers 2 main_tensorflow.py config.yaml
Expect:  AUC of at least 0.65 for "more than 15 minutes late", in a minute on two cores.
Source:  Petastorm's documentation; TensorFlow's guide "Custom training with tf.distribute.Strategy".
"""

import json
import os
import time
from pathlib import Path

# Before TensorFlow is imported: Keras 2 (Keras 3 breaks multi-worker strategies), and no word about GPUs that
# are not there.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import petastorm
import tensorflow as tf
from petastorm import make_batch_reader
from petastorm.tf_utils import make_petastorm_dataset
from sklearn.metrics import roc_auc_score

from preempt import LEAVE, Notice, Preempted
from readers import addresses_of, check_row_groups, columns_of, label_of, leave, reader_settings, whole
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on
from storage import Checkpoints
from tfrun import be_patient


def main():
    cluster = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}, "task": {"index": 0}}'))
    # Distributed: TF_CONFIG tells this process who the others are, and which of them it is.
    rank, world_size = cluster["task"]["index"], len(cluster["cluster"]["worker"])
    config = check_settings(load_config(), world_size)
    check_row_groups(config, rank, world_size)
    tf.config.set_visible_devices([], "GPU")  # the strategy would take all of them, and this recipe is for the CPU
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    tf.keras.utils.set_random_seed(config.seed)
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    be_patient()  # Distributed: a worker that is busy for a moment is not taken for dead.
    # Distributed: starts this worker's server and waits for the others.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    facts = {"petastorm": petastorm.__version__, "tensorflow": tf.__version__, "device": "cpu"}
    attempt = int(os.environ.get("TFRUN_ATTEMPT", 0))
    with (
        RunRecord(config.output_dir, rank, world_size, attempt=attempt, **facts) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        # Distributed: variables made here have a copy on every worker, which the strategy keeps equal.
        with strategy.scope():
            model = make_model(manifest, config)
            optimizer = tf.keras.optimizers.Adam(config.learning_rate)
            optimizer.build(model.trainable_variables)
        add_up, train_step = make_steps(strategy, model, optimizer)
        position = load_checkpoint(model, optimizer, checkpoints, config, manifest)
        # Distributed: the mean of the workers' clocks is the same on all, and grows, also with fewer workers.
        moment = float(add_up(tf.constant(time.time(), tf.float64))) / world_size
        run.restore(position["epoch"], position["taken"], generation=moment)
        notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)

        def save(wish=0):
            if rank == 0:  # Distributed: all workers hold the same values, so one of them writes them.
                save_checkpoint(model, optimizer, position, checkpoints, config, manifest)
            if wish >= LEAVE:
                add_up(tf.constant(0.0, tf.float64))  # Distributed: tfrun ends all when the first one has left.
            notice.saved(wish)

        for epoch in range(position["epoch"], config.num_epochs):
            if config.max_steps and position["step"] >= config.max_steps and not position["taken"]:
                break
            train_epoch(add_up, train_step, manifest, config, position, notice, save, rank, world_size, run)
            auc = evaluate(model, manifest, config)
            run.metric("eval/auc", auc, step=position["step"], epoch=epoch)
            run.progress(epoch + 1, config.num_epochs, f"epoch {epoch + 1}  eval/auc {auc:.4f}")
            position.update(epoch=epoch + 1, taken=0, loss_sum=0.0, num_rows=0.0)
            save()
        run.digest(variable.numpy() for variable in model.variables)


def make_model(manifest, config):
    """Flights: float32 (n, features) -> logits (n, 1)."""
    scale = tf.keras.layers.Rescaling(
        [1 / s for s in manifest["std"]], [-m / s for m, s in zip(manifest["mean"], manifest["std"], strict=True)]
    )
    hidden = [tf.keras.layers.Dense(config.width, activation="relu") for _ in range(2)]
    model = tf.keras.Sequential([scale, *hidden, tf.keras.layers.Dense(1)])
    model.build((None, len(manifest["features"])))
    return model


def make_steps(strategy, model, optimizer):
    """(sum of a number over all workers, one optimizer step); both are called by all workers at the same time."""

    @tf.function
    def add_up(value):
        # Distributed: each worker brings its own value; all get the sum.
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [value]), axis=None)

    def replica_step(features, late, total):
        with tf.GradientTape() as tape:
            losses = tf.nn.sigmoid_cross_entropy_with_logits(late[:, None], model(features, training=True))
            loss = tf.reduce_sum(losses) / total
        # Distributed: `apply_gradients` adds up the gradients of all workers first. Each is its rows' part of the mean
        # over all rows.
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return tf.reduce_sum(losses)

    signature = [tf.TensorSpec([None, model.input_shape[-1]]), tf.TensorSpec([None]), tf.TensorSpec([])]
    # One program for batches of any size, none included: a new one for each size would be compiled by
    # some workers only.
    # Distributed: every worker runs the step at the same time, each on its own batch.
    train_step = tf.function(lambda *batch: strategy.run(replica_step, args=batch), input_signature=signature)
    return add_up, train_step


def batches_of_tensors(reader, batch_size, shuffle_rows, seed, manifest):
    """A tf.data pipeline of (ids, features, late), from the chunks of a Petastorm reader."""
    names, label = manifest["features"], label_of(manifest)

    def columns(chunk):  # a store of one's own may have whole numbers, or float64
        features = [tf.cast(getattr(chunk, name), tf.float32) for name in names]
        return chunk.id, tf.stack(features, axis=1), tf.cast(getattr(chunk, label), tf.float32)

    dataset = make_petastorm_dataset(reader).map(columns)
    # Chunks are row groups; they are cut up, mixed, and put together again. Shapes are lost on the way from Python.
    dataset = dataset.map(
        lambda ids, x, y: (
            tf.ensure_shape(ids, [None]),
            tf.ensure_shape(x, [None, len(names)]),
            tf.ensure_shape(y, [None]),
        )
    )
    return dataset.unbatch().shuffle(shuffle_rows, seed=seed).batch(batch_size).prefetch(2)


def train_epoch(add_up, train_step, manifest, config, position, notice, save, rank, world_size, run):
    """Takes the position {epoch, step, and of the epoch: taken (steps), loss_sum, num_rows} through the rest of it."""
    epoch = position["epoch"]
    seed = config.seed * 1000 + epoch
    # Distributed: a shard for each worker.
    settings = reader_settings(config, columns_of(manifest), rank, world_size, seed, config.max_rows)
    loss_sum, num_rows = 0.0, 0

    def collect():
        """Adds this try's part of the sums, over all workers, to the position."""
        nonlocal loss_sum, num_rows
        for name, value in (("loss_sum", loss_sum), ("num_rows", num_rows)):
            position[name] += float(add_up(tf.constant(value, tf.float64)))
        loss_sum, num_rows = 0.0, 0

    none = (np.empty(0, np.int64), np.empty((0, len(manifest["features"])), np.float32), np.empty(0, np.float32))
    with whole(make_batch_reader(addresses_of(f"{config.data_dir}/train"), **settings)) as reader:
        batches = batches_of_tensors(
            reader, config.global_batch_size // world_size, config.shuffle_rows, seed, manifest
        )
        stream = batches.as_numpy_iterator()
        for _ in range(position["taken"]):  # what an earlier try has taken
            next(stream, None)
        while config.max_steps is None or position["step"] < config.max_steps:
            ids, features, late = next(stream, none)
            # Distributed: row groups do not divide evenly. A worker that has run out goes on with no rows until all do.
            # The workers' wishes for a checkpoint (see preempt.py) travel along: all save after the same step.
            own = [len(ids), notice.wish(position["step"] + 1)]
            total, wish = add_up(tf.constant(own, tf.float64)).numpy().tolist()
            if not total:
                break
            run.rows(epoch, position["taken"], ids)
            loss_sum += float(train_step(features, late, total))
            num_rows += len(ids)
            position["step"], position["taken"] = position["step"] + 1, position["taken"] + 1
            if rank == 0 and position["step"] % 50 == 0:  # Distributed: all are at the same step.
                run.progress(epoch, config.num_epochs, f"epoch {epoch + 1}  step {position['step']}")
            if wish:
                collect()
                save(wish)
    collect()
    run.metric("train/loss", position["loss_sum"] / position["num_rows"], step=position["step"], epoch=epoch)


def evaluate(model, manifest, config):
    """AUC on the test store. It is small: each worker judges all of it, and the evidence sees that they agree."""
    settings = reader_settings(config, columns_of(manifest), None, None, None) | {"reader_pool_type": "dummy"}
    scores, truth = [], []
    with make_batch_reader(addresses_of(f"{config.data_dir}/test"), **settings) as reader:
        for chunk in reader:
            features = np.stack([getattr(chunk, name) for name in manifest["features"]], axis=1)
            scores.append(model(features).numpy()[:, 0])
            truth.append(getattr(chunk, label_of(manifest)))
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))


def save_checkpoint(model, optimizer, position, checkpoints, config, manifest):
    """All variables and the position; the checkpoint is whole or not there."""
    values = [variable.numpy() for variable in (*model.variables, *optimizer.variables)]
    with checkpoints.save(position["epoch"], position["taken"]) as folder:
        np.savez(folder / "state.npz", *values)
        (folder / "position.json").write_text(json.dumps({**position, "depends_on": depends_on(config, manifest)}))


def load_checkpoint(model, optimizer, checkpoints, config, manifest):
    """Fills model and optimizer from the last checkpoint, if there is one; returns the position to go on with."""
    folder = checkpoints.last()  # Distributed: all read the same files.
    if folder is None:
        return {"epoch": 0, "step": 0, "taken": 0, "loss_sum": 0.0, "num_rows": 0.0}
    position = json.loads((folder / "position.json").read_text())
    check_position(folder, position.pop("depends_on"), depends_on(config, manifest))
    variables = {f"arr_{number}": v for number, v in enumerate((*model.variables, *optimizer.variables))}
    with np.load(folder / "state.npz") as content:
        check_model(folder, content, variables)
        for name, variable in variables.items():
            variable.assign(content[name])
    return position


if __name__ == "__main__":
    try:
        main()
    except Preempted as error:
        leave(error)
    leave()
