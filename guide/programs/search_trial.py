"""One trial of the search: a logistic regression by gradient descent, for a learning rate and a penalty."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FEATURES = [f"x{number:02d}" for number in range(16)]
RATES, PENALTIES, STEPS = [0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0], [0.0, 1e-4, 1e-3, 1e-2], 50
TRIALS = [{"rate": rate, "penalty": penalty} for rate, penalty in itertools.product(RATES, PENALTIES)]


def loss_of(settings, folder):
    """The loss on the last fifth of the rows."""
    table = pq.read_table(sorted(Path(folder).glob("*.parquet")), columns=["label", *FEATURES], use_threads=False)
    features = np.stack([table[name].to_numpy() for name in FEATURES], axis=1).astype(np.float64) / 1000 - 0.5
    labels, cut = table["label"].to_numpy(), len(table) * 4 // 5
    weights, bias = np.zeros(len(FEATURES)), 0.0
    for _ in range(STEPS):
        error = 1 / (1 + np.exp(-(features[:cut] @ weights + bias))) - labels[:cut]
        weights -= settings["rate"] * (features[:cut].T @ error / cut + settings["penalty"] * weights)
        bias -= settings["rate"] * error.mean()
    scores = features[cut:] @ weights + bias
    return float(np.mean(np.logaddexp(0, scores) - labels[cut:] * scores))


def best_of(losses):
    """What a search answers: how many trials it made, and the best."""
    best = int(np.argmin(losses))
    return {
        "trials": len(losses),
        **TRIALS[best],
        "best_loss": float(losses[best]),
        "mean_loss": float(np.mean(losses)),
    }
