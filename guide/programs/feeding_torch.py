"""Batches of tensors from Parquet, by PyTorch's DataLoader: its processes read row groups, `workers` of them."""

from pathlib import Path

import pyarrow.parquet as pq
import torch
from feeding_sums import BATCH, FEATURES, Sums
from meter import Meter
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Groups(IterableDataset):
    """Batches of (ids, features) from all row groups."""

    def __init__(self, folder):
        self.paths = sorted(Path(folder).glob("*.parquet"))

    def __iter__(self):
        info = get_worker_info()
        number = 0
        for path in self.paths:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                # Distributed: each loader process has its own row groups; no other reads them.
                if number % info.num_workers == info.id:
                    table = file.read_row_group(group, use_threads=False)
                    ids = torch.from_numpy(table["id"].to_numpy())
                    columns = [torch.from_numpy(table[name].to_numpy()) for name in FEATURES]
                    yield from zip(ids.split(BATCH), torch.stack(columns, dim=1).split(BATCH), strict=True)
                number += 1


if __name__ == "__main__":
    meter = Meter()
    torch.set_num_threads(1)
    # Distributed: reading happens in processes of their own, beside the one that trains.
    loader = DataLoader(Groups(meter.folder), batch_size=None, num_workers=meter.workers)
    meter.ready()

    def answer():
        sums = Sums()
        for ids, features in loader:
            sums.add(ids, features)
        return sums.table()

    meter.measure(answer)
