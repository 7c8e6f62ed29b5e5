"""Anomalies and forecast by pandas from the windows and the saved numbers of the models; classifiers by plain Spark.

Which lines and pages the models were judged on follows from a hash that only Spark has: one local process divides
them again, and asks the saved classifiers. Counting what was right is pandas' part.
"""

import json
import os

import numpy as np
import pandas as pd
import yaml

TOLERANCE = 1e-6
EXCEPT = {}
BREAK = ("anomalies.py", '"precision": int(right.sum()) / flagged if flagged else 0.0', '"precision": 1.0')
BROKEN = ["anomalies/precision"]
SMALLEST = ["scale=smoke", "recipe.steps=[ingest,anomalies,forecast,recommend]"]
LINES = """
SELECT double(array_contains(array({attackers}), client)) AS label,
    method, get(split(path, '[/?]'), 1) AS section, string(status) AS answer, referrer != '-' AS referred,
    ln(coalesce(bytes, 0) + 1.0) AS size, coalesce(request_time, 0.0) AS seconds,
    pmod(xxhash64(time, client, path, bytes, {seed}), 1000) AS place,
    pmod(xxhash64(time, client, path, bytes, {seed} + 1), 1000) AS part
FROM parquet.`{run}/events` WHERE quality = 'good'
"""
PAGES = """
WITH seen AS (
    SELECT int(pmod(xxhash64(client), 2147483647)) AS user, int(regexp_extract(path, '^/product/([0-9]+)$')) AS item,
        count(*) AS times
    FROM parquet.`{run}/events` WHERE quality = 'good' AND path RLIKE '^/product/[0-9]+$' GROUP BY ALL
)
SELECT *, pmod(xxhash64(user, item, {seed}), 5) AS part FROM seen
WHERE user IN (SELECT user FROM seen GROUP BY user HAVING count(*) >= 8)
"""
MOST_PAGES = 10  # that are recommended


def recomputed(run, dataset):
    config = yaml.safe_load((run / "config.yaml").read_text())
    incidents = json.loads((dataset / "incidents.json").read_text())
    windows = pd.read_parquet(run / "windows").sort_values("start", ignore_index=True)
    found = anomalies(run, windows, incidents, config)
    if (run / "models/forecast").exists():
        found |= forecast(run, windows)
    steps = [("logistic_regression", classifiers), ("pages", recommendations)]
    if wanted := [step for model, step in steps if (run / "models" / model).exists()]:
        spark = one_process()
        for step in wanted:
            found |= step(spark, run, incidents, config)
        spark.stop()
    return found


def one_process():
    """Spark without a cluster."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False)
    return builder.config("spark.sql.session.timeZone", "UTC").config("spark.log.level", "ERROR").getOrCreate()


def table_of(run, model, stage):
    """The numbers of a model's stage, a row each."""
    (folder,) = run.glob(f"models/{model}/stages/*_{stage}_*/data")
    return pd.read_parquet(folder)


def anomalies(run, windows, incidents, config):
    """Recall: incidents with a flagged window; precision: flagged windows that overlap an incident."""
    features = [name for name in windows.columns if name not in ("start", "lines", "cluster", "score", "flagged")]
    scaler = table_of(run, "anomalies", "StandardScaler").iloc[0]
    points = (windows[features].to_numpy() - scaler["mean"]["values"]) / scaler["std"]["values"]
    centres = table_of(run, "anomalies", "KMeans").sort_values("clusterIdx")["clusterCenter"]
    distances = np.stack([np.linalg.norm(points - centre["values"], axis=1) for centre in centres], axis=1)
    share = np.bincount(distances.argmin(1), minlength=len(centres)) / len(windows)
    score = distances[:, share >= config["common_share"]].min(axis=1)
    spread = 1.4826 * np.median(np.abs(score - np.median(score)))
    flagged = score > np.median(score) + config["threshold"] * spread
    begin = windows["start"].astype("datetime64[s, UTC]").astype("int64").to_numpy()
    inside = [
        (begin < incident["end"]) & (begin + 60 * config["window_minutes"] > incident["start"])
        for incident in incidents
    ]
    return {
        "anomalies/recall": float(np.mean([(flagged & one).any() for one in inside])),
        "anomalies/precision": float(np.any(inside, axis=0)[flagged].mean()),
    }


def forecast(run, windows):
    """Root of the mean squared error on the last fifth of the time, of the model and of "as in the last window"."""
    lines = windows["lines"].astype(float)
    angle = (windows["start"].dt.hour * 60 + windows["start"].dt.minute) / 1440 * 2 * np.pi
    columns = [*(lines.shift(n) for n in (1, 2, 3)), np.sin(angle), np.cos(angle)]
    x, last = np.stack(columns, axis=1), np.arange(len(lines)) / (len(lines) - 1) >= 0.8
    model = table_of(run, "forecast", "LinearRegression").iloc[0]
    predicted = x @ model["coefficients"]["values"] + model["intercept"]
    return {
        "forecast/forecast_rmse": float(np.sqrt(np.mean((predicted - lines)[last] ** 2))),
        "forecast/baseline_rmse": float(np.sqrt(np.mean((x[:, 0] - lines)[last] ** 2))),
    }


def classifiers(spark, run, incidents, config):
    """F1 of the lines of attackers in the test part; the mean of the probabilities that the stream has given."""
    from pyspark.ml import PipelineModel
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    attackers = ", ".join(f"'{client}'" for incident in incidents for client in incident["clients"])
    lines = spark.sql(LINES.format(run=run, attackers=attackers, seed=config["seed"])).cache()
    share = min(1.0, config["model_rows"] / lines.count())
    test, found = lines.where(f"place < {1000 * share} AND part >= 800"), {}
    for path in sorted((run / "models").glob("*")):
        if path.name not in ("logistic_regression", "decision_tree"):
            continue
        judged = PipelineModel.load(str(path)).transform(test).select("label", "prediction").toPandas()
        found[f"classify/{path.name}_f1"] = f1(judged["label"] == 1, judged["prediction"] == 1)
    # The baseline says "attacker" of every line.
    found["classify/baseline_f1"] = f1(judged["label"] == 1, judged["label"] >= 0)
    if not (run / "scored").exists():
        return found
    scored = PipelineModel.load(str(run / "models/logistic_regression")).transform(lines)
    (mean,) = scored.agg(F.avg(vector_to_array("probability")[1])).first()
    return found | {"stream/mean_score": mean}


def f1(true, said):
    """The harmonic mean of precision and recall."""
    right = (true & said).sum()
    return float(2 * right / (true.sum() + said.sum()))


def recommendations(spark, run, incidents, config):
    """NDCG of the pages with the largest products of factors, and of the most popular ones, on pages kept back."""
    seen = spark.sql(PAGES.format(run=run, seed=config["seed"])).toPandas()
    train, kept = seen[seen["part"] > 0], seen[seen["part"] == 0].groupby("user")["item"].agg(set)
    known = train.groupby("user")["item"].agg(set)
    users, items = (
        pd.read_parquet(run / f"models/pages/{side}Factors").set_index("id")["features"] for side in ("user", "item")
    )
    table, popular = np.stack(items.to_list()), train.groupby("item")["times"].sum().reset_index()
    popular = popular.sort_values(["times", "item"], ascending=[False, True])["item"]
    found = {"recommend/recommend_ndcg": [], "recommend/baseline_ndcg": []}
    for user in kept.index.intersection(known.index):
        best = items.index[np.argsort(-(table @ users[user]), kind="stable")]
        for values, ranked in zip(found.values(), (best, popular), strict=True):
            values.append(ndcg([item for item in ranked[:60] if item not in known[user]], kept[user]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def ndcg(ranked, wanted):
    """Gains of the first pages that are wanted, each divided by the logarithm of its place; 1 for the best order."""
    gains = 1 / np.log2(np.arange(2, MOST_PAGES + 2))
    right = [item in wanted for item in ranked[:MOST_PAGES]]
    return gains[: len(right)] @ right / gains[: len(wanted)].sum()
