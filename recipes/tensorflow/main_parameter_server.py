"""Asynchronous training with TensorFlow: ParameterServerStrategy with a loop of our own over a ClusterCoordinator.

Shows:   a chief that gives out work, workers that do it, ps (parameter servers) that hold the variables: real processes of
         three roles. A worker that dies is replaced while the others go on, and no row is lost.
Choose:  when workers differ in speed, come and go, or the variables (large embeddings) do not fit on one machine.
         Otherwise synchronous training is better: here every gradient is computed with variables that are already old.
Run:     python -m tfrun --num-workers 2 --chief --num-ps 1 main_parameter_server.py config.yaml
Expect:  test accuracy of at least 0.95 on handwritten digits, within a minute on two CPU cores.
Source:  TensorFlow's tutorial "Parameter server training"; Dean et al. 2012, "Large Scale Distributed Deep Networks".
"""

import signal
import time
from pathlib import Path

import numpy as np

from data import Batches, ImageData
from model import build, make_optimizer, train_step
from runrecord import RunRecord, load_config
from runtime import prepare, task, tf
from settings import check_settings, learning_rate_at, num_steps_of
from strategies import make_partitioner


def main():
    me = task()
    config = check_settings(load_config(), me.num_workers, program="main_parameter_server.py")
    facts = {"device": prepare(config), "tensorflow": tf.__version__}
    # Distributed: one program, three roles; TF_CONFIG tells this process which one it has.
    if me.kind == "chief":
        with RunRecord(config.output_dir, 0, me.num_workers, 0, "chief", me.attempt, **facts) as run:
            coordinate(config, run)
    else:
        serve(me, config, facts)


def serve(me, config, facts):
    """The life of a ps or a worker: a server that computes what the chief asks for, until it is told to end."""
    # Distributed: SIGTERM is how the launcher ends the services. Blocked before TensorFlow's threads start, which inherit
    # that, it waits for `sigwait` below instead of cutting this process off.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    with RunRecord(config.output_dir, me.index, me.num_workers, 0, me.kind, me.attempt, **facts):
        server = tf.distribute.Server(resolver.cluster_spec(), me.kind, me.index, "grpc", start=True)
        signal.sigwait({signal.SIGTERM})
        del server


def coordinate(config, run):
    """The chief's work: it makes the variables (on the ps), gives out the steps, evaluates and writes checkpoints."""
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    # Distributed: connects to all workers and ps; a variable is put on a ps, or cut into parts on several of them.
    strategy = tf.distribute.ParameterServerStrategy(resolver, make_partitioner(config))
    # Distributed: schedules functions on whichever worker is free, and again on another one when a worker is lost.
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        model = build(train_data.images.shape[1:], train_data.num_classes, config.width)
        # Distributed: after a worker was replaced the loss has been seen to jump; clipping bounds what one gradient can do.
        optimizer = make_optimizer(config, config.learning_rate, config.clip_norm)
        optimizer.build(model.trainable_variables)
        epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    # Distributed: what was done is written down on a ps. Results stay on the worker until they are fetched, so that those
    # of a worker that dies would be lost, although its gradients have taken effect. Outside the scope: no partitioner cuts it.
    with tf.device("/job:ps/task:0/device:CPU:0"):
        log = make_log(-(-len(train_data) // config.global_batch_size), config.global_batch_size)
    folder = Path(config.checkpoint_dir)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epoch=epoch)
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
    if path := manager.restore_or_initialize():
        print(f"going on from {path}: epoch {int(epoch)}", flush=True)
    run.restore(int(epoch), 0, generation=time.time())
    train(strategy, coordinator, model, optimizer, log, epoch, manager, train_data, test_data, config, run)
    run.digest(variable.numpy() for variable in model.variables)


def train(strategy, coordinator, model, optimizer, log, epoch, manager, train_data, test_data, config, run):
    """Trains epoch by epoch; within an epoch nobody waits for anybody."""
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    step_on_worker = make_step(strategy, model, optimizer, log)
    # Distributed: every worker reads the table itself, once; the chief sends row numbers only, so that it decides who
    # takes which rows, and those of a worker that died go to another one.
    tables = coordinator.create_per_worker_dataset(lambda: table_of(train_data))
    table = iter(tables)
    for number in range(int(epoch), -(-num_steps // batches.steps_per_epoch)):
        started = time.perf_counter()
        log["pid"].assign(tf.zeros_like(log["pid"]))
        last_step = min(batches.steps_per_epoch, num_steps - number * batches.steps_per_epoch)
        for step in range(last_step):
            (rows,), weight = batches.shares(batches.order(number), step, 1)
            # Distributed: while a worker computes, the others have moved the variables on, by num_workers - 1 steps on
            # average. Zhang et al. 2016, "Staleness-aware Async-SGD": divide the rate by that staleness.
            rate = learning_rate_at(number + step / batches.steps_per_epoch, config) / task().num_workers
            arguments = (
                table,
                tf.constant(step),
                tf.constant(rows),
                tf.constant(weight),
                tf.constant(rate, tf.float32),
            )
            # Distributed: returns at once; a free worker takes the step, in no fixed order.
            coordinator.schedule(step_on_worker, args=arguments)
        loss_sum = collect(coordinator, log, number, batches, last_step, num_steps, run)
        done = number * batches.steps_per_epoch + last_step
        num_rows = min(last_step * config.global_batch_size, len(train_data))
        seconds, accuracy = time.perf_counter() - started, evaluate(model, test_data, config.global_batch_size)
        run.metric("train/loss", loss_sum / num_rows, done, number)
        run.metric("samples_per_second", num_rows / seconds, done, number, unit="samples/s")
        run.metric("eval/accuracy", accuracy, done, number)
        run.progress(done, num_steps, f"epoch {number + 1}  accuracy {accuracy:.4f}")
        epoch.assign(number + 1)
        run.checkpoint(manager.save(), number + 1, 0)  # Distributed: the chief saves what the ps hold


def make_log(num_steps, batch_size):
    """Variables with a place for each step of an epoch: the process that took it, the rows it took, the sum of their losses."""
    shapes = {
        "pid": ([num_steps], tf.int64),
        "rows": ([num_steps, batch_size], tf.int64),
        "loss": ([num_steps], tf.float32),
    }
    return {name: tf.Variable(tf.zeros(shape, kind), trainable=False) for name, (shape, kind) in shapes.items()}


def make_step(strategy, model, optimizer, log):
    """A function for the workers: their table, step, row numbers, each row's weight, the learning rate."""

    @tf.function
    def step_on_worker(table, step, rows, weight, rate):
        images, labels = next(table)
        known = rows >= 0
        places = tf.maximum(rows, 0)
        batch = {"image": tf.gather(images, places), "label": tf.gather(labels, places)}
        batch["weight"] = tf.where(known, weight, 0.0)
        optimizer.learning_rate.assign(rate)
        # Distributed: the worker reads the variables from the ps, computes, and sends the ps its gradients.
        losses = strategy.run(train_step, args=(model, optimizer, batch))
        # Distributed: evidence. The process that computes this opens its own entry in /proc: its number, first word.
        pid = tf.strings.to_number(tf.strings.split(tf.io.read_file("/proc/self/stat"), " ")[0], tf.int64)
        log["loss"].scatter_nd_update([[step]], [tf.reduce_sum(tf.where(known, losses, 0.0))])
        log["rows"].scatter_nd_update([[step]], [rows])
        log["pid"].scatter_nd_update([[step]], [pid])

    return step_on_worker


def collect(coordinator, log, epoch, batches, last_step, num_steps, run):
    """Notes each finished step with the process that took it until all are done; returns the sum of the rows' losses."""
    noted, shown, done = set(), time.perf_counter(), False
    while not done:
        done = coordinator.done()
        if done:
            coordinator.join()  # Distributed: raises what went wrong on a worker
        pids, all_rows = log["pid"].numpy(), log["rows"].numpy()
        for step in sorted(set(np.flatnonzero(pids).tolist()) - noted):
            run.rows(epoch, step, all_rows[step][all_rows[step] >= 0], pid=int(pids[step]))
            noted.add(step)
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            place = epoch * batches.steps_per_epoch + len(noted)
            run.progress(place, num_steps, f"epoch {epoch + 1}, {len(noted)} steps")
        time.sleep(0.05)
    return float(log["loss"].numpy()[:last_step].sum())


def table_of(data):
    """All rows as one element, again and again: images float32 (rows, height, width, channels), labels int64 (rows,)."""
    images, labels = data.read(np.arange(len(data)))
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


def evaluate(model, data, batch_size):
    """Accuracy over the whole split, on the chief."""
    right = 0
    for start in range(0, len(data), batch_size):
        images, labels = data.read(np.arange(start, min(start + batch_size, len(data))))
        right += int((model(images, training=False).numpy().argmax(1) == labels).sum())
    return right / len(data)


if __name__ == "__main__":
    main()
