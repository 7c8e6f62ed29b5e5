"""Batches of tensors from Parquet, by pyarrow's dataset. One process, `workers` threads."""

import pyarrow as pa
import pyarrow.dataset
import torch
from feeding_sums import BATCH, COLUMNS, FEATURES, Sums
from meter import Meter


def answer(folder):
    sums = Sums()
    dataset = pyarrow.dataset.dataset(folder, format="parquet", exclude_invalid_files=True)
    for batch in dataset.to_batches(columns=COLUMNS, batch_size=BATCH):
        ids = torch.from_numpy(batch["id"].to_numpy())
        features = torch.stack([torch.from_numpy(batch[name].to_numpy().copy()) for name in FEATURES], dim=1)
        sums.add(ids, features)
    return sums.table()


if __name__ == "__main__":
    meter = Meter()
    pa.set_cpu_count(meter.workers)
    torch.set_num_threads(1)
    meter.ready()
    meter.measure(lambda: answer(meter.folder))
