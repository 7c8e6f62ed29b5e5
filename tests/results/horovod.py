"""The network of the last checkpoint on the test images, by NumPy."""

import numpy as np

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
MODES = [(["tensorflow"], ["recipe.num_epochs=3"])]


def recomputed(run, dataset):
    path = Checkpoints(run / "checkpoints", run).last() / "state.npz"
    weights = from_keras(path) if path.exists() else from_pytorch(path.with_suffix(".pt"))
    return {"eval/accuracy": accuracy(weights, *images_of(dataset, "test"))}


def from_pytorch(path):
    import torch  # the other framework's environment has none

    return from_torch(torch.load(path, weights_only=True, map_location="cpu")["model"])


def from_keras(path):
    """The network's own variables stand before the optimizer's, each with its number and its name."""
    with np.load(path) as content:
        names = sorted(name for name in content.files if name.endswith(("/kernel", "/gamma", "/beta", "/bias")))
        last = next(number for number, name in enumerate(names) if name.endswith("/bias"))
        return [content[name] for name in names[: last + 1]]
