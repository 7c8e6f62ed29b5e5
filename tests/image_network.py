"""The recipes' image classifier once more, in NumPy: what a saved network says of images, without any framework.

Nothing of the recipes is used. A recipe's figure is recomputed with it from the weights that a run has left.
"""

import json
from pathlib import Path

import numpy as np

NUM_GROUPS = 8


def images_of(folder, split):
    """(images float64 in [0, 1] (n, height, width, channels), labels (n,)) of a dataset folder."""
    most = json.loads((Path(folder) / "manifest.json").read_text())["schema"]["images"]["max_value"]
    return np.load(Path(folder) / f"{split}_images.npy") / most, np.load(Path(folder) / f"{split}_labels.npy")


def accuracy(weights, images, labels):
    """Share of the images whose largest logit is that of the right class."""
    return float(np.mean(logits_of(weights, images).argmax(1) == labels))


def logits_of(weights, images):
    """Logits float64 (n, classes).

    `weights`: arrays in the order of the layers; kernels (height, width, in, out), the last matrix (in, out).
    """
    rest = iter([np.asarray(array, np.float64) for array in weights])
    x = relu(normalised(convolved(images, next(rest), 1), rest))
    x = residual(x, rest)
    x = relu(normalised(convolved(x, next(rest), 2), rest))
    x = residual(x, rest)
    found = x.mean(axis=(1, 2)) @ next(rest) + next(rest)
    assert not list(rest), "the network has more layers than this one"
    return found


def from_torch(state):
    """The weights of a PyTorch state, whose kernels are (out, in, height, width) and whose matrix is (out, in)."""
    arrays = [tensor.double().numpy() for tensor in state.values()]
    return [array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T for array in arrays]


def convolved(x, kernel, stride):
    """A 3x3 convolution with one pixel of zeros on each side."""
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))


def normalised(x, rest):
    """Group normalisation: each image's groups of channels get mean 0 and variance 1, then a scale and a shift."""
    groups = x.reshape(*x.shape[:3], NUM_GROUPS, -1)
    mean, variance = groups.mean(axis=(1, 2, 4), keepdims=True), groups.var(axis=(1, 2, 4), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * next(rest) + next(rest)


def residual(x, rest):
    inner = relu(normalised(convolved(x, next(rest), 1), rest))
    return relu(x + normalised(convolved(inner, next(rest), 1), rest))


def relu(x):
    return np.maximum(x, 0.0)
