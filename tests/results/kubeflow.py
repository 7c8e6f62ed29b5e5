"""The model that the pipeline registered on the test images, by NumPy. The server must have answered the same."""

import torch

from tests.image_network import accuracy, from_torch, images_of

TOLERANCE = 1e-6
EXCEPT = {"search/best_score": "a trial keeps its score and not its network"}
BREAK = (
    "steps.py",
    'return {"accuracy": float((predicted == labels).mean()), "confusion"',
    'return {"accuracy": float((predicted == predicted).mean()), "confusion"',
)
BROKEN = ["eval/accuracy"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1", "recipe.learning_rates=[0.1]", "recipe.min_accuracy=0"]


def recomputed(run, dataset):
    (path,) = run.glob("registry/*/1/model.pt")
    state = torch.load(path, weights_only=True, map_location="cpu")
    found = accuracy(from_torch(state), *images_of(dataset, "test"))
    return {"eval/accuracy": found, "served/accuracy": found}
