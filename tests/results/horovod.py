"""The network of the last checkpoint on the test images, by NumPy."""

import torch

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


def recomputed(run, dataset):
    state = torch.load(run / "checkpoints/last.pt", weights_only=True, map_location="cpu")["model"]
    return {"eval/accuracy": accuracy(from_torch(state), *images_of(dataset, "test"))}
