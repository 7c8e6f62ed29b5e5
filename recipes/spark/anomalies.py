"""Windows of time that are unlike the others: features of each window, KMeans, and the distance to what is common.

A window is judged by its distance to the nearest *large* cluster: incidents are many enough to form small clusters of their
own, and a window in the middle of one of those is not normal for it.
"""

import json
from pathlib import Path

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.sql import functions as F

from formats import window_start
from ingest import good_events


def windows_of(events, config):
    """One row a window: start, lines, and its features, shares of the lines: so the hour of the day matters little."""
    window = window_start(config.window_minutes).alias("start")
    if "status" not in events.columns:  # other logs: how much, and how various
        words = F.get(F.split("message", " "), F.lit(0))
        lines = F.count("*")
        kinds = [
            F.approx_count_distinct(words).alias("kinds"),
            (F.approx_count_distinct("message") / lines).alias("new_messages"),
        ]
        return events.groupBy(window).agg(lines.alias("lines"), F.log(lines + 0.0).alias("log_lines"), *kinds)
    # Distributed: two steps of counting: lines of a client in a window first, then the clients of a window. Most is added up where
    # it is read, before anything travels.
    clients = events.groupBy(window, "client").agg(F.count("*").alias("n"))
    busiest = clients.groupBy("start").agg(F.max("n").alias("most"))
    lines = F.count("*")
    counted = events.groupBy(window).agg(
        lines.alias("lines"),
        (F.count_if(F.col("status") >= 500) / lines).alias("server_errors"),
        (F.count_if(F.col("status").isin(403, 404)) / lines).alias("client_errors"),
        (F.count_if(F.col("status") == 401) / lines).alias("logins_refused"),
        F.log(F.percentile_approx("request_time", F.lit(0.95)) + 1e-3).alias("p95_seconds"),
        F.log(F.percentile_approx("request_time", F.lit(0.5)) + 1e-3).alias("median_seconds"),
        (F.approx_count_distinct("path") / lines).alias("new_paths"),
    )
    return counted.join(busiest, "start").withColumn("busiest_client", F.col("most") / F.col("lines")).drop("most")


def anomalies(spark, config, run):
    """Writes <output_dir>/windows with a score and a flag; returns precision and recall where the incidents are known."""
    events = good_events(spark, config)
    windows = windows_of(events, config).cache()
    features = [name for name in windows.columns if name not in ("start", "lines")]
    stages = [
        VectorAssembler(inputCols=features, outputCol="raw"),
        StandardScaler(inputCol="raw", outputCol="scaled", withMean=True),
    ]
    if config.pca_components:
        stages.append(PCA(k=config.pca_components, inputCol="scaled", outputCol="reduced"))
    kmeans = KMeans(
        k=config.num_clusters, seed=config.seed, featuresCol=stages[-1].getOutputCol(), predictionCol="cluster"
    )
    # Distributed: KMeans sends the centres to all executors, and each adds up its points around them (Lloyd's algorithm).
    model = Pipeline(stages=[*stages, kmeans]).fit(windows)
    path = f"{config.output_dir}/models/anomalies"
    model.write().overwrite().save(path)
    model = PipelineModel.load(path)
    found = (
        model.transform(windows)
        .select("start", "lines", *features, model.stages[-1].getFeaturesCol(), "cluster")
        .toPandas()
    )
    points = [row.toArray() for row in found.pop(model.stages[-1].getFeaturesCol())]
    common = found["cluster"].value_counts(normalize=True)
    centres = [
        centre for n, centre in enumerate(model.stages[-1].clusterCenters()) if common.get(n, 0) >= config.common_share
    ]
    found["score"] = [min(float(((point - centre) ** 2).sum()) ** 0.5 for centre in centres) for point in points]
    median = found["score"].median()
    spread = 1.4826 * (found["score"] - median).abs().median()
    threshold = median + config.threshold * spread
    found["flagged"] = found["score"] > threshold
    found = found.sort_values("start").reset_index(drop=True)
    spark.createDataFrame(found).write.mode("overwrite").parquet(f"{config.output_dir}/windows")
    truth = Path(config.data_dir) / "incidents.json"
    result = {"windows": len(found), "flagged": int(found["flagged"].sum())}
    incidents = json.loads(truth.read_text()) if truth.exists() else []
    result |= judge(found, incidents, config, run) if incidents else {}
    timeline(found, incidents, threshold, config)
    return result


def judge(found, incidents, config, run):
    """Recall: incidents with a flagged window; precision: flagged windows that overlap an incident."""
    starts = found["start"].astype("datetime64[s]").astype("int64")
    ends = starts + 60 * config.window_minutes
    rows, right = [], found["flagged"] & False
    for incident in incidents:
        inside = (starts < incident["end"]) & (ends > incident["start"])
        right |= inside & found["flagged"]
        rows.append({"kind": incident["kind"], "minutes": (incident["end"] - incident["start"]) // 60, "windows": int(inside.sum()),
                     "flagged": int((inside & found["flagged"]).sum()), "highest score": float(found["score"][inside].max())})  # fmt: skip
    run.table("incidents", rows)
    flagged = int(found["flagged"].sum())
    return {
        "recall": sum(row["flagged"] > 0 for row in rows) / len(rows),
        "precision": int(right.sum()) / flagged if flagged else 0.0,
    }


def timeline(found, incidents, threshold, config):
    """<output_dir>/pictures/anomalies.svg: score over time, the threshold, and the known incidents."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder = Path(config.output_dir) / "pictures"
    folder.mkdir(exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(10, 3.2), layout="constrained")
    colours = dict(
        zip(sorted({i["kind"] for i in incidents}), ("#c2571a", "#2f7d4f", "#8a3f8f", "#9a7b1c"), strict=False)
    )
    labelled = set()
    for incident in incidents:
        span = [incident[key].__float__() for key in ("start", "end")]
        label = incident["kind"].replace("_", " ") if incident["kind"] not in labelled else None
        labelled.add(incident["kind"])
        dates = found["start"].min().normalize()
        hours = [(second - dates.timestamp()) / 3600 for second in span]
        axes.axvspan(*hours, color=colours[incident["kind"]], alpha=0.25, linewidth=0, label=label)
    hours = (found["start"] - found["start"].min().normalize()).dt.total_seconds() / 3600
    axes.plot(hours, found["score"], color="#2563a8", linewidth=0.9)
    axes.scatter(
        hours[found["flagged"]], found["score"][found["flagged"]], color="#b03a5b", s=9, zorder=3, label="flagged"
    )
    axes.axhline(threshold, color="#4f6d7a", linewidth=0.8, linestyle="--", label="threshold")
    axes.set(xlabel="hours", ylabel="distance to what is common", yscale="symlog")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    figure.savefig(folder / "anomalies.svg", metadata={"Date": None})
    pyplot.close(figure)
