"""Distributed gradient descent, spelled out on an RDD, beside MLlib's logistic regression on the same data.

Minimises mean log-loss + l2/2 |w|^2 with Nesterov's acceleration (Nesterov 1983), begun anew whenever it leads uphill
(O'Donoghue and Candes 2015): the same function as MLlib's, so the same coefficients. MLlib needs fewer rounds (L-BFGS),
and its tasks stay in the Java machine.
"""

import time

import numpy as np
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StandardScaler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from ingest import good_events
from models import feature_stages, sample
from needs import lacking_classes


def descend(blocks, num_features, num_rows, l2, num_rounds, curvature):
    """Weights float64 (num_features + 1,), the intercept last; `blocks`: an RDD of (features
    (n, d + 1), labels (n,)) arrays.

    `curvature`: the largest of the function, in any direction; a step against the gradient is one over it.
    """
    weights = ahead = np.zeros(num_features + 1)
    penalty = np.append(np.full(num_features, l2), 0.0)
    age = 0  # rounds since the acceleration began
    for _ in range(num_rounds):
        # Distributed: one copy of the weights to each executor, not one with each task.
        shared = blocks.context.broadcast(ahead)

        def gradient(total, block, shared=shared):
            features, labels = block
            chances = 1 / (1 + np.exp(-features @ shared.value))
            return total + features.T @ (chances - labels)

        # Distributed: every task sums over its rows; the sums are added up in a tree on the executors,
        # and one comes back here.
        total = blocks.treeAggregate(np.zeros(num_features + 1), gradient, np.add, depth=2)
        shared.unpersist()
        slope = total / num_rows + penalty * ahead
        before, weights = weights, ahead - slope / curvature
        age = 0 if slope @ (weights - before) > 0 else age + 1
        ahead = weights + age / (age + 3) * (weights - before)
    return weights


def to_block(rows):
    """The rows of a partition as one pair of arrays, with a column of ones behind the
    features: NumPy adds them up at once."""
    pairs = list(rows)
    if pairs:
        features = np.array([values for values, _ in pairs])
        yield np.hstack([features, np.ones((len(features), 1))]), np.array([label for _, label in pairs])


def gradient_descent(spark, config, run):
    """Finds the weights of a logistic regression by `descend` and by MLlib; returns how far they are apart."""
    data, counts = sample(good_events(spark, config), config)
    if reason := lacking_classes("gradient_descent", counts):
        return {"skipped": reason}
    # Mean 0 and variance 1: on one scale, or the steepest of the features dictates the step for all.
    scaler = StandardScaler(inputCol="features", outputCol="scaled", withMean=True)
    pipeline = Pipeline(stages=[*feature_stages(data), scaler])
    table = pipeline.fit(data).transform(data).select(F.col("scaled").alias("features"), "label").cache()
    num_rows, width = table.count(), len(table.first()["features"])
    blocks = table.select(vector_to_array("features"), "label").rdd.mapPartitions(to_block).cache()
    blocks.count()
    l2 = 0.1
    # The largest curvature of the log-loss: a quarter of the largest eigenvalue of the mean of x x^T.
    # Distributed: each block gives its part of that matrix.
    second = blocks.map(lambda block: block[0].T @ block[0]).treeReduce(np.add, 2) / num_rows
    curvature = np.linalg.eigvalsh(second)[-1] / 4 + l2
    started = time.perf_counter()
    weights = descend(blocks, width, num_rows, l2, config.num_rounds, curvature)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    mllib = LogisticRegression(regParam=l2, elasticNetParam=0.0, standardization=False, maxIter=200, tol=1e-9).fit(
        table
    )
    theirs = time.perf_counter() - started
    expected = np.append(mllib.coefficients.toArray(), mllib.intercept)
    difference = float(np.abs(weights - expected).max() / np.abs(expected).max())
    both = [("RDD, treeAggregate", config.num_rounds, ours), ("MLlib, L-BFGS", mllib.summary.totalIterations, theirs)]
    rows = [
        {"who": who, "rounds": rounds, "seconds": seconds, "seconds per round": seconds / max(1, rounds)}
        for who, rounds, seconds in both
    ]
    run.table("gradient descent", rows)
    return {"coefficients_max_difference": difference, "rows": num_rows, "features": width}
