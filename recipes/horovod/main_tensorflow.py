"""The same program as main.py in TensorFlow: same data order, network shape, optimizer and checkpoints.

Shows:   `horovod.tensorflow` with a training loop of our own: `horovod.tensorflow.keras` breaks on Keras 3
         ("keras.backend has no attribute constant"), and Horovod has had no release since.
Choose:  as main.py, when the model is TensorFlow's.
Run:     horovodrun -np 2 --gloo python main_tensorflow.py config.yaml
Expect:  test accuracy of at least 0.97 on handwritten digits, within a minute on two CPU cores.
Source:  Horovod's documentation, "Horovod with TensorFlow".
"""

import json
import os
import time

import horovod
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from data import Batches, ImageData
from model import tensorflow_network
from preempt import Notice, Preempted
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


def main():
    config = check_settings(load_config(), "tensorflow")
    hvd.init()  # Distributed: meet the other processes that horovodrun started.
    check_settings(config, "tensorflow", hvd.size())
    device = pick_device()
    tf.keras.utils.set_random_seed(config.seed)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    model = tensorflow_network(train_data.images.shape[1:], train_data.num_classes, config.width)
    optimizer = make_optimizer(model, config)

    facts = {"device": device, "tensorflow": tf.__version__, "horovod": horovod.__version__}
    try:
        # Distributed: each rank keeps a record of its own: who it is among how many, and which of its host's processes.
        with (
            RunRecord(config.output_dir, hvd.rank(), hvd.size(), hvd.local_rank(), **facts) as run,
            Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
        ):
            notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
            # Distributed: one rank reads the checkpoint; broadcasting makes it the start of all.
            position = hvd.rank() == 0 and load_checkpoint(model, optimizer, checkpoints, config, len(train_data))
            position = hvd.broadcast_object(position, name="position")
            # Distributed: all begin with rank 0's values. Horovod wants TensorFlow's variables (`.value`), not Keras's.
            hvd.broadcast_variables([v.value for v in model.variables + optimizer.variables], root_rank=0)
            moment = hvd.broadcast_object(time.time(), name="generation")
            run.restore(position["epoch"], position["step"], generation=moment)
            train(model, optimizer, position, checkpoints, notice, train_data, test_data, config, run)
            run.digest(variable.numpy() for variable in model.variables)
    except Preempted:
        # Distributed: as soon as one has left, horovodrun ends the others: they wait for the one that saves.
        # Horovod has no barrier for TensorFlow.
        sum_over_ranks(0.0)
        raise
    # Distributed: leaves the others in order; a process that merely ends looks to them like one that died.
    hvd.shutdown()


def pick_device():
    """A GPU of its own for each process where the host has so many and Horovod was built with NCCL, else the CPU."""
    # TensorFlow does not heed OMP_NUM_THREADS, which carries the number of threads that this worker may use.
    tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", "0")))
    tf.config.threading.set_inter_op_parallelism_threads(1)
    gpus, has_nccl = tf.config.list_physical_devices("GPU"), hvd.nccl_built()
    if len(gpus) < hvd.local_size() or not has_nccl:
        if gpus and hvd.local_rank() == 0:  # Distributed: one process tells for all of its host.
            found = f"{len(gpus)} GPUs for {hvd.local_size()} workers, Horovod with{'' if has_nccl else 'out'} NCCL"
            print(f"computing on the CPU: {found}", flush=True)
        tf.config.set_visible_devices([], "GPU")
        return "cpu"
    # Distributed: local_rank counts the processes of one host; a GPU belongs to a host.
    tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
    tf.config.experimental.set_memory_growth(gpus[hvd.local_rank()], True)
    return f"gpu:{hvd.local_rank()}"


def make_optimizer(model, config):
    optimizer = tf.keras.optimizers.SGD(config.learning_rate, config.momentum, nesterov=config.momentum > 0)
    optimizer.build(model.trainable_variables)  # its state must exist before it can be broadcast
    return optimizer


def train(model, optimizer, position, checkpoints, notice, train_data, test_data, config, run):
    """Trains from the position {epoch, step, loss_sum of the epoch so far, over all ranks} to the end."""
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    train_step = make_train_step(model, optimizer, config)
    for epoch in range(position["epoch"], -(-num_steps // batches.steps_per_epoch)):
        order = batches.order(epoch)
        started = shown = time.perf_counter()
        last_step = min(batches.steps_per_epoch, num_steps - epoch * batches.steps_per_epoch)
        first_row = position["step"] * config.global_batch_size
        rows_of_epoch, loss_sum = min(last_step * config.global_batch_size, len(train_data)), 0.0
        for step in range(position["step"], last_step):
            place = epoch * batches.steps_per_epoch + step + 1
            # Distributed: each worker takes its own share of the global batch.
            ids, batch_size = batches.share(order, step, hvd.rank(), hvd.size())
            run.rows(epoch, step, ids)
            optimizer.learning_rate.assign(learning_rate_at(epoch + step / batches.steps_per_epoch, config))
            images, labels = train_data.read(ids)
            wish = notice.wish(place, last=step + 1 == last_step)
            # Distributed: with the gradients travel the wishes for a checkpoint: after this step all do the same.
            loss, wish = train_step(
                tf.constant(images), tf.constant(labels), tf.constant(float(batch_size)), tf.constant(wish)
            )
            loss_sum += run.finite(float(loss), epoch, step)
            if time.perf_counter() - shown > 2:
                shown = time.perf_counter()
                run.progress(place, num_steps, f"epoch {epoch + 1}, step {step + 1}")
            if int(wish):
                position["loss_sum"], loss_sum = position["loss_sum"] + sum_over_ranks(loss_sum), 0.0
                position.update(epoch=epoch, step=step + 1)
                if hvd.rank() == 0:  # Distributed: one writes for all.
                    save_checkpoint(model, optimizer, position, checkpoints, config, len(train_data))
                notice.saved(int(wish))
        loss = (position["loss_sum"] + sum_over_ranks(float(loss_sum))) / rows_of_epoch
        # Distributed: ranks stop their clocks at slightly different times; the slowest one counts.
        seconds = max(
            hvd.allgather(tf.constant([time.perf_counter() - started], tf.float64), name="seconds").numpy().tolist()
        )
        total = sum(float(tf.reduce_sum(variable)) for variable in model.trainable_variables)
        run.finite(total, epoch, last_step - 1, "the sum of the parameters")
        accuracy = evaluate(model, test_data, config.global_batch_size)
        done = epoch * batches.steps_per_epoch + last_step
        run.metric("train/loss", loss, done, epoch)
        if rows_of_epoch > first_row:  # less when the last try had taken the epoch's last step
            run.metric("samples_per_second", (rows_of_epoch - first_row) / seconds, done, epoch, unit="samples/s")
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        position = {"epoch": epoch + 1, "step": 0, "loss_sum": 0.0}
        if hvd.rank() == 0:  # Distributed: all ranks hold the same state, so one of them writes it.
            save_checkpoint(model, optimizer, position, checkpoints, config, len(train_data))
        notice.saved()


def make_train_step(model, optimizer, config):
    """A compiled function: (images, labels, batch_size, wish) -> (the share's summed loss, the sum of all wishes).

    Images and labels are this worker's share, `batch_size` the rows of the global batch, `wish` see preempt.py.
    """
    compression = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}[config.compression]
    op = {"average": hvd.Average, "adasum": hvd.Adasum}[config.op]
    num_passes = config.backward_passes_per_step
    shape = [None, *model.input_shape[1:]]

    # A fixed signature: the last, smaller batch of an epoch must not compile the function again.
    @tf.function(
        input_signature=[
            tf.TensorSpec(shape),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([]),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def train_step(images, labels, batch_size, wish):
        # Micro-batch k of n takes rows k, k+n, ...; their gradients add up on this worker before they are exchanged.
        loss_sum, gradients = 0.0, [tf.zeros_like(variable) for variable in model.trainable_variables]
        for number in range(num_passes):
            with tf.GradientTape() as tape:
                logits = model(images[number::num_passes], training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[number::num_passes], logits)
                loss_part = tf.reduce_sum(losses)
                # Distributed: Horovod averages over the workers; dividing by the rows of the whole batch gives each
                # row the same weight even where the shares differ in size.
                loss = loss_part * hvd.size() / batch_size
            new = tape.gradient(loss, model.trainable_variables)
            gradients = [total + part for total, part in zip(gradients, new, strict=True)]
            loss_sum += loss_part
        # Distributed: the exchange. `hvd.DistributedGradientTape` does the same inside `gradient`, but once
        # per micro-batch.
        gradients = [hvd.allreduce(gradient, op=op, compression=compression) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss_sum, hvd.allreduce(wish, op=hvd.Sum)

    return train_step


def evaluate(model, data, batch_size):
    """Accuracy over the whole split, each rank judging its share of it."""
    num_correct, rows = 0, np.arange(hvd.rank(), len(data), hvd.size())  # Distributed: every world_size-th row
    for start in range(0, len(rows), batch_size):
        images, labels = data.read(rows[start : start + batch_size])
        num_correct += int((model(images, training=False).numpy().argmax(1) == labels).sum())
    return sum_over_ranks(num_correct) / len(data)


def sum_over_ranks(value):
    # Distributed: counts and sums add up exactly over unequal shares, a mean of means would not.
    return float(hvd.allreduce(tf.constant(value, tf.float64), op=hvd.Sum, name="sum_over_ranks"))


def save_checkpoint(model, optimizer, position, checkpoints, config, num_rows):
    """All variables and the position to go on with; the checkpoint is whole or not there."""
    values = {f"{number:03d} {v.path}": v.numpy() for number, v in enumerate(model.variables + optimizer.variables)}
    text = json.dumps({**position, "depends_on": depends_on(config, num_rows)}).encode()
    with checkpoints.save(position["epoch"], position["step"]) as folder:
        np.savez(folder / "state.npz", __position__=np.frombuffer(text, np.uint8), **values)


def load_checkpoint(model, optimizer, checkpoints, config, num_rows):
    """Sets all variables from the last checkpoint if there is one; returns the position to go on with.

    Raises SystemExit when it belongs to another model or other batches.
    """
    folder = checkpoints.last()
    if folder is None:
        return {"epoch": 0, "step": 0, "loss_sum": 0.0}
    path = f"{config.checkpoint_dir}/{folder.name}"
    with np.load(folder / "state.npz", allow_pickle=False) as content:
        position = json.loads(content["__position__"].tobytes())
        check_position(path, position["depends_on"], depends_on(config, num_rows))
        names = [name for name in content.files if name != "__position__"]
        variables = model.variables + optimizer.variables
        theirs = {f"variable {number:03d}": content[name] for number, name in enumerate(names)}
        check_model(path, theirs, {f"variable {number:03d}": v for number, v in enumerate(variables)})
        for variable, name in zip(variables, names, strict=True):
            variable.assign(content[name])
    print(f"going on from {path}: epoch {position['epoch']}, step {position['step']}", flush=True)
    return {key: position[key] for key in ("epoch", "step", "loss_sum")}


if __name__ == "__main__":
    main()
