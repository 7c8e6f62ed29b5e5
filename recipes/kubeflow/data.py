"""The rows of one dataset folder, and which of them each worker takes through each step."""

import json
from pathlib import Path

import numpy as np


class ImageData:
    """One split of an image dataset on disk: `images` uint8 (rows, height, width, channels), `labels` int64 (rows,)."""

    def __init__(self, folder, split):
        folder = Path(folder)
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            self.images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
            self.labels = np.load(folder / f"{split}_labels.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise SystemExit(f"the dataset folder {folder} cannot be read: {error}") from None
        self.max_value = self.manifest["schema"]["images"]["max_value"]
        self.num_classes = len(self.manifest["classes"])

    def __len__(self):
        return len(self.labels)

    def read(self, ids):
        """Images float32 in [0, 1] (n, channels, height, width), as the network wants them, and labels int64 (n,)."""
        images = self.images[ids].astype(np.float32) / self.max_value
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.asarray(self.labels[ids])


class Batches:
    """Deals the rows of each epoch in global batches, and each of those among the workers.

    The order depends on seed and epoch only. So one worker and many take the same steps, and each row is
    seen once an epoch.
    """

    def __init__(self, num_rows, global_batch_size, seed):
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = -(-num_rows // global_batch_size)

    def of_epoch(self, epoch, first_step=0):
        """The row numbers of each global batch from `first_step` on, int64 (at most global_batch_size,)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        for step in range(first_step, self.steps_per_epoch):
            yield order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
