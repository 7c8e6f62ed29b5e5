"""A linear model and a forest on rows of 16 features, in Spark MLlib, in executors."""

from meter import Meter
from pyspark.ml.classification import LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import functions as F
from spark_local import start

FEATURES = [f"x{number:02d}" for number in range(16)]
TREES, DEPTH = 20, 8


def answer(spark, folder):
    table = spark.read.parquet(f"{folder}/*.parquet")
    cut = table.count() * 4 // 5
    table = table.select("id", "label", *[(F.col(name) / 1000).alias(name) for name in FEATURES])
    rows = VectorAssembler(inputCols=FEATURES, outputCol="features").transform(table).select("id", "label", "features")
    train, test = rows.where(F.col("id") < cut).cache(), rows.where(F.col("id") >= cut)
    # Distributed: each executor adds up the gradients of its rows; the driver takes the steps.
    linear = LogisticRegression(regParam=0.0, maxIter=100).fit(train)
    # Distributed: all trees grow level by level, each executor counts its rows in each leaf.
    trees = RandomForestClassifier(numTrees=TREES, maxDepth=DEPTH, featureSubsetStrategy="sqrt", seed=0).fit(train)
    measure = BinaryClassificationEvaluator(metricName="areaUnderROC")
    found = {name: measure.evaluate(model.transform(test)) for name, model in (("linear", linear), ("trees", trees))}
    train.unpersist()
    return {f"{name}_auc": value for name, value in found.items()}


if __name__ == "__main__":
    meter = Meter()
    spark = start(meter.workers, meter.memory_mb)  # Distributed: a driver, a master and executors
    meter.ready()
    meter.measure(lambda: answer(spark, meter.folder))
    spark.stop()
