"""One trial of the search for a learning rate.

It is a short training in one process, judged on rows that it was not trained on.

As a program (in a pod of Katib's): python trial.py ROWS_DIR LEARNING_RATE NUM_EPOCHS WIDTH BATCH_SIZE SEED
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

from data import Batches, ImageData
from model import torch_network
from train import learning_rate_at, train_step

VALIDATION_SHARE = 0.25
METRIC = "validation-accuracy"


def score_of(rows_dir, learning_rate, num_epochs, width, batch_size, seed):
    """Validation accuracy after `num_epochs` on three quarters of the training rows; the test rows stay out of it."""
    data, device = ImageData(rows_dir, "train"), torch.device("cpu")
    order = np.random.default_rng(seed).permutation(len(data))
    held_out, rows = np.split(order, [int(len(order) * VALIDATION_SHARE)])
    torch.manual_seed(seed)
    network = torch_network(data.images.shape[3], data.num_classes, width)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, nesterov=True)
    schedule = SimpleNamespace(learning_rate=learning_rate, num_epochs=num_epochs)
    batches = Batches(len(rows), batch_size, seed)
    for epoch in range(num_epochs):
        for step, places in enumerate(batches.of_epoch(epoch)):
            optimizer.param_groups[0]["lr"] = learning_rate_at(epoch + step / batches.steps_per_epoch, schedule)
            train_step(network, optimizer, *data.read(rows[places]), len(places), device)
    images, labels = data.read(held_out)
    with torch.no_grad():
        return (network(torch.from_numpy(images)).argmax(1).numpy() == labels).mean().item()


if __name__ == "__main__":
    rows_dir, learning_rate, *counts = sys.argv[1:]
    # Katib's collector reads the metric from what the program prints.
    print(f"{METRIC}={score_of(rows_dir, float(learning_rate), *map(int, counts)):.6f}", flush=True)
