"""Two small networks, one for each task, and what they make of a batch of columns."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from readers import label_of


class Standardise(nn.Module):
    """(x - mean) / std, column by column; the numbers come with the dataset, and stay with the network."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).clamp_min(1e-6))

    def forward(self, x):
        return (x - self.mean) / self.std


def make_network(manifest, width):
    """Flights: float32 (n, features) -> logits (n, 1). Digits: float32 (n, 8, 8) -> logits (n, 10)."""
    if manifest["task"] == "digits":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )
    size = len(manifest["features"])
    return nn.Sequential(
        Standardise(manifest["mean"], manifest["std"]),
        nn.Linear(size, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 1),
    )


def inputs_of(batch, manifest):
    if manifest["task"] == "digits":
        return torch.from_numpy(np.ascontiguousarray(batch["image"], dtype=np.float32))
    return torch.from_numpy(np.stack([batch[name] for name in manifest["features"]], axis=1).astype(np.float32))


def sum_of_losses(model, batch, manifest):
    """Sum over the rows of the batch, a scalar tensor; for no rows (None) a zero that still reaches every parameter."""
    if batch is None:
        empty = torch.zeros(0, 8, 8) if manifest["task"] == "digits" else torch.zeros(0, len(manifest["features"]))
        return model(empty).sum()
    logits = model(inputs_of(batch, manifest))
    if manifest["task"] == "digits":
        return F.cross_entropy(logits, torch.from_numpy(np.asarray(batch["label"])), reduction="sum")
    return F.binary_cross_entropy_with_logits(
        logits[:, 0], torch.from_numpy(np.asarray(batch[label_of(manifest)], dtype=np.float32)), reduction="sum"
    )


def scores_of(network, batch, manifest):
    """(scores, truth) of a batch, two arrays (n,).

    Flights: logit and late. Digits: the likeliest class and the right one.
    """
    logits = network(inputs_of(batch, manifest))
    if manifest["task"] == "digits":
        return logits.argmax(1).numpy(), batch["label"]
    return logits[:, 0].numpy(), batch[label_of(manifest)]
