"""Windows of time that are unlike the others: features of each window, KMeans, and the distance to what is common.

A window is judged by its distance to the nearest *large* cluster: incidents are many enough to form small clusters of
their own, and a window in the middle of one of those is not normal for it. A window without any line is none of them:
silence is not found here.
"""

import json
from pathlib import Path

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.sql import functions as F

from formats import window_start
from ingest import facts_of, good_events, is_web, literal


def windows_of(events, config, there):
    """One row a window: start, lines, and its features, shares of the lines: so the hour of the day matters little.

    `there`: the fields that the events have; what needs another one is no feature.
    """
    events = events.where(F.col("time").isNotNull())
    window = window_start(config.window_minutes).alias("start")
    lines = F.count("*")
    if not is_web(events) or "status" not in there:  # other logs: how much, and how various
        text = "message" if "message" in there else "path"
        kinds = [
            F.approx_count_distinct(F.get(F.split(text, " "), F.lit(0))).alias("kinds"),
            (F.approx_count_distinct(text) / lines).alias("new_messages"),
        ]
        return events.groupBy(window).agg(
            lines.alias("lines"), F.log(lines + 0.0).alias("log_lines"), *(kinds if text in there else [])
        )
    features = {
        "server_errors": ("status", F.count_if(F.col("status") >= 500) / lines),
        "client_errors": ("status", F.count_if(F.col("status").isin(403, 404)) / lines),
        "logins_refused": ("status", F.count_if(F.col("status") == 401) / lines),
        "p95_seconds": ("request_time", F.log(F.percentile_approx("request_time", F.lit(0.95)) + 1e-3)),
        "median_seconds": ("request_time", F.log(F.percentile_approx("request_time", F.lit(0.5)) + 1e-3)),
        "new_paths": ("path", F.approx_count_distinct("path") / lines),
    }
    kept = [value.alias(name) for name, (field, value) in features.items() if field in there]
    counted = events.groupBy(window).agg(lines.alias("lines"), *kept)
    if "client" not in there:
        return counted
    # Distributed: two steps of counting: lines of a client in a window first, then the clients of a window. Most is
    # added up where it is read, before anything travels.
    clients = events.groupBy(window, "client").agg(F.count("*").alias("n"))
    busiest = clients.groupBy("start").agg(F.max("n").alias("most"))
    return counted.join(busiest, "start").withColumn("busiest_client", F.col("most") / F.col("lines")).drop("most")


def informative_features(windows, there):
    """(features that differ between windows, {others: why they are none}, {feature: its mean})."""
    names = [name for name in windows.columns if name not in ("start", "lines")]
    numbers = [
        number(name).alias(f"{kind} {name}")
        for name in names
        for kind, number in (("least", F.min), ("most", F.max), ("mean", F.avg))
    ]
    row = windows.agg(*numbers).first() if names else {}
    left_out = {}
    if "server_errors" in names and "request_time" not in there:
        left_out["p95_seconds, median_seconds"] = "no line has a request time"
    for name in names:
        if row[f"most {name}"] is None or row[f"most {name}"] - row[f"least {name}"] <= 1e-12:
            left_out[name] = "is the same in all windows"
    kept = [name for name in names if name not in left_out]
    return kept, left_out, {name: row[f"mean {name}"] for name in kept}


def anomalies(spark, config, run):
    """Writes <output_dir>/windows with a score and a flag; returns precision and recall where
    the incidents are known."""
    events = good_events(spark, config)
    there = set(facts_of(spark, config).columns)
    windows = windows_of(events, config, there).cache()
    features, left_out, means = informative_features(windows, there)
    if not features:
        found = windows.select("start", "lines").toPandas().assign(score=0.0)
    else:
        windows = windows.fillna(means)  # a window without a single request time, say
        found = distances(windows, features, config)
    median = found["score"].median()
    spread = 1.4826 * (found["score"] - median).abs().median()
    threshold = median + config.threshold * spread
    # Where most windows are alike to the last digit there is no scale for how far the others are from them.
    found["flagged"] = (found["score"] > threshold) & (spread > 1e-9 * max(1.0, median))
    found = found.sort_values("start").reset_index(drop=True)
    spark.createDataFrame(found).write.mode("overwrite").parquet(f"{config.output_dir}/windows")
    truth = Path(config.data_dir) / "incidents.json"
    result = {"windows": len(found), "flagged": int(found["flagged"].sum()), "left_out": left_out}
    incidents = json.loads(truth.read_text()) if truth.exists() else []
    result |= judge(found, incidents, config, run) if incidents else {}
    timeline(found, incidents, threshold, config)
    return result


def distances(windows, features, config):
    """The windows in pandas with `score`, the distance to the nearest common cluster; the model is saved, and
    read back before it is used."""
    stages = [
        VectorAssembler(inputCols=features, outputCol="raw"),
        StandardScaler(inputCol="raw", outputCol="scaled", withMean=True),
    ]
    if config.pca_components:
        stages.append(PCA(k=min(config.pca_components, len(features)), inputCol="scaled", outputCol="reduced"))
    kmeans = KMeans(
        k=config.num_clusters, seed=config.seed, featuresCol=stages[-1].getOutputCol(), predictionCol="cluster"
    )
    # Distributed: KMeans sends the centres to all executors, and each adds up its points
    # around them (Lloyd's algorithm).
    model = Pipeline(stages=[*stages, kmeans]).fit(windows)
    path = f"{config.output_dir}/models/anomalies"
    model.write().overwrite().save(path)
    model = PipelineModel.load(literal(path))
    found = (
        model.transform(windows)
        .select("start", "lines", *features, model.stages[-1].getFeaturesCol(), "cluster")
        .toPandas()
    )
    points = [row.toArray() for row in found.pop(model.stages[-1].getFeaturesCol())]
    common = found["cluster"].value_counts(normalize=True)
    large = [n for n in common.index if common[n] >= config.common_share] or [common.index[0]]
    centres = [model.stages[-1].clusterCenters()[n] for n in large]
    found["score"] = [min(float(((point - centre) ** 2).sum()) ** 0.5 for centre in centres) for point in points]
    return found


def judge(found, incidents, config, run):
    """Recall: incidents with a flagged window; precision: flagged windows that overlap an incident."""
    starts = found["start"].astype("datetime64[s]").astype("int64")
    ends = starts + 60 * config.window_minutes
    rows, right = [], found["flagged"] & False
    for incident in incidents:
        inside = (starts < incident["end"]) & (ends > incident["start"])
        right |= inside & found["flagged"]
        rows.append(
            {
                "kind": incident["kind"],
                "minutes": (incident["end"] - incident["start"]) // 60,
                "windows": int(inside.sum()),
                "flagged": int((inside & found["flagged"]).sum()),
                "highest score": float(found["score"][inside].max()),
            }
        )
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
