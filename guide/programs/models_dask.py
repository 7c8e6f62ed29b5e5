"""A linear model and a forest on rows of 16 features, in Dask: dask-ml's regression, and scikit-learn's forest, whose
trees are grown in processes of the cluster."""

from pathlib import Path

import dask.dataframe as dd
import joblib
import numpy as np
from dask_local import start
from dask_ml.linear_model import LogisticRegression
from meter import Meter
from models_sklearn import FEATURES, forest, halves, score


def answer(folder, num_workers):
    train, test = halves(folder)
    # Distributed: the rows are cut into blocks; each Newton step adds up the blocks' gradients.
    table = dd.read_parquet(
        [str(path) for path in sorted(Path(folder).glob("*.parquet"))], columns=["label", *FEATURES]
    )
    rows = table.to_dask_array(lengths=True)[: len(train[1])].rechunk({1: -1}).persist()
    features, labels = rows[:, 1:].astype(np.float64) / 1000, rows[:, 0]
    linear = LogisticRegression(C=1e6, solver="newton", max_iter=20).fit(features, labels)
    weights, bias = np.asarray(linear.coef_).ravel(), float(np.ravel(linear.intercept_)[0])
    # Distributed: joblib sends the trees to the workers.
    with joblib.parallel_backend("dask", n_jobs=num_workers):
        trees = forest(num_workers).fit(*train)
    return {"linear_auc": auc(test[0] @ weights + bias, test[1]), "trees_auc": score(trees, test)}


def auc(scores, labels):
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


if __name__ == "__main__":
    meter = Meter()
    with start(meter.workers, meter.memory_mb):  # Distributed: a scheduler and worker processes
        meter.ready()
        meter.measure(lambda: answer(meter.folder, meter.workers))
