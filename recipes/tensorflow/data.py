"""Reads the dataset folder, decides which rows each worker takes through each step, and makes a tf.data pipeline."""

import functools
import json
import shutil
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
        """Images float32 in [0, 1] (n, height, width, channels) and labels int64 (n,).

        Zeros where the row number is -1.
        """
        images = self.images[rows].astype(np.float32) / self.max_value
        return np.where((rows >= 0)[:, None, None, None], images, 0), np.where(rows >= 0, self.labels[rows], 0)


class Batches:
    """Deals the rows of each epoch in global batches, and each global batch among the replicas.

    The order depends on the seed and the epoch only, never on the number of replicas: one worker and many take the same
    steps. Every batch has the same shape, as TPUs and XLA want it: the last one of an epoch is filled up with places
    that hold no row (number -1) and weigh nothing.
    """

    def __init__(self, num_rows, global_batch_size, seed):
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = -(-num_rows // global_batch_size)
        self.handed_out = None  # a list: the pipeline appends (epoch, step, rows) of each batch that it hands out

    @functools.lru_cache(2)  # noqa: B019
    def order(self, epoch):
        """All row numbers, int64 (num_rows,), shuffled for this epoch; in their own order when the seed is None."""
        if self.seed is None:
            return np.arange(self.num_rows)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def shares(self, order, step, num_replicas):
        """Each replica's rows of one global batch, int64 (num_replicas, rows), and each row's weight.

        The weight is 1 / rows of the batch.
        """
        batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        rows = np.full((num_replicas, self.global_batch_size // num_replicas), -1, np.int64)
        for replica in range(num_replicas):
            share = batch[replica::num_replicas]
            rows[replica, : len(share)] = share
        return rows, np.float32(1 / len(batch))


def elements(data, batches, num_replicas, steps, mine=None, forever=False):
    """A tf.data.Dataset of the steps in `steps`, over and over if `forever`.

    `steps` is a range of numbers that count on from epoch to epoch.

    An element is a dictionary of tensors with one entry per row: image float32 (n, height, width, channels),
    label, row, epoch, step int64 (n,) and weight float32 (n,). n is the global batch, or one replica's share when
    `mine` is its number.
    """
    kinds = {
        "image": tf.float32,
        "label": tf.int64,
        "row": tf.int64,
        "weight": tf.float32,
        "epoch": tf.int64,
        "step": tf.int64,
    }
    n = batches.global_batch_size // (1 if mine is None else num_replicas)

    def read(number):
        epoch, step = divmod(int(number), batches.steps_per_epoch)
        shares, weight = batches.shares(batches.order(epoch), step, num_replicas)
        rows = shares.reshape(-1) if mine is None else shares[mine]
        if batches.handed_out is not None:
            batches.handed_out.append((epoch, step, rows[rows >= 0]))
        images, labels = data.read(rows)
        return images, labels, rows, np.where(rows >= 0, weight, np.float32(0)), np.full(n, epoch), np.full(n, step)

    def element(number):
        values = dict(zip(kinds, tf.numpy_function(read, [number], list(kinds.values())), strict=True))
        # What comes from Python has no shape until it is given one.
        for name, value in values.items():
            value.set_shape([n, *(data.images.shape[1:] if name == "image" else [])])
        return values

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    return (numbers.repeat() if forever else numbers).map(element)


def with_options(dataset, config, policy):
    """Says how the dataset is divided among workers, whether its order is fixed, and reads ahead of the training."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(tf.data.experimental.AutoShardPolicy, policy.upper())
    options.deterministic = config.deterministic
    return dataset.with_options(options).prefetch(config.prefetch_batches)


def distributed(data, batches, strategy, config, steps, forever=False):
    """The pipeline as the strategy's `fit` wants it.

    Each replica gets global_batch_size / replicas rows of every step.
    """
    num_replicas = strategy.num_replicas_in_sync
    if config.input == "tfrecord" and not forever:
        return from_tfrecords(data, batches, strategy, config, steps)
    if config.auto_shard == "data":
        # Distributed: every worker makes the whole global batch and TensorFlow drops the shares of the others from it:
        # simple, and reading is done num_workers times.
        return with_options(elements(data, batches, num_replicas, steps, None, forever), config, "data")
    return per_replica(strategy, config, lambda mine: elements(data, batches, num_replicas, steps, mine, forever))


def per_replica(strategy, config, share_of):
    """The pipeline as the strategy's `fit` wants it. `share_of(n)` is the dataset of replica n."""

    def of_worker(context):
        # Distributed: called once on each worker, which then reads the shares of its own replicas only.
        number = strategy.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * number
        shares = [share_of(replica) for replica in range(first, first + number)]
        if number == 1:
            return with_options(shares[0], config, "off")
        # One pipeline feeds all devices of the worker: each of them takes the next element in turn.
        choice = tf.data.Dataset.range(number).repeat()
        return with_options(tf.data.Dataset.choose_from_datasets(shares, choice), config, "off")

    # Distributed: calls the function on every worker, and sends nobody's rows to another.
    return strategy.distribute_datasets_from_function(of_worker)


def write_tfrecords(data, folder, num_files):
    """Writes the rows as TFRecord files, row r into file r modulo num_files: whole or not at all.

    Elements: see `parse`.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number in range(num_files):
        with tf.io.TFRecordWriter(str(partial / f"{number:05d}-of-{num_files:05d}.tfrecord")) as file:
            for row in range(number, len(data), num_files):
                numbers = {"label": int(data.labels[row]), "row": row}
                feature = {k: tf.train.Feature(int64_list=tf.train.Int64List(value=[v])) for k, v in numbers.items()}
                pixels = tf.train.BytesList(value=[np.ascontiguousarray(data.images[row]).tobytes()])
                feature["image"] = tf.train.Feature(bytes_list=pixels)
                file.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def from_tfrecords(data, batches, strategy, config, steps):
    """The same elements as `elements`, read from the TFRecord files; the order is that of a shuffle for each epoch."""
    paths = sorted(str(path) for path in (Path(config.output_dir) / "tfrecords").glob("*.tfrecord"))
    num_rows, batch_size, shape = len(data), batches.global_batch_size, data.images.shape[1:]

    def parse(text):
        kinds = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("label", "row")}
        element = tf.io.parse_single_example(text, kinds | {"image": tf.io.FixedLenFeature([], tf.string)})
        pixels = tf.reshape(tf.io.decode_raw(element["image"], tf.uint8), shape)
        return element | {"image": tf.cast(pixels, tf.float32) / data.max_value}

    nothing = {"image": tf.zeros(shape), "label": tf.constant(0, tf.int64), "row": tf.constant(-1, tf.int64)}
    filling = tf.data.Dataset.from_tensors(nothing).repeat()

    def pipeline(num_parts, mine):
        rows_per_step = batch_size // num_parts

        def one_epoch(epoch):
            files = tf.data.Dataset.from_tensor_slices(paths)
            if config.auto_shard == "file":
                # Distributed: whole files to each replica: it opens no others. Row r is in file r modulo num_files, so
                # that all replicas have as many rows, give or take one.
                files = files.shard(num_parts, mine)
            rows = files.interleave(tf.data.TFRecordDataset, cycle_length=len(paths))
            if config.auto_shard == "own":
                # Distributed: every replica reads all files and keeps each num_replicas-th row of them.
                rows = rows.shard(num_parts, mine)
            rows = rows.map(parse).shuffle(num_rows, seed=config.seed * 1000 + epoch, reshuffle_each_iteration=False)
            # Filled up, so that every replica has the same number of equal batches in every epoch.
            return rows.concatenate(filling).take(batches.steps_per_epoch * rows_per_step).batch(rows_per_step, True)

        def place(number, element):
            epoch, step = number // batches.steps_per_epoch, number % batches.steps_per_epoch
            weight = 1 / tf.minimum(tf.constant(batch_size, tf.int64), num_rows - step * batch_size)
            weights = tf.where(element["row"] >= 0, tf.cast(weight, tf.float32), 0.0)
            return element | {
                "weight": weights,
                "epoch": tf.fill([rows_per_step], epoch),
                "step": tf.fill([rows_per_step], step),
            }

        epochs = [
            one_epoch(e)
            for e in range(steps.start // batches.steps_per_epoch, -(-steps.stop // batches.steps_per_epoch))
        ]
        all_epochs = (
            functools.reduce(tf.data.Dataset.concatenate, epochs) if epochs else filling.batch(rows_per_step, True)
        )
        return all_epochs.skip(steps.start % batches.steps_per_epoch).enumerate(steps.start).map(place)

    if config.auto_shard == "data":
        return with_options(pipeline(1, 0), config, "data")
    # Distributed: each worker makes the pipelines of its own files, or rows.
    return per_replica(strategy, config, lambda mine: pipeline(strategy.num_replicas_in_sync, mine))
