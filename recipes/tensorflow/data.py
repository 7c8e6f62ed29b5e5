"""Reads the dataset folder, and decides which rows each worker takes through each step."""

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

    The order depends on the seed and the epoch only, never on the number of workers. So one worker and many take the same
    steps, a run may go on with another number of workers, and every row is seen once an epoch: nothing is dropped or padded.
    """

    def __init__(self, num_rows, global_batch_size, seed):
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = -(-num_rows // global_batch_size)

    def order(self, epoch):
        """All row numbers, int64 (num_rows,), shuffled for this epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def share(self, order, step, rank, world_size):
        """This worker's rows of one global batch, and the size of that batch (the last one of an epoch may be smaller)."""
        batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        return batch[rank::world_size], len(batch)


def dataset_of(tf, data, batches, first_epoch, num_steps, config):
    """A tf.data pipeline over global batches, from `first_epoch` on: (images, labels, weights, place), batched.

    weights float32 (n,): 1 / rows of the global batch; place int64 (n, 3): epoch, step and row number of each row.
    The rows are gathered from memory by TensorFlow itself: `from_generator` would need Python's lock, and ending its
    iterator, which holds that lock, then takes up to half a minute.
    """
    per_epoch, size, n = batches.steps_per_epoch, batches.global_batch_size, batches.num_rows
    num_epochs = -(-num_steps // per_epoch)
    orders = np.stack([batches.order(epoch) for epoch in range(first_epoch, max(num_epochs, first_epoch + 1))])
    orders, images, labels = (
        tf.constant(orders),
        tf.constant(np.asarray(data.images)),
        tf.constant(np.asarray(data.labels)),
    )

    def batch_of(step):
        epoch, step_of_epoch = step // per_epoch, step % per_epoch
        ids = orders[epoch - first_epoch, step_of_epoch * size : tf.minimum((step_of_epoch + 1) * size, n)]
        rows, same = tf.shape(ids, tf.int64)[0], tf.ones_like(ids)
        place = tf.stack([same * epoch, same * step_of_epoch, ids], axis=1)
        weights = tf.ones_like(ids, tf.float32) / tf.cast(rows, tf.float32)
        return tf.cast(tf.gather(images, ids), tf.float32) / data.max_value, tf.gather(labels, ids), weights, place

    options = tf.data.Options()
    options.deterministic = (
        config.deterministic
    )  # in order, whatever the number of threads: all cut shares of the same batches
    # Distributed: DATA lets each worker keep its share of every batch; FILE would deal out whole files.
    policies = tf.data.experimental.AutoShardPolicy
    policy = {"data": policies.DATA, "file": policies.FILE, "off": policies.OFF}[config.auto_shard]
    options.experimental_distribute.auto_shard_policy = policy
    return tf.data.Dataset.range(first_epoch * per_epoch, num_steps).map(batch_of).with_options(options).prefetch(2)
