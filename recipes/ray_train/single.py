"""Image classification in one process: main.py as it was before Ray.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough, and its memory holds the rows.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker, as long as a shard has no more than `shuffle_rows` rows.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


@dataclass
class Training:
    """What a checkpoint holds, and who keeps it."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    num_rows: int  # of the training data; a checkpoint made with another number is refused
    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # of the epoch so far
    accuracy: float = 0.0  # after the epoch before


def main():
    config = check_settings(load_config())
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    device = torch.device("cuda" if config.use_gpu else "cpu")
    torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
    torch.manual_seed(config.seed)
    channels = manifest["schema"]["images"]["shape"][3]
    network = torch_network(channels, len(manifest["classes"]), config.width).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    train_shards = shards_of(config, manifest, "train", device)
    test_shards = shards_of(config, manifest, "test", device)
    num_rows = sum(len(shard["id"]) for shard in train_shards)
    with (
        RunRecord(config.output_dir, 0, 1, torch=torch.__version__, device=str(device)) as run,
        Checkpoints(config.checkpoint_dir, config.output_dir, run) as checkpoints,
    ):
        training = Training(network, optimizer, checkpoints, num_rows)
        load_checkpoint(training, config)
        run.restore(training.epoch, training.step, generation=time.time())
        train(training, train_shards, test_shards, config, run)
        run.digest(parameter.detach().cpu().numpy() for parameter in network.state_dict().values())


def shards_of(config, manifest, split, device):
    """The rows {id, label, image} as `num_shards` parts; images float32 in [0, 1] (n, channels, height, width)."""
    images = np.load(Path(config.data_dir) / f"{split}_images.npy", mmap_mode="r")
    labels = np.load(Path(config.data_dir) / f"{split}_labels.npy", mmap_mode="r")
    num_rows = min(len(labels), config.max_rows or len(labels)) if split == "train" else len(labels)
    max_value, found = manifest["schema"]["images"]["max_value"], []
    for shard in range(config.num_shards):
        ids = np.arange(shard, num_rows, config.num_shards)
        pixels = torch.from_numpy(images[ids].astype(np.float32) / np.float32(max_value))
        columns = {"id": torch.from_numpy(ids), "label": torch.from_numpy(labels[ids]), "image": pixels}
        found.append(channels_first({name: values.to(device) for name, values in columns.items()}))
    return found


def train(training, train_shards, test_shards, config, run):
    """Trains from where `training` is to the end."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    steps_per_epoch, num_steps = num_steps_of(config, training.num_rows)
    while (first := training.epoch * steps_per_epoch) < num_steps:
        epoch, started, taken = training.epoch, time.perf_counter(), 0
        steps = range(training.step, min(steps_per_epoch, num_steps - first))
        training.network.train()
        for step, batch in zip(steps, joined(train_shards, steps, config, epoch), strict=True):
            wish = notice.wish(first + step + 1, step + 1 == steps.stop)
            run.rows(epoch, step, batch["id"].cpu().numpy())
            size = min(config.global_batch_size, training.num_rows - step * config.global_batch_size)
            for group in training.optimizer.param_groups:
                group["lr"] = learning_rate_at(epoch + step / steps_per_epoch, config)
            loss = train_step(training.network, training.optimizer, batch, size)
            training.loss_sum += run.finite(loss, epoch, step)
            training.step, taken = step + 1, taken + size
            if step % 50 == 49:
                run.progress(first + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
            if wish:
                save_checkpoint(training, config)
                notice.saved(wish)
        done, rows_of_epoch = first + steps.stop, min(steps.stop * config.global_batch_size, training.num_rows)
        run.metric("train/loss", training.loss_sum / rows_of_epoch, done, epoch)
        if taken:  # nothing when the last try had taken the epoch's last step
            speed = taken / (time.perf_counter() - started)
            run.metric("samples_per_second", speed, done, epoch, unit="samples/s")
        training.accuracy = evaluate(training.network, test_shards)
        run.metric("eval/accuracy", training.accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {training.accuracy:.4f}")
        training.epoch, training.step, training.loss_sum = epoch + 1, 0, 0.0
        save_checkpoint(training, config)
        notice.saved()


def joined(shards, steps, config, epoch):
    """Yields each batch, {id, label, image}: equally many rows of each shard."""
    size = config.global_batch_size // config.num_shards
    # Drawn as Ray Data's shuffle buffer draws it from this seed, so that both programs take the same batches.
    orders = [np.random.default_rng(config.seed * 1000 + epoch).permutation(len(shard["id"])) for shard in shards]
    for step in steps:
        places = [order[step * size : (step + 1) * size] for order in orders]
        parts = [
            {name: values[place] for name, values in shard.items()} for shard, place in zip(shards, places, strict=True)
        ]
        yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def channels_first(batch):
    """Images (n, height, width, channels) as a view (n, channels, height, width).

    Their memory stays channels-last, which is faster for convolutions on a CPU.
    """
    return {**batch, "image": batch["image"].permute(0, 3, 1, 2)}


def train_step(network, optimizer, batch, size):
    """One optimizer step on a batch of `size` rows; returns the summed loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(batch["image"]), batch["label"], reduction="sum")
    (loss / size).backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(network, test):
    """Accuracy over the whole test part."""
    network.eval()
    num_correct = sum((network(batch["image"]).argmax(1) == batch["label"]).sum().item() for batch in test)
    return num_correct / sum(len(batch["id"]) for batch in test)


def save_checkpoint(training, config):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    position = {"epoch": training.epoch, "step": training.step, "accuracy": training.accuracy}
    position["loss_sum"] = training.loss_sum
    content = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "position": position,
        "depends_on": depends_on(config, training.num_rows),
    }
    with training.checkpoints.save(training.epoch, training.step) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(training, config):
    """Reads the last checkpoint, if there is one, and goes on from there."""
    folder = training.checkpoints.last()
    if folder is None:
        return
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(config.checkpoint_dir, content["depends_on"], depends_on(config, training.num_rows))
    check_model(config.checkpoint_dir, content["network"], training.network.state_dict())
    training.network.load_state_dict(content["network"])
    training.optimizer.load_state_dict(content["optimizer"])
    for group in training.optimizer.param_groups:
        group.update(momentum=config.momentum, nesterov=config.momentum > 0)  # the settings', not the checkpoint's
    position = content["position"]
    training.epoch, training.step, training.accuracy = position["epoch"], position["step"], position["accuracy"]
    training.loss_sum = position["loss_sum"]


if __name__ == "__main__":
    main()
