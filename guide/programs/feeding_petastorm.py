"""Batches of tensors from Parquet, by Petastorm's batch reader with its thread pool, `workers` threads."""

import sys
import warnings
from pathlib import Path

import torch
from feeding_sums import BATCH, COLUMNS, FEATURES, Sums
from meter import Meter

warnings.filterwarnings("ignore")


def answer(folder, num_threads, make_batch_reader, whole):
    sums = Sums()
    paths = [path.as_uri() for path in sorted(Path(folder).glob("*.parquet"))]
    # A shard of many: on a cluster each worker would read with cur_shard=rank, shard_count=world_size.
    reader = make_batch_reader(
        paths, schema_fields=COLUMNS, num_epochs=1, shuffle_row_groups=False, workers_count=num_threads
    )
    with whole(reader):
        for group in reader:
            columns = [torch.from_numpy(getattr(group, name)) for name in FEATURES]
            ids = torch.from_numpy(group.id)
            for one, features in zip(ids.split(BATCH), torch.stack(columns, dim=1).split(BATCH), strict=True):
                sums.add(one, features)
    return sums.table()


if __name__ == "__main__":
    # The recipe's module has the way around a reader that may end too early (petastorm 0.13.1).
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes/petastorm"))
    import readers

    meter = Meter()
    meter.ready()
    meter.measure(lambda: answer(meter.folder, meter.workers, readers.make_batch_reader, readers.whole))
    readers.leave()
