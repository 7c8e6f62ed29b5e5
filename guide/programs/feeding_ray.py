"""Batches of tensors from Parquet, by Ray Data: tasks read, `workers` at a time; this process takes batches."""

from pathlib import Path

import ray
import torch
from feeding_sums import BATCH, COLUMNS, FEATURES, Sums
from meter import Meter
from ray_local import start


def answer(folder):
    sums = Sums()
    paths = [str(path) for path in sorted(Path(folder).glob("*.parquet"))]
    rows = ray.data.read_parquet(paths, columns=COLUMNS)
    # Distributed: a training worker would take its part of the batches by `streaming_split`.
    for batch in rows.iter_torch_batches(batch_size=BATCH):
        sums.add(batch["id"], torch.stack([batch[name] for name in FEATURES], dim=1))
    return sums.table()


if __name__ == "__main__":
    meter = Meter()
    torch.set_num_threads(1)
    start(meter.workers, meter.memory_mb)  # Distributed: a cluster of Ray's on this machine
    meter.ready()
    meter.measure(lambda: answer(meter.folder))
