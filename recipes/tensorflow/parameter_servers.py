"""What both programs with parameter servers share: how workers and ps serve, and the log of who took which step."""

import signal

import numpy as np

from runrecord import RunRecord
from runtime import tf
from storage import Checkpoints


def serve(me, config, facts):
    """The life of a ps or a worker: a server that computes what the chief asks for, until it is told to end."""
    # Distributed: SIGTERM is how the launcher ends the services. Blocked before TensorFlow's threads start, which
    # inherit that, it waits for `sigwait` below instead of cutting this process off.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    with RunRecord(config.output_dir, me.index, me.num_workers, 0, me.kind, me.attempt, **facts):
        server = tf.distribute.Server(resolver.cluster_spec(), me.kind, me.index, "grpc", start=True)
        signal.sigwait({signal.SIGTERM})
        del server


class Kept:
    """The checkpoints of model and optimizer, with the variable `epoch` to go on with.

    What the last whole checkpoint holds is restored. A notice is not heeded in the middle of an epoch: its steps have
    no order, and a worker that goes away is replaced without a loss.
    """

    def __init__(self, model, optimizer, config, run):
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epoch=self.epoch)
        self.store = Checkpoints(config.checkpoint_dir, config.output_dir, run)
        if folder := self.store.last():
            self.checkpoint.read(str(folder / "state"))
            print(f"going on from {folder}: epoch {int(self.epoch)}", flush=True)

    def save(self, epoch):
        """Called by the chief when `epoch` epochs are done; the ps write what they hold."""
        self.epoch.assign(epoch)
        with self.store.save(epoch, 0) as folder:
            self.checkpoint.write(str(folder / "state"))


NAME_BYTES = 80  # of a process: its host's name has 64 at most


def make_log(num_steps, batch_size):
    """Variables on the first ps with a place for each step of an epoch.

    They hold who took it (process, then its rows), and the sum of their losses.

    Process and rows share one variable, so that they are written at once: a worker can die between any two operations.
    Results stay on the worker until they are fetched, so that those of a worker that dies would be lost, although its
    gradients have taken effect. What is noted on a ps outlives the worker.
    """
    shapes = {
        "taken": ([num_steps, NAME_BYTES + batch_size], tf.int64),
        "loss": ([num_steps], tf.float32),
        "next": ([], tf.int64),
    }
    # Distributed: on one ps, outside the strategy's scope: no partitioner cuts it.
    with tf.device("/job:ps/task:0/device:CPU:0"):
        return {name: tf.Variable(tf.zeros(shape, kind), trainable=False) for name, (shape, kind) in shapes.items()}


def clear(log):
    for variable in log.values():
        variable.assign(tf.zeros_like(variable))


def note(log, step, rows, losses):
    """Part of a worker's step: writes down that this process took these row numbers (-1: no row) at that place."""
    loss = log["loss"].scatter_nd_update([[step]], [tf.reduce_sum(tf.where(rows >= 0, losses, 0.0))])
    # Distributed: operations on different variables run in any order. What counts as done is written last.
    with tf.control_dependencies([loss]):
        name = tf.cast(tf.io.decode_raw(own_process(), tf.uint8, fixed_length=NAME_BYTES), tf.int64)
        log["taken"].scatter_nd_update([[step]], [tf.concat([name, rows], 0)])


def next_place(log):
    """The number of a step among all workers' steps, each given once.

    The ps counts while it holds the variable's lock.
    """
    return tf.raw_ops.ResourceCountUpTo(resource=log["next"].handle, limit=2**62, T=tf.int64)


def own_process():
    """PID/HOST of the process that computes this, as a text: it opens its own entry in /proc.

    A number alone would not do: in pods all are alike.
    """
    # Distributed: evidence. It says which worker took a step.
    pid = tf.strings.split(tf.io.read_file("/proc/self/stat"), " ")[0]
    return tf.strings.join([pid, tf.strings.strip(tf.io.read_file("/proc/sys/kernel/hostname"))], "/")


def report_steps(log, epoch, noted, run):
    """Reports the steps that have been noted since the last call; `noted` keeps their places."""
    taken = log["taken"].numpy()
    for step in sorted(set(np.flatnonzero(taken[:, 0]).tolist()) - noted):
        name, rows = taken[step, :NAME_BYTES], taken[step, NAME_BYTES:]
        pid, _, host = bytes(name[name > 0].tolist()).decode().partition("/")
        run.rows(epoch, step, rows[rows >= 0], taken_by=(host, int(pid)))
        noted.add(step)


def report_epoch(run, epoch, done, num_steps, loss, samples_per_second, accuracy):
    run.metric("train/loss", loss, done, epoch)
    run.metric("samples_per_second", samples_per_second, done, epoch, unit="samples/s")
    run.metric("eval/accuracy", accuracy, done, epoch)
    run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")


def evaluate(model, data, batch_size):
    """Accuracy over the whole split, on the chief."""
    right = 0
    for start in range(0, len(data), batch_size):
        images, labels = data.read(np.arange(start, min(start + batch_size, len(data))))
        right += int((model(images, training=False).numpy().argmax(1) == labels).sum())
    return right / len(data)
