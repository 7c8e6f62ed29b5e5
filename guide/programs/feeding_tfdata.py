"""Batches of tensors from Parquet, by tf.data over row groups read by pyarrow, `workers` of them at a time."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from feeding_sums import BATCH, FEATURES, Sums
from meter import Meter

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def pipeline(folder, num_threads):
    import tensorflow as tf

    paths = sorted(Path(folder).glob("*.parquet"))
    places = [
        (number, group) for number, path in enumerate(paths) for group in range(pq.ParquetFile(path).num_row_groups)
    ]

    def read(number, group):
        table = pq.ParquetFile(paths[int(number)]).read_row_group(int(group), use_threads=False)
        return table["id"].to_numpy(), np.stack([table[name].to_numpy() for name in FEATURES], axis=1)

    def group_of(place):
        ids, features = tf.numpy_function(read, [place[0], place[1]], (tf.int64, tf.float32))
        ids.set_shape([None])
        features.set_shape([None, len(FEATURES)])
        return ids, features

    groups = tf.data.Dataset.from_tensor_slices(np.array(places, np.int64))
    groups = groups.map(group_of, num_parallel_calls=num_threads)
    return groups.unbatch().batch(BATCH).prefetch(4)


if __name__ == "__main__":
    meter = Meter()
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(meter.workers)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    meter.ready()

    def answer():
        sums = Sums()
        for ids, features in pipeline(meter.folder, meter.workers).as_numpy_iterator():
            sums.add(ids, features)
        return sums.table()

    meter.measure(answer)
