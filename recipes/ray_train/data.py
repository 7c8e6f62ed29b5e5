"""From the dataset folder to Ray Data: Parquet files, shard by shard.

Tasks read and prepare them while the workers train.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from storage import copy_to, for_arrow, is_address, open_folder, shared_dir


def read_manifest(config):
    """The dataset's manifest; SystemExit when it cannot be read."""
    try:
        return json.loads((Path(config.data_dir) / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"data_dir={config.data_dir} cannot be read: {error}; delete that folder to have it built again"
        ) from None


def num_rows_of(config, manifest, split):
    rows = manifest["rows"][split]
    return min(rows, config.max_rows or rows) if split == "train" else rows


def write_shards(config, manifest):
    """Writes <split>-<shard>/ with every num_shards-th row into a folder in <output_dir>, unless it is there.

    Columns id, label, image. Returns the folder, or its address where the checkpoints are in an object store.

    Raises SystemExit when there are fewer rows than shards.
    """
    num_rows = num_rows_of(config, manifest, "train")
    if num_rows < config.num_shards:
        raise SystemExit(
            f"{num_rows} rows to train on for num_shards={config.num_shards}: ask for fewer shards, or more rows"
        )
    name = f"parquet-{Path(config.data_dir).name}-{num_rows}-{config.num_shards}-{config.rows_per_file}"
    folder = Path(config.output_dir) / name
    shared = shared_dir(config.output_dir, config.checkpoint_dir)
    if folder.exists():
        return f"{shared}/{name}"
    partial = folder.with_suffix(".partial")
    for split in ("train", "test"):
        images = np.load(Path(config.data_dir) / f"{split}_images.npy", mmap_mode="r")
        labels = np.load(Path(config.data_dir) / f"{split}_labels.npy", mmap_mode="r")
        for shard in range(config.num_shards):
            ids = np.arange(shard, num_rows_of(config, manifest, split), config.num_shards)
            target = partial / f"{split}-{shard}"
            target.mkdir(parents=True, exist_ok=True)
            for number, part in enumerate(np.split(ids, range(config.rows_per_file, len(ids), config.rows_per_file))):
                columns = {
                    "id": part,
                    "label": labels[part],
                    "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images[part]),
                }
                pq.write_table(pa.table(columns), target / f"part-{number:05d}.parquet")
    if is_address(shared):
        copy_to(partial, f"{shared}/{name}")  # Distributed: workers on other machines read them from there.
    partial.rename(folder)
    return f"{shared}/{name}"


def remove_shards(config, folder):
    """Removes what `write_shards` has written, here and in the object store."""
    shutil.rmtree(Path(config.output_dir) / Path(folder).name)
    if is_address(folder):
        there = open_folder(folder)
        there.remove(there.files())


def datasets_of(config, manifest, folder):
    """{"train-0": Dataset, ..., "test-0": ...}: lazy, until somebody iterates.

    Or, with keep_prepared, ready in the object store.
    """
    context = ray.data.DataContext.get_current()
    # Distributed: tasks end in any order; their blocks are handed on in the order of the files all the same, so that a
    # run can be repeated.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Ray 2.60's new way to read Parquet takes 2.3 seconds for a file of 700 rows, the old one 0.1 (both measured here).
    context.use_datasource_v2 = False
    max_value = manifest["schema"]["images"]["max_value"]
    found = {}
    for split in ("train", "test"):
        for shard in range(config.num_shards):
            path, system = for_arrow(f"{folder}/{split}-{shard}")
            # A folder such as lr=0.1 on the way there is no column of the data.
            dataset = ray.data.read_parquet(path, filesystem=system, partitioning=None)
            # Distributed: runs in tasks of its own, wherever the cluster has CPUs, a few blocks ahead of the training.
            dataset = dataset.map_batches(prepare, fn_kwargs={"max_value": max_value})
            # Distributed: blocks in the object store can be read by any worker of the node without a copy.
            found[f"{split}-{shard}"] = dataset.materialize() if config.keep_prepared else dataset
    return found


def prepare(batch, max_value):
    """Images uint8 (n, height, width, channels) to float32 in [0, 1]."""
    return {**batch, "image": batch["image"].astype(np.float32) / np.float32(max_value)}
