"""Image classification in one process: main.py as it was before DistributedDataParallel.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker.
"""

import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from data import Batches, ImageData
from loader import loader_of
from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    network: torch.nn.Module
    model: torch.nn.Module  # the network, or what torch.compile has made of it
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # of the epoch so far


def main():
    config = check_settings(load_config())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    train_data = ImageData(config.data_dir, "train", config.max_rows)
    test_data = ImageData(config.data_dir, "test")
    torch.manual_seed(config.seed)
    network = torch_network(train_data.images.shape[3], train_data.num_classes, config.width).to(device)
    # Numbers drawn from here on (shifts) do not depend on how many the network took.
    torch.manual_seed(config.seed)
    model = torch.compile(network) if config.compile else network
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    with (
        RunRecord(config.output_dir, 0, 1, device=str(device), torch=torch.__version__) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        training = Training(network, model, optimizer, checkpoints, len(train_data))
        load_checkpoint(training, config)
        run.restore(training.epoch, training.step, generation=time.time())
        notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
        train(training, notice, train_data, test_data, config, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())


def train(training, notice, train_data, test_data, config, run):
    """Trains from where `training` is to the end."""
    batches = Batches(len(train_data), config.global_batch_size, config.seed)
    num_steps = num_steps_of(config, batches)
    while training.epoch * batches.steps_per_epoch < num_steps:
        epoch = training.epoch
        seconds, num_rows = train_epoch(training, notice, train_data, batches, num_steps, config, run)
        done = min(num_steps, (epoch + 1) * batches.steps_per_epoch)
        rows_of_epoch = min((done - epoch * batches.steps_per_epoch) * config.global_batch_size, len(train_data))
        run.metric("train/loss", training.loss_sum / rows_of_epoch, done, epoch)
        if num_rows:  # none when the last try had taken the epoch's last step
            run.metric("samples_per_second", num_rows / seconds, done, epoch, unit="samples/s")
        accuracy = evaluate(training.network, test_data, config)
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config, run)
        notice.saved()


def train_epoch(training, notice, train_data, batches, num_steps, config, run):
    """Trains to the epoch's end (or to `num_steps`). Returns seconds and rows in them."""
    epoch, first_step = training.epoch, training.epoch * batches.steps_per_epoch
    steps = range(training.step, min(batches.steps_per_epoch, num_steps - first_step))
    device, started, num_rows = next(training.network.parameters()).device, time.perf_counter(), 0
    loader = loader_of(train_data, batches, epoch, steps, 0, 1, config.num_loader_workers, device)
    shown = started
    training.network.train()
    for step, (ids, batch_size, images, labels) in zip(steps, loader, strict=True):
        run.rows(epoch, step, ids)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, config)
        loss = train_step(training.model, training.optimizer, images, labels, batch_size, config)
        training.loss_sum += run.finite(loss, epoch, step)
        training.step, num_rows = step + 1, num_rows + batch_size
        if time.perf_counter() - shown > 2:
            shown = time.perf_counter()
            run.progress(first_step + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
        if wish := notice.wish(first_step + step + 1, step + 1 == steps.stop):
            save_checkpoint(training, config, run)
            notice.saved(wish)
    return time.perf_counter() - started, num_rows


def train_step(model, optimizer, images, labels, batch_size, config):
    """One optimizer step on a batch of `batch_size` rows; returns the summed loss."""
    device = next(model.parameters()).device
    images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    images = shifted(images, config.max_shift)
    num_parts, loss_sum = config.accumulation_steps, 0.0
    parts = zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True)
    optimizer.zero_grad()
    for part, part_labels in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = F.cross_entropy(model(part).float(), part_labels, reduction="sum")
        (loss / batch_size).backward()
        loss_sum += loss.item()
    optimizer.step()
    return loss_sum


def shifted(images, most):
    """Images (batch, channels, height, width) moved by a random number of pixels, the same for the whole batch."""
    if not most:
        return images
    height, width = images.shape[2:]
    top, left = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return F.pad(images, (most, most, most, most))[:, :, top : top + height, left : left + width]


@torch.no_grad()
def evaluate(network, data, config):
    """Accuracy over the whole split."""
    network.eval()
    device, num_correct = next(network.parameters()).device, 0
    rows = torch.arange(len(data))
    for ids in rows.split(config.global_batch_size):
        images, labels = data.read(ids.numpy())
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()
    return num_correct / len(data)


def save_checkpoint(training, config, run):
    """Model, optimizer, position and random state; the checkpoint is whole or not there."""
    total = sum(parameter.detach().sum() for parameter in training.network.parameters())
    run.finite(total, training.epoch, training.step - 1, "the sum of the parameters")
    of_ranks = [{"random": torch.get_rng_state(), "loss_sum": training.loss_sum}]
    content = {
        "mode": config.mode,
        "model": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "step": training.step,
        "of_ranks": of_ranks,
        "depends_on": depends_on(config, training.num_rows),
    }
    with training.checkpoints.save(training.epoch, training.step) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(training, config):
    """Reads the last checkpoint, if there is one, and goes on from there.

    Raises SystemExit when it belongs to another mode or model, or to other batches.
    """
    folder = training.checkpoints.last()
    if folder is None:
        return
    path = f"{config.checkpoint_dir}/{folder.name}"
    if not (folder / "state.pt").exists():
        raise SystemExit(f"checkpoint {path} is of another mode than mode=ddp: use another checkpoint_dir")
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(path, content["depends_on"], depends_on(config, training.num_rows))
    check_model(path, content["model"], training.network.state_dict())
    training.network.load_state_dict(content["model"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    training.epoch, training.step, of_ranks = content["epoch"], content["step"], content["of_ranks"]
    torch.set_rng_state(of_ranks[0]["random"])
    training.loss_sum = sum(own["loss_sum"] for own in of_ranks)
    print(f"going on from {path}: epoch {training.epoch}, step {training.step}", flush=True)


if __name__ == "__main__":
    main()
