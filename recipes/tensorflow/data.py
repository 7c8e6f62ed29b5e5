"""Reads the dataset folder, decides which rows each worker takes through each step, and makes a tf.data pipeline of it."""

import json
from pathlib import Path

import numpy as np
from runtime import tf


class ImageData:
    """One split of an image dataset on disk, memory-mapped; `len()` gives the rows.

    `images` uint8 (rows, height, width, channels), `labels` int64 (rows,).
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

    def read(self, rows):
        """Images float32 in [0, 1] (n, height, width, channels) and labels int64 (n,); zeros where the row number is -1."""
        images = self.images[rows].astype(np.float32) / self.max_value
        return np.where((rows >= 0)[:, None, None, None], images, 0), np.where(rows >= 0, self.labels[rows], 0)


class Batches:
    """Deals the rows of each epoch in global batches, and each global batch among the replicas.

    The order depends on the seed and the epoch only, never on the number of replicas: one worker and many take the same
    steps. Every batch has the same shape, as TPUs and XLA want it: the last one of an epoch is filled up with places that
    hold no row (number -1) and weigh nothing.
    """

    def __init__(self, num_rows, global_batch_size, seed):
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = -(-num_rows // global_batch_size)

    def order(self, epoch):
        """All row numbers, int64 (num_rows,), shuffled for this epoch; in their own order when the seed is None."""
        if self.seed is None:
            return np.arange(self.num_rows)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def shares(self, order, step, num_replicas):
        """Each replica's rows of one global batch, int64 (num_replicas, rows), and each row's weight: 1 / rows of the batch."""
        batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        rows = np.full((num_replicas, self.global_batch_size // num_replicas), -1, np.int64)
        for replica in range(num_replicas):
            share = batch[replica::num_replicas]
            rows[replica, : len(share)] = share
        return rows, np.float32(1 / len(batch))


def elements(data, batches, num_replicas, first_step, num_steps, mine=None):
    """A tf.data.Dataset of steps first_step to num_steps, without end when num_steps is None (then each pass is epoch 0).

    An element is a dictionary of tensors with one entry per row: image float32 (n, height, width, channels), label, row,
    epoch, step int64 (n,) and weight float32 (n,). n is the global batch, or one replica's share when `mine` is its number.
    """

    def generate():
        number, order, order_of = first_step, None, None
        while num_steps is None or number < num_steps:
            epoch, step = divmod(number, batches.steps_per_epoch)
            epoch = epoch if num_steps is not None else 0
            if order_of != epoch:
                order, order_of = batches.order(epoch), epoch
            shares, weight = batches.shares(order, step, num_replicas)
            rows = shares.reshape(-1) if mine is None else shares[mine]
            images, labels = data.read(rows)
            place = {"epoch": np.full(len(rows), epoch), "step": np.full(len(rows), step)}
            yield {
                "image": images,
                "label": labels,
                "row": rows,
                "weight": np.where(rows >= 0, weight, np.float32(0)),
                **place,
            }
            number += 1

    n = batches.global_batch_size // (1 if mine is None else num_replicas)
    number = tf.TensorSpec([n], tf.int64)
    signature = {"image": tf.TensorSpec([n, *data.images.shape[1:]]), "label": number, "row": number}
    signature |= {"weight": tf.TensorSpec([n]), "epoch": number, "step": number}
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def with_options(dataset, config, policy):
    """Says how the dataset is divided among workers, whether its order is fixed, and reads ahead of the training."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(tf.data.experimental.AutoShardPolicy, policy.upper())
    options.deterministic = config.deterministic
    return dataset.with_options(options).prefetch(config.prefetch_batches)


def distributed(data, batches, strategy, config, first_step, num_steps):
    """The pipeline as the strategy's `fit` wants it: each replica gets global_batch_size / replicas rows of every step."""
    num_replicas = strategy.num_replicas_in_sync
    if config.input == "tfrecord":
        return from_tfrecords(data, batches, strategy, config, first_step, num_steps)
    if config.auto_shard == "data":
        # Distributed: every worker makes the whole global batch and TensorFlow drops the shares of the others from it:
        # simple, and reading is done num_workers times.
        return with_options(elements(data, batches, num_replicas, first_step, num_steps), config, "data")

    def own_share(context):
        # Distributed: called once on each worker, which then reads its own share only.
        if num_replicas != context.num_input_pipelines:
            # One pipeline feeds several devices here: each of them takes the next element in turn.
            shares = [
                elements(data, batches, num_replicas, first_step, num_steps, mine) for mine in range(num_replicas)
            ]
            choice = tf.data.Dataset.range(num_replicas).repeat()
            return with_options(tf.data.Dataset.choose_from_datasets(shares, choice), config, "off")
        mine = context.input_pipeline_id
        return with_options(elements(data, batches, num_replicas, first_step, num_steps, mine), config, "off")

    return strategy.distribute_datasets_from_function(own_share)
