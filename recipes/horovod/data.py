"""Reads the dataset folder, and decides which rows each worker takes through each step. NumPy only."""

import json
from pathlib import Path

import numpy as np


class ImageData:
    """One split of an image dataset on disk; a worker reads the rows that it needs and no others.

    `images` uint8 (rows, height, width, channels), `labels` int64 (rows,), both memory-mapped; `len()` gives the rows.
    """

    def __init__(self, data_dir, split, max_rows=None):
        folder = Path(data_dir)
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            self.images = np.load(folder / f"{split}_images.npy", mmap_mode="r")[:max_rows]
            self.labels = np.load(folder / f"{split}_labels.npy", mmap_mode="r")[:max_rows]
        except (OSError, ValueError) as error:
            raise SystemExit(
                f"data_dir={data_dir} cannot be read: {error}; delete that folder to have it built again"
            ) from None
        self.max_value = self.manifest["schema"]["images"]["max_value"]
        self.num_classes = len(self.manifest["classes"])

    def __len__(self):
        return len(self.labels)

    def read(self, ids):
        """Images float32 in [0, 1] (n, height, width, channels) and labels int64 (n,) of the given rows."""
        return self.images[ids].astype(np.float32) / self.max_value, np.asarray(self.labels[ids])


class Batches:
    """Deals the rows of each epoch in global batches, and each global batch among the workers.

    The order depends on the seed and the epoch only, never on the number of workers. So one worker and many take the
    same steps, a run may go on with another number of workers, and every row is seen once an epoch: nothing is
    dropped or padded.
    """

    def __init__(self, num_rows, global_batch_size, seed):
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = -(-num_rows // global_batch_size)

    def order(self, epoch):
        """All row numbers, int64 (num_rows,), shuffled for this epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def share(self, order, step, rank, world_size):
        """This worker's rows of one global batch, and the size of that batch (an epoch's last one may be smaller)."""
        batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        # Distributed: every world_size-th row of the batch, beginning with the rank-th.
        return batch[rank::world_size], len(batch)
