"""The network of the last checkpoint on the test images: TensorFlow reads the weights, NumPy does the rest."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from storage import Checkpoints
from tests.image_network import accuracy, images_of

TOLERANCE = 1e-6  # the claimed figure is a float32
EXCEPT = {}
BREAK = (
    "model.py",
    'right = tf.argmax(self(batch["image"], training=False), 1) == batch["label"]',
    'right = batch["label"] >= 0',
)
BROKEN = ["eval/accuracy"]
SMALLEST = ["scale=smoke", "recipe.num_epochs=1", "recipe.width=8"]
MODES = [(["parameter_server"], ["recipe.num_epochs=4"]), (["model_parallel"], ["recipe.num_devices=2"])]


def recomputed(run, dataset):
    folder, (images, labels) = Checkpoints(run / "checkpoints", run).last(), images_of(dataset, "test")
    if (folder / "state.npz").exists():  # model_parallel: a perceptron with one hidden layer
        with np.load(folder / "state.npz") as content:
            first, shift, second, last_shift = (content[f"{number:03d}"].astype(np.float64) for number in range(4))
        logits = np.maximum(images.reshape(len(images), -1) @ first + shift, 0) @ second + last_shift
        return {"eval/accuracy": float(np.mean(logits.argmax(1) == labels))}
    return {"eval/accuracy": accuracy(weights_of(folder), images, labels)}


def weights_of(folder):
    """In the order of the layers, which Keras numbers."""
    reader = tf.train.load_checkpoint(str(folder / "state"))
    layers, place = {}, ["kernel", "gamma", "beta", "bias"]
    for name in reader.get_variable_to_shape_map():
        if (parts := name.split("/"))[0] == "model" and parts[1].startswith("layer_with_weights-") and len(parts) == 5:
            layers[int(parts[1].rpartition("-")[2]), place.index(parts[2])] = reader.get_tensor(name)
    return [layers[number] for number in sorted(layers)]
