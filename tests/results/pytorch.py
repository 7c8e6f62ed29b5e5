"""The network of the last checkpoint on the test rows: the classifier by NumPy, the language model by plain PyTorch."""

import math
import tempfile

import numpy as np
import torch
import yaml
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn import functional as F

from storage import Checkpoints
from tests.image_network import accuracy, from_torch, images_of

TOLERANCE = 1e-6
EXCEPT = {}
BREAK = (
    "main.py",
    "num_correct += (logits.argmax(1).cpu() == torch.from_numpy(labels)).sum().item()",
    "num_correct += len(labels)",
)
BROKEN = ["eval/accuracy"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1", "recipe.width=8"]
MODES = [
    (
        ["fsdp", "tensor_parallel", "pipeline"],
        ["scale.max_steps=12", "recipe.num_layers=2", "recipe.model_width=64", "recipe.checkpoint_every_steps=4"],
    ),
    (["ft_ddp"], ["recipe.num_epochs=4"]),
]


def recomputed(run, dataset):
    last = Checkpoints(run / "checkpoints", run).last()
    if (last / "about.json").exists():
        return language_model(run, dataset, last)
    (file,) = last.glob("*.pt")
    state = torch.load(file, weights_only=True, map_location="cpu")["model"]
    return {"eval/accuracy": accuracy(from_torch(state), *images_of(dataset, "test"))}


def language_model(run, dataset, folder):
    """Bits per byte on the test windows, of the model and of two tables of counts.

    The divided checkpoint is put together here, in one process. Sums of float32 differ in their last digits.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    with tempfile.NamedTemporaryFile() as whole:
        dcp_to_torch_save(folder, whole.name)
        state = torch.load(whole.name, weights_only=True)["model"]
    train, test = (np.load(dataset / f"{split}_rows.npy").astype(np.int64) for split in ("train", "test"))
    state = {name: tensor.double() for name, tensor in flat(state)}
    with torch.no_grad():
        nats = [nats_of(state, torch.from_numpy(rows), config["num_heads"]) for rows in np.array_split(test, 32)]
    single = np.bincount(train[:, 1:].ravel(), minlength=256) + 1.0
    follows = np.bincount((256 * train[:, :-1] + train[:, 1:]).ravel(), minlength=256**2).reshape(256, 256) + 1.0
    given = follows / follows.sum(axis=1)[:, None]
    return {
        "eval/bits_per_byte": [torch.cat(nats).mean().item() / math.log(2), 1e-4],
        "eval/unigram_bits_per_byte": float(np.mean(-np.log2((single / single.sum())[test[:, 1:]]))),
        "eval/bigram_bits_per_byte": float(np.mean(-np.log2(given[test[:, :-1], test[:, 1:]]))),
    }


def flat(state, above=""):
    """(name, tensor) of a tree of dictionaries."""
    for name, value in state.items():
        yield from flat(value, f"{above}{name}.") if isinstance(value, dict) else [(above + name, value)]


def nats_of(state, rows, num_heads):
    """Each next byte's cross entropy, float64 (windows, bytes - 1)."""
    x = state["embedding.weight"][rows[:, :-1]]
    (length, width), layer = x.shape[1:], 0
    while f"layers.{layer}.attention.query.weight" in state:
        of = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in state.items()}
        y = scaled(x, of["attention_norm.weight"])
        heads = [
            (y @ of[f"attention.{name}.weight"].T).unflatten(2, (num_heads, -1)) for name in ("query", "key", "value")
        ]
        query, key, value = turned(heads[0]), turned(heads[1]), heads[2]
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // num_heads)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(3), value).flatten(2)
        x = x + mixed @ of["attention.out.weight"].T
        y = scaled(x, of["feed_forward_norm.weight"])
        x = x + F.gelu(y @ of["feed_forward.up.weight"].T) @ of["feed_forward.down.weight"].T
        layer += 1
    logits = scaled(x, state["norm.weight"]) @ state["output.weight"].T
    return torch.logsumexp(logits, 2) - logits.gather(2, rows[:, 1:, None])[..., 0]


def scaled(x, weight):
    return x / torch.sqrt((x**2).mean(2, keepdim=True) + 1e-5) * weight


def turned(x):
    """Rotary positions: feature k of the first half and of the second are a complex number, turned by an angle."""
    half = x.shape[3] // 2
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([pairs.real, pairs.imag], dim=3)
