"""The saved model scores lines as their files arrive: Structured Streaming, each line exactly
once, whoever is killed when.

The checkpoint knows which files belong to which batch before the batch begins, and the table knows which batches are
whole. A batch that was cut off is done again, and what it had written does not count.
"""

from pathlib import Path

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from formats import is_blank, parse
from ingest import input_files, links, literal, read_lines
from models import line_features


def stream(spark, config, run):
    """Writes <output_dir>/scored; returns how many lines were scored, and whether they are those that were ingested."""
    saved = Path(config.output_dir) / "models/logistic_regression"
    if not saved.exists():
        return {"skipped": "needs the model of the step classify, which was skipped"}
    paths, fmt, _ = input_files(config)
    if fmt.start or fmt.w3c or fmt.may_lack_year() or "://" in paths[0]:
        return {"skipped": f"scores each line by itself, and lines of the format {fmt.name} need others, or their file"}
    model = PipelineModel.load(literal(str(saved)))
    # A stream reads a folder: one with a link to each file that was asked for, and to none besides.
    known = links(paths, config, all_of_them=True)
    table = f"{config.output_dir}/scored"
    # Distributed: a stream of files is planned like a table; each batch is a job of its own on the executors.
    lines = (
        spark.readStream.format("text")
        .option("maxFilesPerTrigger", 1)
        .load(literal(str(Path(next(iter(known))).parent)))
        .where(~is_blank(fmt))
    )
    good = parse(lines, fmt).where("reason IS NULL")
    scored = model.transform(line_features(good)).select(
        "time", F.xxhash64("value").alias("line"), F.element_at(vector_to_array("probability"), 2).alias("score")
    )
    # `availableNow`: all files that are there, in batches, then it ends. A processing time
    # would keep it waiting for more.
    query = (
        scored.writeStream.format("parquet")
        .option("path", table)
        .option("checkpointLocation", f"{config.output_dir}/stream-checkpoint")
        .trigger(availableNow=True)
        .start()
    )
    while not query.awaitTermination(2):
        progress = query.lastProgress
        if progress:
            run.progress(progress["batchId"], len(paths), f"stream: batch {progress['batchId'] + 1}")
    # The same lines again as a plain table, from what is on disk: number and sum of hashes must agree.
    once = (
        parse(read_lines(spark, links(paths, config), fmt)[0], fmt)
        .where(F.col("reason").isNull() & ~is_blank(fmt))
        .agg(F.count("*"), F.sum(F.xxhash64("value").cast("decimal(38,0)")))
        .first()
    )
    got = (
        spark.read.parquet(literal(table))
        .agg(F.count("*"), F.sum(F.col("line").cast("decimal(38,0)")), F.avg("score"))
        .first()
    )
    if tuple(once) != tuple(got)[:2]:
        raise SystemExit(
            f"the stream scored {got[0]:,} lines with hash sum {got[1]}, but there are {once[0]:,} with {once[1]}"
        )
    return {"scored": got[0], "mean_score": got[2]}
