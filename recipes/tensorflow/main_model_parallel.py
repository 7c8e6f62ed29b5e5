"""Model parallelism with TensorFlow: DTensor lays the layers of one model over several devices of one process.

Shows:   a mesh of devices, a layout for each variable (first layer cut by columns, second by rows), and that a training
         step written for one device needs no change: TensorFlow puts the exchanges where the layouts demand them.
Choose:  when a layer does not fit on one device. Plain DTensor variables, not Keras layers: those that know layouts are
         gone from Keras 3, and DTensor itself is still called experimental.
Run:     python -m tfrun --num-workers 1 main_model_parallel.py config.yaml
Expect:  test accuracy of at least 0.94 on handwritten digits; the same losses with num_devices=1, but for rounding.
Source:  TensorFlow's guide "DTensor concepts"; Shoeybi et al. 2019, "Megatron-LM", section 3 (columns, then rows).
"""

import json
import time
from dataclasses import dataclass

import numpy as np

from data import Batches, ImageData
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from runtime import claim_checkpoints, prepare, task, tf
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints

dtensor = tf.experimental.dtensor


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    weights: list[dtensor.DVariable]  # Distributed: each divided among the devices, as `on_mesh` says.
    velocities: list[dtensor.DVariable]  # Distributed: divided as the weights are.
    checkpoints: Checkpoints
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # of the epoch so far


def main():
    config = check_settings(load_config(), task().num_workers, program="main_model_parallel.py")
    claim_checkpoints(config, "main_model_parallel.py")
    facts = {"device": prepare(config), "tensorflow": tf.__version__}
    mesh = make_mesh(config)
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    with (
        RunRecord(config.output_dir, 0, 1, 0, "worker", task().attempt, **facts) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        values = initial_values(train_data, config)
        velocities = on_mesh([np.zeros_like(value) for value in values], mesh)
        training = Training(on_mesh(values, mesh), velocities, checkpoints, len(train_data))
        load_checkpoint(training, mesh, config)
        report_parts(training.weights, run)
        run.restore(training.epoch, training.step, generation=time.time())
        train(training, mesh, train_data, test_data, config, run)
        run.digest(whole(variable) for variable in training.weights)


def make_mesh(config):
    """One axis, along which the model is cut."""
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    dtensor.initialize_accelerator_system(kind)
    # Distributed: the devices, as a grid with named axes. A second axis, "batch", would add data parallelism.
    return dtensor.create_mesh(
        [("model", config.num_devices)], devices=[f"{kind}:{n}" for n in range(config.num_devices)]
    )


def initial_values(data, config):
    """The weights of a perceptron with one hidden layer of 16 x width units, before the first step; NumPy float32."""
    random = np.random.default_rng(config.seed)
    num_inputs, num_hidden = int(np.prod(data.images.shape[1:])), 16 * config.width
    shapes = [(num_inputs, num_hidden), (num_hidden,), (num_hidden, data.num_classes), (data.num_classes,)]
    # He et al. 2015, "Delving Deep into Rectifiers": keeps the size of the activations from layer to layer.
    return [
        (random.normal(size=s) * (2 / s[0]) ** 0.5 if len(s) == 2 else np.zeros(s)).astype(np.float32) for s in shapes
    ]


def on_mesh(values, mesh):
    """DTensor variables with those values."""
    whole_axis = dtensor.UNSHARDED
    # Distributed: columns of the first layer, rows of the second: the hidden units are divided, and one sum over the
    # devices, behind the second layer, is all that they must exchange on the way forward.
    specs = [[whole_axis, "model"], ["model"], ["model", whole_axis], [whole_axis]]
    layouts = [dtensor.Layout(spec, mesh) for spec in specs]
    return [
        dtensor.DVariable(dtensor.relayout(everywhere(value, mesh), layout))
        for value, layout in zip(values, layouts, strict=True)
    ]


def everywhere(value, mesh):
    # Distributed: a copy on each device of the mesh.
    return dtensor.copy_to_mesh(tf.constant(value), dtensor.Layout.replicated(mesh, rank=np.ndim(value)))


def whole(variable):
    """The full value of a divided variable, NumPy."""
    value = variable.read_value()
    # Distributed: gathers the parts on every device; any of the copies will do.
    replicated = dtensor.relayout(
        value, dtensor.Layout.replicated(dtensor.fetch_layout(value).mesh, rank=len(value.shape))
    )
    return dtensor.unpack(replicated)[0].numpy()


def report_parts(weights, run):
    """A table in the report: what each device really holds of each variable."""
    rows = []
    for name, variable in zip(("first weights", "first bias", "second weights", "second bias"), weights, strict=True):
        for device, part in enumerate(dtensor.unpack(variable.read_value())):
            rows.append(
                {
                    "variable": name,
                    "whole": str(tuple(variable.shape)),
                    "device": device,
                    "part": str(tuple(part.shape)),
                }
            )
    run.table("layout", rows)


def forward(weights, images):
    hidden = tf.nn.relu(tf.matmul(images, weights[0]) + weights[1])
    return tf.matmul(hidden, weights[2]) + weights[3]


def make_train_step(weights, velocities, momentum):
    """A compiled function: images (n, pixels), labels one-hot, each row's weight, the rate -> the rows' losses (n,)."""

    @tf.function
    def train_step(images, labels, row_weights, rate):
        with tf.GradientTape() as tape:
            losses = tf.nn.softmax_cross_entropy_with_logits(labels, forward(weights, images))
            loss = tf.reduce_sum(losses * row_weights)
        # Distributed: each gradient has the layout of its variable; no device ever holds one of them whole.
        for variable, velocity, gradient in zip(weights, velocities, tape.gradient(loss, weights), strict=True):
            velocity.assign(momentum * velocity - rate * gradient)
            variable.assign_add(momentum * velocity - rate * gradient)  # Nesterov
        return losses

    return train_step


def train(training, mesh, train_data, test_data, config, run):
    """Trains from where `training` is to the end."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    step_on_mesh = make_train_step(training.weights, training.velocities, config.momentum)
    one_hot = np.eye(train_data.num_classes, dtype=np.float32)
    for epoch in range(training.epoch, -(-num_steps // batches.steps_per_epoch)):
        started, first_row = time.perf_counter(), training.step * config.global_batch_size
        last_step = min(batches.steps_per_epoch, num_steps - epoch * batches.steps_per_epoch)
        for step in range(training.step, last_step):
            wish = notice.wish(epoch * batches.steps_per_epoch + step + 1, step + 1 == last_step)
            (rows,), weight = batches.shares(batches.order(epoch), step, 1)
            run.rows(epoch, step, rows[rows >= 0])
            images, labels = train_data.read(rows)
            rate = np.float32(learning_rate_at(epoch + step / batches.steps_per_epoch, config))
            row_weights = np.where(rows >= 0, weight, 0).astype(np.float32)
            flat = images.reshape(len(images), -1)
            losses = step_on_mesh(*[everywhere(value, mesh) for value in (flat, one_hot[labels], row_weights, rate)])
            training.loss_sum += run.finite(float(dtensor.unpack(losses)[0].numpy()[rows >= 0].sum()), epoch, step)
            training.step = step + 1
            if wish:
                save_checkpoint(training, config)
                notice.saved(wish)
        seconds, num_rows = time.perf_counter() - started, min(last_step * config.global_batch_size, len(train_data))
        accuracy, done = evaluate(training.weights, test_data, mesh), epoch * batches.steps_per_epoch + last_step
        run.metric("train/loss", training.loss_sum / num_rows, done, epoch)
        if num_rows > first_row:  # less when the last try had taken the epoch's last step
            run.metric("samples_per_second", (num_rows - first_row) / seconds, done, epoch, unit="samples/s")
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config)
        notice.saved()


def evaluate(weights, data, mesh):
    """Accuracy over the whole split."""
    images, labels = data.read(np.arange(len(data)))
    logits = forward(weights, everywhere(images.reshape(len(images), -1), mesh))
    return float((dtensor.unpack(logits)[0].numpy().argmax(1) == labels).mean())


def save_checkpoint(training, config):
    """Whole variables, so that another number of devices can go on with them."""
    variables = [*training.weights, *training.velocities]
    values = {f"{number:03d}": whole(variable) for number, variable in enumerate(variables)}
    position = {"epoch": training.epoch, "step": training.step, "loss_sum": training.loss_sum}
    position["depends_on"] = depends_on(config, training.num_rows)
    with training.checkpoints.save(training.epoch, training.step) as folder:
        np.savez(folder / "state.npz", **values)
        (folder / "position.json").write_text(json.dumps(position))


def load_checkpoint(training, mesh, config):
    """Reads the last checkpoint, if there is one, and goes on from there."""
    folder = training.checkpoints.last()
    if folder is None:
        return
    with np.load(folder / "state.npz", allow_pickle=False) as content:
        values = [content[name] for name in sorted(content.files)]
    position = json.loads((folder / "position.json").read_text())
    check_position(folder, position["depends_on"], depends_on(config, training.num_rows))
    expected = [*training.weights, *training.velocities]
    check_model(folder, *({str(n): value for n, value in enumerate(ones)} for ones in (values, expected)))
    num_weights = len(training.weights)
    training.weights, training.velocities = on_mesh(values[:num_weights], mesh), on_mesh(values[num_weights:], mesh)
    training.epoch, training.step, training.loss_sum = position["epoch"], position["step"], position["loss_sum"]
    print(f"going on from {folder}: epoch {training.epoch}, step {training.step}", flush=True)


if __name__ == "__main__":
    main()
