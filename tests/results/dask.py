"""The saved models on the test part of the feature store: pandas prepares the rows as the models had them."""

import joblib
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

TOLERANCE = 1e-6
EXCEPT = {}
BREAK = (
    "learn.py",
    "score = roc_auc_score(truth, chances(joblib.load(path), x_test))",
    "score = roc_auc_score(y.compute(), chances(joblib.load(path), x))",
)
BROKEN = ["learn/auc", "learn/incremental_auc"]
SMALLEST = ["scale=smoke", "recipe.models=[incremental]"]
CATEGORIES = ["origin", "carrier"]


def recomputed(run, dataset):
    rows = pd.concat(map(pd.read_parquet, sorted((run / "features").glob("part-*.parquet"))), ignore_index=True)
    rows = rows[rows["late"].notna()]
    train, test = (rows[rows["part"] == part] for part in ("train", "test"))
    late = test["late"].to_numpy()
    x = prepared(train, test)
    models = sorted((run / "models").glob("*.joblib"))
    found = {
        f"learn/{path.stem}_auc": float(roc_auc_score(late, joblib.load(path).predict_proba(x)[:, 1]))
        for path in models
    }
    counts = {"learn/test_flights": len(late), "learn/late_share": float(late.mean())}
    return found | counts | {"learn/auc": max(found.values())}


def prepared(train, test):
    """float64 (test rows, features): numbers, then a column for each value of a category.

    What is missing becomes the training part's mean; each column is moved and scaled by the training part's mean
    and deviation. What does not differ there is no feature.
    """
    numbers = [
        name
        for name in train.columns
        if name not in ("id", "scheduled", "part", "late", *CATEGORIES) and train[name].min() < train[name].max()
    ]
    columns = [[part[name].to_numpy(np.float64) for part in (train, test)] for name in numbers]
    for name in CATEGORIES:
        values = sorted(train[name].unique())
        if len(values) > 1:
            columns += [[(part[name] == value).to_numpy(np.float64) for part in (train, test)] for value in values]
    found = []
    for known, new in columns:
        mean = np.nanmean(known)
        deviation = np.where(np.isnan(known), mean, known).std()
        found.append((np.where(np.isnan(new), mean, new) - mean) / deviation)
    return np.stack(found, axis=1)
