"""Image classification in one process: main.py as it was before Ray.

Shows:   what a distributed program begins as; `diff -uw single.py main.py` shows the lines that make it one.
Choose:  as long as one process is fast enough, and its memory holds the rows.
Run:     python single.py config.yaml output_dir=outputs/single checkpoint_dir=outputs/single
Expect:  the losses of main.py on one worker, as long as a shard has no more than `shuffle_rows` rows.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from model import torch_network
from preempt import Notice
from runrecord import RunRecord, check_model, check_position, load_config
from settings import check_settings, depends_on, learning_rate_at, num_steps_of
from storage import Checkpoints


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
        position = load_checkpoint(network, optimizer, checkpoints, config, num_rows)
        run.restore(position["epoch"], position["step"], generation=time.time())
        train(network, optimizer, position, checkpoints, config, train_shards, test_shards, num_rows, run)
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
        found.append(seen_as_channels_first({name: values.to(device) for name, values in columns.items()}))
    return found


def train(network, optimizer, position, checkpoints, config, train_shards, test_shards, num_rows, run):
    """Trains from the position {epoch, step, loss_sum of the epoch so far, accuracy} to the end."""
    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    steps_per_epoch, num_steps = num_steps_of(config, num_rows)
    while (first := position["epoch"] * steps_per_epoch) < num_steps:
        epoch, started, taken = position["epoch"], time.perf_counter(), 0
        steps = range(position["step"], min(steps_per_epoch, num_steps - first))
        network.train()
        for step, batch in zip(steps, joined(train_shards, steps, config, epoch), strict=True):
            wish = notice.wish(first + step + 1, step + 1 == steps.stop)
            run.rows(epoch, step, batch["id"].cpu().numpy())
            size = min(config.global_batch_size, num_rows - step * config.global_batch_size)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(epoch + step / steps_per_epoch, config)
            position["loss_sum"] += run.finite(train_step(network, optimizer, batch, size), epoch, step)
            position["step"], taken = step + 1, taken + size
            if step % 50 == 49:
                run.progress(first + step + 1, num_steps, f"epoch {epoch + 1}, step {step + 1}")
            if wish:
                save_checkpoint(network, optimizer, position, checkpoints, config, num_rows)
                notice.saved(wish)
        done, rows_of_epoch = first + steps.stop, min(steps.stop * config.global_batch_size, num_rows)
        run.metric("train/loss", position["loss_sum"] / rows_of_epoch, done, epoch)
        if taken:  # nothing when the last try had taken the epoch's last step
            speed = taken / (time.perf_counter() - started)
            run.metric("samples_per_second", speed, done, epoch, unit="samples/s")
        accuracy = evaluate(network, test_shards)
        run.metric("eval/accuracy", accuracy, done, epoch)
        run.progress(done, num_steps, f"epoch {epoch + 1}  accuracy {accuracy:.4f}")
        position.update(epoch=epoch + 1, step=0, loss_sum=0.0, accuracy=accuracy)
        save_checkpoint(network, optimizer, position, checkpoints, config, num_rows)
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


def seen_as_channels_first(batch):
    """(n, height, width, channels) as (n, channels, height, width), not moved: on a CPU convolutions are faster so."""
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


def save_checkpoint(network, optimizer, position, checkpoints, config, num_rows):
    """Network, optimizer and position; the checkpoint is whole or not there."""
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "position": position}
    content["depends_on"] = depends_on(config, num_rows)
    with checkpoints.save(position["epoch"], position["step"]) as folder:
        torch.save(content, folder / "state.pt")


def load_checkpoint(network, optimizer, checkpoints, config, num_rows):
    """Fills network and optimizer from the last checkpoint, if there is one; returns the position to go on with."""
    folder = checkpoints.last()
    if folder is None:
        return {"epoch": 0, "step": 0, "loss_sum": 0.0, "accuracy": 0.0}
    content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    check_position(config.checkpoint_dir, content["depends_on"], depends_on(config, num_rows))
    check_model(config.checkpoint_dir, content["network"], network.state_dict())
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return content["position"]


if __name__ == "__main__":
    main()
