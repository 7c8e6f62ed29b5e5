"""The network of Ray Train's newest checkpoint on the test images, by NumPy."""

import torch

from tests.image_network import accuracy, from_torch, images_of

TOLERANCE = 1e-6
EXCEPT = {}
BREAK = (
    "main.py",
    '(network(batch["image"]).argmax(1) == batch["label"]).sum().item()',
    'len(batch["label"])',
)
BROKEN = ["eval/accuracy"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1", "recipe.width=8"]


def recomputed(run, dataset):
    path = max(run.glob("checkpoints/train/checkpoint_*/state.pt"))  # their names are the times of their writing
    state = torch.load(path, weights_only=True, map_location="cpu")["network"]
    return {"eval/accuracy": accuracy(from_torch(state), *images_of(dataset, "test"))}
