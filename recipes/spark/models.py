"""Supervised models on the same events: which lines belong to an attack, the load of the next
window, pages for a client.

Each model is compared with what needs no model at all, saved, and loaded again before it is judged.
"""

import json
from pathlib import Path

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import DecisionTreeClassifier, LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RankingEvaluator, RegressionEvaluator
from pyspark.ml.feature import FeatureHasher, HashingTF, Tokenizer, VectorAssembler
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import Window
from pyspark.sql import functions as F

from ingest import good_events, literal
from needs import lacking_classes

NUM_FEATURES = 64  # of the hashed features
K = 10  # recommendations that are judged
MADE = ("words", "features", "scaled", "prediction", "rawPrediction", "probability")  # by MLlib, which takes no others


def labelled(events, config):
    """Events with `label`: 1 for lines of a known attacker (web logs) or with an alert
    category (BGL); None without a truth."""
    truth = Path(config.data_dir) / "incidents.json"
    if "label" in events.columns:
        return events.withColumn("label", (F.col("label") != "-").cast("double"))
    attackers = [c for i in json.loads(truth.read_text()) for c in i.get("clients", [])] if truth.exists() else []
    if not attackers:
        return None
    return events.withColumn("label", F.col("client").isin(attackers).cast("double"))


def line_features(events):
    """What a line says of itself, without who sent it and with which program: an attacker chooses both."""
    events = events.drop(*MADE)
    if "message" in events.columns:
        component = ["component"] if "component" in events.columns else []
        return events.withColumn("text", F.concat_ws(" ", *component, F.regexp_replace("message", r"\d+", "0")))
    seconds = F.coalesce("request_time", F.lit(0.0)) if "request_time" in events.columns else F.lit(0.0)
    answer = F.col("status").cast("string") if "status" in events.columns else F.lit("-")
    missing = {name: F.lit("-") for name in ("method", "path", "referrer") if name not in events.columns}
    missing |= {"bytes": F.lit(0)} if "bytes" not in events.columns else {}
    events = events.withColumns(missing) if missing else events
    return events.withColumns(
        {
            "section": F.get(F.split("path", "[/?]"), F.lit(1)),
            "answer": answer,
            "referred": F.col("referrer") != "-",
            "size": F.log(F.coalesce(F.col("bytes"), F.lit(0)) + 1.0),
            "seconds": seconds,
        }
    )


def feature_stages(events):
    """What turns the columns of `line_features` into a vector `features`, without a look at the data:
    hashing needs no dictionary."""
    if "message" in events.columns:
        words = Tokenizer(inputCol="text", outputCol="words")
        return [words, HashingTF(inputCol="words", outputCol="features", numFeatures=4 * NUM_FEATURES)]
    columns = ["method", "section", "answer", "referred", "size", "seconds"]
    return [FeatureHasher(inputCols=columns, outputCol="features", numFeatures=NUM_FEATURES)]


def share_of(events, seed):
    """A column: a number from 0 to 999 that follows from the line: the same split in every
    run, on any number of executors."""
    keys = [name for name in ("time", "client", "path", "bytes", "message") if name in events.columns]
    return F.pmod(F.xxhash64(*keys, F.lit(seed)), F.lit(1000))


def sample(events, config):
    """(about `model_rows` labelled lines with their features, {label: about how many lines}); (None, {})
    where there are no labels."""
    data = labelled(events, config)
    if data is None:
        return None, {}
    counts = {row["label"]: row["count"] for row in data.groupBy("label").count().collect() if row["label"] is not None}
    share = min(1.0, config.model_rows / max(1, sum(counts.values())))
    rows = line_features(data).where("label IS NOT NULL").where(share_of(data, config.seed) < 1000 * share)
    return rows, {label: count * share for label, count in counts.items()}


def classify(spark, config, run):
    """Logistic regression and a decision tree, each with its best setting by cross-validation; F1 of the rare class."""
    data, counts = sample(good_events(spark, config), config)
    if reason := lacking_classes("classify", counts):
        return {"skipped": reason}
    share = share_of(data, config.seed + 1)
    train, test = data.where(share < 800).cache(), data.where(share >= 800).cache()
    f1 = MulticlassClassificationEvaluator(metricName="fMeasureByLabel", metricLabel=1.0)
    sizes = {part: dict(rows.groupBy("label").count().collect()) for part, rows in (("train", train), ("test", test))}
    if few := [part for part, found in sizes.items() if len(found) < 2]:
        return {
            "skipped": f"the {few[0]} part has lines of one class only: "
            "equal lines stay together, and too few are different"
        }
    rare = sizes["test"][1.0] / sum(sizes["test"].values())
    # Saying "attack" of every line is the best that can be done without a look: recall 1, precision `rare`.
    rows, result = [{"model": "all lines alike", "f1": 2 * rare / (1 + rare)}], {}
    candidates = {
        "logistic_regression": (LogisticRegression(maxIter=20), "regParam", [1e-4, 1e-2]),
        "decision_tree": (DecisionTreeClassifier(seed=config.seed), "maxDepth", [4, 8]),
    }
    for name, (classifier, parameter, values) in candidates.items():
        grid = ParamGridBuilder().addGrid(classifier.getParam(parameter), values).build()
        # Distributed: the folds' models are trained side by side, each of them by all executors.
        search = CrossValidator(
            estimator=Pipeline(stages=[*feature_stages(data), classifier]),
            estimatorParamMaps=grid,
            evaluator=f1,
            numFolds=config.num_folds,
            seed=config.seed,
            parallelism=2,
        )
        best = search.fit(train).bestModel
        path = f"{config.output_dir}/models/{name}"
        best.write().overwrite().save(path)
        score = f1.evaluate(PipelineModel.load(literal(path)).transform(test))
        result[f"{name}_f1"] = score
        rows.append({"model": f"{name} ({parameter}={best.stages[-1].getOrDefault(parameter)})", "f1": score})
    run.table("attack lines", rows)
    return result | {"baseline_f1": rows[0]["f1"]}


def forecast(spark, config, run):
    """Lines of the next window from the last ones and the hour; judged on the last fifth of the windows.

    Windows without a line are left out: the last ones are the last three that have any.
    """
    windows = spark.read.parquet(literal(f"{config.output_dir}/windows")).select("start", "lines")
    by_time = Window.orderBy("start")
    minute = F.hour("start") * 60 + F.minute("start")
    columns = {
        **{f"back{n}": F.lag("lines", n).over(by_time) for n in (1, 2, 3)},
        "sine": F.sin(minute * 2 * 3.141592653589793 / 1440),
        "cosine": F.cos(minute * 2 * 3.141592653589793 / 1440),
        "place": F.percent_rank().over(by_time),
        "label": F.col("lines").cast("double"),
    }
    data = windows.withColumns(columns).dropna().cache()
    train, test = data.where("place < 0.8"), data.where("place >= 0.8")
    assembler = VectorAssembler(inputCols=["back1", "back2", "back3", "sine", "cosine"], outputCol="features")
    path = f"{config.output_dir}/models/forecast"
    Pipeline(stages=[assembler, LinearRegression(regParam=0.1)]).fit(train).write().overwrite().save(path)
    rmse = RegressionEvaluator(metricName="rmse")
    score = rmse.evaluate(PipelineModel.load(literal(path)).transform(test))
    same = rmse.evaluate(test.withColumn("prediction", F.col("back1").cast("double")))
    run.table(
        "lines of the next window",
        [{"model": "as in the last one", "rmse": same}, {"model": "linear regression", "rmse": score}],
    )
    return {"forecast_rmse": score, "baseline_rmse": same}


def recommend(spark, config, run):
    """Alternating least squares on who has seen which product page; judged on pages that were kept back."""
    events = good_events(spark, config)
    page = F.regexp_extract("path", r"^/product/(\d+)$", 1)
    seen = events.select("client", page.alias("page")).where("page != ''").groupBy("client", "page").count()
    # A client's number follows from its name, so it is the same in every run.
    seen = seen.select(
        F.pmod(F.xxhash64("client"), F.lit(2**31 - 1)).cast("int").alias("user"),
        F.col("page").try_cast("int").alias("item"),
        F.col("count").cast("float").alias("times"),
    )
    active = seen.groupBy("user").count().where("count >= 8").select("user")
    seen = seen.where("item IS NOT NULL").join(active, "user").cache()
    if seen.isEmpty():
        return {"skipped": "no client has seen 8 product pages or more"}
    share = F.pmod(F.xxhash64("user", "item", F.lit(config.seed)), F.lit(5))
    train, kept_back = seen.where(share > 0).cache(), seen.where(share == 0)
    if train.isEmpty() or kept_back.isEmpty():
        return {"skipped": "needs pages that can be kept back to judge by, and there are too few"}
    # Distributed: users and items are two sets of blocks on the executors; factors of one travel to
    # where the other needs them.
    num_blocks = 2 * spark.sparkContext.defaultParallelism
    blocks = {"numUserBlocks": num_blocks, "numItemBlocks": num_blocks}
    columns = {"userCol": "user", "itemCol": "item", "ratingCol": "times"}
    als = ALS(rank=8, maxIter=8, regParam=0.1, implicitPrefs=True, alpha=10.0, seed=config.seed, **columns, **blocks)
    path = f"{config.output_dir}/models/pages"
    als.fit(train).write().overwrite().save(path)
    model = ALSModel.load(literal(path))
    truth = kept_back.groupBy("user").agg(F.collect_list(F.col("item").cast("double")).alias("label"))
    known = train.groupBy("user").agg(F.collect_list("item").alias("known"))

    def judged(ranked):
        """NDCG of the first K pages that the client does not know yet; `ranked`: user, items (best first)."""
        new = F.slice(F.filter("items", lambda item: ~F.array_contains("known", item)), 1, K)
        rows = (
            truth.join(known, "user")
            .join(ranked, "user")
            .select("label", F.transform(new, lambda i: i.cast("double")).alias("prediction"))
        )
        return RankingEvaluator(metricName="ndcgAtK", k=K).evaluate(rows)

    ours = model.recommendForUserSubset(truth, 60).select("user", F.col("recommendations.item").alias("items"))
    popular = train.groupBy("item").agg(F.sum("times").alias("n")).orderBy(F.desc("n"), "item").limit(60)
    everybody = truth.select("user").crossJoin(popular.agg(F.collect_list("item").alias("items")))
    rows = [
        {"model": "most popular", f"ndcg at {K}": judged(everybody)},
        {"model": "ALS", f"ndcg at {K}": judged(ours)},
    ]
    run.table("pages for clients", rows)
    return {"recommend_ndcg": rows[1][f"ndcg at {K}"], "baseline_ndcg": rows[0][f"ndcg at {K}"]}
