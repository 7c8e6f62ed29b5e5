"""What is tuned: one trial trains the image classifier, an epoch at a time.

A trial can be stopped, kept, cloned and resumed.
"""

import json
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray import tune
from torch.nn import functional as F

from model import torch_network

MEETING_SECONDS = 60  # that the first process waits for the others


# Distributed: an actor is a process of its own. The processes of all trials call it.
@ray.remote(num_cpus=0)
class Meeting:
    """Counts the processes that have started."""

    def __init__(self):
        self.here = set()

    def arrive(self, worker_id):
        self.here.add(worker_id)
        return len(self.here)


class Classifier(tune.Trainable):
    """One trial.

    A class, because Tune keeps its process for the next trial (`reset_config`): that saves the seconds of a start.

    Settings: learning_rate, momentum, weight_decay. Result of a step: accuracy (validation: what is searched for),
    test_accuracy (for the record: no search looks at it), loss, diverged (the loss is no number), epoch_seconds.
    """

    def setup(self, config, rows=None, settings=None, meeting=None):
        self.rows, self.settings = rows, settings
        # Distributed: a process takes seconds to start, and the first one ready would be given all short trials: wait
        # for the others.
        deadline = time.monotonic() + MEETING_SECONDS
        me = ray.get_runtime_context().get_worker_id()
        while (here := ray.get(meeting.arrive.remote(me))) < settings["places"] and time.monotonic() < deadline:
            time.sleep(0.05)
        if here < settings["places"]:
            print(
                f"only {here} of {settings['places']} processes came in {MEETING_SECONDS} s: going on without the rest"
            )
        self.begin()

    def begin(self):
        torch.set_num_threads(self.settings["cpus_per_trial"])
        self.device = "cuda" if self.settings["use_gpu"] else "cpu"
        torch.backends.cudnn.deterministic = True  # its fastest sums come in another order each time
        torch.manual_seed(self.settings["seed"])
        images = self.rows["train_images"]
        self.network = torch_network(images.shape[1], self.rows["num_classes"], self.settings["width"]).to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters())
        self.heed()

    def heed(self):
        """Puts this trial's settings into the optimizer."""
        for group in self.optimizer.param_groups:
            group.update(
                lr=self.config["learning_rate"],
                momentum=self.config["momentum"],
                weight_decay=self.config["weight_decay"],
            )

    def step(self):
        started = time.perf_counter()
        loss = train_epoch(self.network, self.optimizer, self.rows, self.settings, self.iteration)
        parts = ("validation", "test")
        accuracy, test = (
            accuracy_of(self.network, self.rows[f"{part}_images"], self.rows[f"{part}_labels"]) for part in parts
        )
        # A rate that is far too high ends in a loss that is no number: that is a bad score, not an error.
        return {
            "accuracy": accuracy,
            "test_accuracy": test,
            "loss": loss,
            "diverged": not np.isfinite(loss),
            "epoch_seconds": time.perf_counter() - started,
        }

    def save_checkpoint(self, folder):
        torch.save(
            {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}, Path(folder) / "trial.pt"
        )

    def load_checkpoint(self, folder):
        content = torch.load(Path(folder) / "trial.pt", weights_only=True)
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.heed()  # population based training: another one's weights, but new settings

    def reset_config(self, new_config):
        """Makes this process another trial's; a checkpoint, where there is one, is loaded afterwards."""
        self.config = new_config
        self.begin()
        return True


def train_epoch(network, optimizer, rows, settings, epoch):
    """One pass over the rows, in an order of its own; returns the mean loss."""
    images, labels = rows["train_images"], rows["train_labels"]
    order = np.random.default_rng([settings["seed"], epoch]).permutation(len(labels))
    device, total = next(network.parameters()).device, 0.0
    network.train()
    for start in range(0, len(order), settings["batch_size"]):
        ids = order[start : start + settings["batch_size"]]
        optimizer.zero_grad()
        loss = F.cross_entropy(
            network(torch.from_numpy(images[ids]).to(device)), torch.from_numpy(labels[ids]).to(device)
        )
        loss.backward()
        optimizer.step()
        total += loss.item() * len(ids)
    return total / len(order)


@torch.no_grad()
def accuracy_of(network, images, labels):
    network.eval()
    device = next(network.parameters()).device
    found = [
        network(torch.tensor(part).to(device)).argmax(1).cpu()
        for part in np.array_split(images, -(-len(images) // 512))
    ]
    return float((torch.cat(found).numpy() == labels).mean())


def read_rows(config):
    """{train_images float32 (n, c, h, w) in [0, 1], train_labels int64 (n,), validation_..., test_..., num_classes}"""
    folder = Path(config.data_dir)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        parts = {
            split: (np.load(folder / f"{split}_images.npy"), np.load(folder / f"{split}_labels.npy"))
            for split in ("train", "test")
        }
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"data_dir={config.data_dir} cannot be read: {error}; delete that folder to have it built again"
        ) from None
    images, labels = (array[: config.max_rows] for array in parts["train"])
    order = np.random.default_rng(config.seed).permutation(len(labels))
    held = round(len(order) * config.validation_share)
    parts |= {
        "validation": (images[order[:held]], labels[order[:held]]),
        "train": (images[order[held:]], labels[order[held:]]),
    }
    rows = {"num_classes": len(manifest["classes"])}
    for split, (images, labels) in parts.items():
        scaled = images.astype(np.float32) / manifest["schema"]["images"]["max_value"]
        rows |= {f"{split}_images": np.ascontiguousarray(np.moveaxis(scaled, 3, 1)), f"{split}_labels": labels}
    return rows
