"""Asynchronous training with TensorFlow: ParameterServerStrategy with a loop of our own over a ClusterCoordinator.

Shows:   a chief that gives out work, workers that do it, ps (parameter servers) that hold the variables: real processes
         of three roles. A worker that dies is replaced while the others go on, and no row is lost.
Choose:  when workers differ in speed, come and go, or the variables (large embeddings) do not fit on one machine.
         Otherwise synchronous training is better: here every gradient is computed with variables that are already old.
Run:     python -m tfrun --num-workers 2 --chief --num-ps 1 main_parameter_server.py config.yaml
Expect:  test accuracy of at least 0.95 on handwritten digits, within a minute on two CPU cores.
Source:  TensorFlow's tutorial "Parameter server training"; Dean et al. 2012, "Large Scale Distributed Deep Networks".
"""

import time
from types import SimpleNamespace

import numpy as np

from data import Batches, ImageData
from model import build, make_optimizer, train_step
from parameter_servers import Kept, clear, evaluate, make_log, note, report_epoch, report_steps, serve
from runrecord import RunRecord, load_config
from runtime import claim_checkpoints, prepare, task, tf
from settings import check_settings, learning_rate_at, num_steps_of
from strategies import make_partitioner


def main():
    me = task()
    config = check_settings(load_config(), me.num_workers, program="main_parameter_server.py")
    claim_checkpoints(config, "main_parameter_server.py")
    facts = {"device": prepare(config), "tensorflow": tf.__version__}
    # Distributed: one program, three roles; TF_CONFIG tells this process which one it has.
    if me.kind == "chief":
        with RunRecord(config.output_dir, 0, me.num_workers, 0, "chief", me.attempt, **facts) as run:
            coordinate(config, run)
    else:
        serve(me, config, facts)


def coordinate(config, run):
    """The chief's work: it makes the variables (on the ps), gives out the steps, evaluates and writes checkpoints."""
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    # Distributed: connects to all workers and ps; a variable is put on a ps, or cut into parts on several of them.
    strategy = tf.distribute.ParameterServerStrategy(resolver, make_partitioner(config))
    # Distributed: schedules functions on whichever worker is free, and again on another one when a worker is lost.
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        model = build(train_data.images.shape[1:], train_data.num_classes, config.width)
        # Distributed: after a worker was replaced the loss has been seen to jump; clipping bounds what one
        # gradient can do.
        optimizer = make_optimizer(config, config.learning_rate, config.clip_norm)
        optimizer.build(model.trainable_variables)
    # Distributed: what was done is written down on a ps, where it outlives the worker that did it.
    log = make_log(batches.steps_per_epoch, config.global_batch_size)
    checkpoints = Kept(model, optimizer, config, run)
    run.restore(int(checkpoints.epoch), 0, generation=time.time())
    # Distributed: every worker reads the table itself, once; the chief sends row numbers only, so that it decides who
    # takes which rows, and those of a worker that died go to another one.
    table = iter(coordinator.create_per_worker_dataset(lambda: table_of(train_data)))
    step_on_worker = make_step(strategy, model, optimizer, log)
    job = SimpleNamespace(coordinator=coordinator, step_on_worker=step_on_worker, table=table, log=log, batches=batches)
    num_steps = num_steps_of(config, batches)
    for epoch in range(int(checkpoints.epoch), -(-num_steps // batches.steps_per_epoch)):
        loss_sum, num_rows, seconds = train_epoch(job, epoch, num_steps, config, run)
        accuracy = evaluate(model, test_data, config.global_batch_size)
        done = min(num_steps, (epoch + 1) * batches.steps_per_epoch)
        run.finite(loss_sum, epoch, (done - 1) % job.batches.steps_per_epoch)
        report_epoch(run, epoch, done, num_steps, loss_sum / num_rows, num_rows / seconds, accuracy)
        checkpoints.save(epoch + 1)  # Distributed: the chief saves what the ps hold
    run.digest(variable.numpy() for variable in model.variables)


def train_epoch(job, epoch, num_steps, config, run):
    """Within an epoch nobody waits for anybody.

    Returns the sum of all rows' losses, the number of rows and the seconds.
    """
    started, batches = time.perf_counter(), job.batches
    last_step = min(batches.steps_per_epoch, num_steps - epoch * batches.steps_per_epoch)
    clear(job.log)
    for step in range(last_step):
        (rows,), weight = batches.shares(batches.order(epoch), step, 1)
        # Distributed: while a worker computes, the others move the variables on, by num_workers - 1 steps on average.
        # Zhang et al. 2016, "Staleness-aware Async-SGD", divide the rate by that staleness; here by one more, so that a
        # single worker keeps its rate.
        rate = np.float32(learning_rate_at(epoch + step / batches.steps_per_epoch, config) / task().num_workers)
        arguments = [tf.constant(value) for value in (step, rows, weight, rate)]
        # Distributed: returns at once; a free worker takes the step, in no fixed order.
        job.coordinator.schedule(job.step_on_worker, args=(job.table, *arguments))
    noted, shown, done = set(), time.perf_counter(), False
    while not done:
        done = job.coordinator.done()
        if done:
            job.coordinator.join()  # Distributed: raises what went wrong on a worker
        report_steps(job.log, epoch, noted, run)
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            place = epoch * batches.steps_per_epoch + len(noted)
            run.progress(place, num_steps, f"epoch {epoch + 1}, {len(noted)} steps")
        time.sleep(0.05)
    loss_sum = float(job.log["loss"].numpy()[:last_step].sum())
    return loss_sum, min(last_step * config.global_batch_size, batches.num_rows), time.perf_counter() - started


def make_step(strategy, model, optimizer, log):
    """A function for the workers: their table, step, row numbers, each row's weight, the learning rate."""

    @tf.function
    def take(batch):
        return train_step(model, optimizer, batch)

    @tf.function
    def step_on_worker(table, step, rows, weight, rate):
        images, labels = next(table)
        known = rows >= 0
        places = tf.maximum(rows, 0)
        batch = {"image": tf.gather(images, places), "label": tf.gather(labels, places)}
        batch["weight"] = tf.where(known, weight, 0.0)
        optimizer.learning_rate.assign(rate)
        # Distributed: the worker reads the variables from the ps, computes, and sends the ps its gradients.
        losses = strategy.run(take, args=(batch,))
        # Distributed: on the ps, and only when the gradients have been applied there.
        with tf.control_dependencies([losses]):
            note(log, step, rows, losses)

    return step_on_worker


def table_of(data):
    """All rows as one element, again and again.

    Images float32 (rows, height, width, channels), labels int64 (rows,).
    """
    images, labels = data.read(np.arange(len(data)))
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


if __name__ == "__main__":
    main()
