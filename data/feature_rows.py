"""Rows of 16 features in plain Parquet: to measure how fast readers feed them into tensors, and to fit models to.

`id` int64 (0, 1, ...), `label` int64 (0 or 1: a noisy weighted sum of features, and whether two of them are both large)
and x00 to x15 float32, whole numbers below 1000: their sums are exact in double precision, so
that two readers can be compared to the last digit. A block of rows follows from the seed and its own number.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _common import DatasetError, run_builder

FEATURES = [f"x{number:02d}" for number in range(16)]
ROWS_PER_GROUP = 20_000
GROUPS_PER_FILE = 20


def build(folder, num_rows, seed):
    if num_rows < 1:
        raise DatasetError(f"num_rows={num_rows}: expected at least 1")
    starts = range(0, num_rows, ROWS_PER_GROUP)
    for number in range(0, len(starts), GROUPS_PER_FILE):
        name = folder / f"rows-{number // GROUPS_PER_FILE:05d}.parquet"
        own = [block(start, min(ROWS_PER_GROUP, num_rows - start), seed) for start in starts[number:][:GROUPS_PER_FILE]]
        with pq.ParquetWriter(name, own[0].schema, use_dictionary=False) as writer:
            for table in own:
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        print(f"feature_rows: {min(num_rows, (number + GROUPS_PER_FILE) * ROWS_PER_GROUP)} rows", flush=True)
    return {
        "name": "feature_rows",
        "version": "1",
        "source": f"generated: {num_rows} rows, seed {seed}",
        "licence": "CC0 1.0",
        "rows": {"rows": num_rows},
        "schema": {"id": "int64", "label": "int64", **dict.fromkeys(FEATURES, "float32")},
    }


def block(start, num_rows, seed):
    """The rows from `start` on, as a table."""
    random = np.random.default_rng([seed, start])
    values = random.integers(0, 1000, (len(FEATURES), num_rows)).astype(np.float32)
    score = values[:4].T @ np.array([1.0, -0.8, 0.6, -0.4]) + 600 * ((values[4] > 500) & (values[5] > 500))
    label = (score + random.normal(0, 400, num_rows) > 350).astype(np.int64)
    return pa.table(
        {"id": np.arange(start, start + num_rows), "label": label, **dict(zip(FEATURES, values, strict=True))}
    )


if __name__ == "__main__":
    run_builder(build)
