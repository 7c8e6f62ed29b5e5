"""A linear model and a forest on rows of 16 features, in scikit-learn. One process, `workers` threads or processes.

The functions are what the program for Dask uses, too.
"""

from pathlib import Path

import numpy as np
import pandas as pd

FEATURES = [f"x{number:02d}" for number in range(16)]
TREES, DEPTH = 20, 8


def halves(folder):
    """(features, labels) of the first four fifths of the rows, and of the rest."""
    paths = sorted(Path(folder).glob("*.parquet"))
    table = pd.concat([pd.read_parquet(path, columns=["label", *FEATURES]) for path in paths])
    features, labels = table[FEATURES].to_numpy(np.float32) / 1000, table["label"].to_numpy()
    cut = len(labels) * 4 // 5
    return (features[:cut], labels[:cut]), (features[cut:], labels[cut:])


def forest(num_jobs):
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(TREES, max_depth=DEPTH, max_features="sqrt", n_jobs=num_jobs, random_state=0)


def score(model, test):
    """Area under the curve, and log loss would need the same calibration: only the order of the rows counts."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(test[1], np.asarray(model.predict_proba(test[0]))[:, 1]))


def answer(folder, num_jobs):
    from sklearn.linear_model import LogisticRegression

    train, test = halves(folder)
    linear = LogisticRegression(C=1e6, max_iter=100).fit(*train)
    return {"linear_auc": score(linear, test), "trees_auc": score(forest(num_jobs).fit(*train), test)}


if __name__ == "__main__":
    from meter import Meter

    meter = Meter()
    import sklearn.ensemble
    import sklearn.linear_model  # noqa: F401

    meter.ready()
    meter.measure(lambda: answer(meter.folder, meter.workers))
