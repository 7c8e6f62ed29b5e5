"""Handwritten digits as tensors in a Petastorm store, written by Spark: 1,797 grey images of
8 x 8 pixels, in ten classes.

Source: scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak 1998). Licence: CC BY 4.0. Needs Java, and the
packages of the petastorm recipe.

Two stores, `train` and `test`: `id` int64, `label` int64, `image` float32 (8, 8) by NdarrayCodec, `picture`
uint8 (32, 32) by CompressedImageCodec (PNG, four times as large): cells that hold encoded bytes, which only
Petastorm's row reader decodes.
"""

import numpy as np
from _common import run_builder, stratified_split
from _petastorm import local_spark, tidy, write_store
from petastorm.codecs import CompressedImageCodec, NdarrayCodec, ScalarCodec
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row
from pyspark.sql.types import LongType
from sklearn.datasets import load_digits

SCHEMA = Unischema(
    "digits",
    [
        UnischemaField("id", np.int64, (), ScalarCodec(LongType()), False),
        UnischemaField("label", np.int64, (), ScalarCodec(LongType()), False),
        UnischemaField("image", np.float32, (8, 8), NdarrayCodec(), False),
        UnischemaField("picture", np.uint8, (32, 32), CompressedImageCodec("png"), False),
    ],
)


def build(folder, test_fraction, rows_per_group, seed):
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    spark = local_spark(folder, "digits_store")
    rows = {}
    try:
        for part, chosen in zip(("train", "test"), stratified_split(digits.target, test_fraction, seed), strict=True):
            table = [(number, int(digits.target[row]), images[row].tolist()) for number, row in enumerate(chosen)]
            # Distributed by Spark: each task encodes the rows of its partition.
            encoded = spark.sparkContext.parallelize(table, 4).map(encode)
            frame = spark.createDataFrame(encoded, SCHEMA.as_spark_schema())
            rows[part] = write_store(spark, frame, folder / part, SCHEMA, rows_per_group)
    finally:
        spark.stop()
        tidy(folder)
    return {
        "name": "digits_store",
        "version": "1",
        "source": "scikit-learn, load_digits; encoded by Spark",
        "licence": "CC BY 4.0",
        "rows": rows,
        "account": {"read": len(images), "good": sum(rows.values()), "quarantined": 0},
        "task": "digits",
        "schema": {"id": "int64", "label": "int64", "image": "float32 (8, 8)", "picture": "uint8 (32, 32), PNG"},
    }


def encode(row):
    number, label, pixels = row
    image = np.array(pixels, dtype=np.float32)
    picture = np.kron(image * 255, np.ones((4, 4))).astype(np.uint8)
    return dict_to_spark_row(SCHEMA, {"id": number, "label": label, "image": image, "picture": picture})


if __name__ == "__main__":
    run_builder(build)
