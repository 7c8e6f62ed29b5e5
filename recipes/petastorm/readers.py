"""Rows of a Parquet store, shard by shard, through one of four readers behind one interface: chunks of columns.

A shard is every `num_shards`-th row group, whatever the number of workers: each worker reads the shards whose number
modulo the number of workers is its rank. So the batches, and with them the result, do not depend on how many workers
there are.
"""

import functools
import json
import operator
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from petastorm import TransformSpec, make_batch_reader, make_reader
from petastorm.predicates import in_lambda
from petastorm.workers_pool.dummy_pool import DummyPool
from pyarrow import types
from pyarrow.fs import LocalFileSystem

# Petastorm 0.13 still uses the part of pyarrow that pyarrow 14 calls old.
warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
# The processes of a pool are new Pythons. One that does not find the functions it is to call says nothing, and the
# reader waits for ever.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(
    os.pathsep
)
COLUMN_READERS = ("batch", "arrow", "converter")  # read whole columns, and decode nothing


def chunks_of(store, config, manifest, shard, num_shards, epoch, limit=None):
    """Yields {column: array (n, ...)} of one shard in one epoch; row groups in an order fixed by seed and epoch.

    `limit`: only rows with a smaller id.
    """
    names, seed = columns_of(manifest), config.seed * 1000 + epoch
    if config.reader == "arrow":
        yield from arrow_chunks(store, names, shard, num_shards, seed, limit)
        return
    common = reader_settings(config, names, shard, num_shards, seed, limit)
    if config.reader in COLUMN_READERS:
        with whole(make_batch_reader(addresses_of(store), **common)) as reader:
            for chunk in reader:
                yield {name: getattr(chunk, name) for name in names}
        return
    with whole(make_reader(address_of(store), transform_spec=row_transform(manifest), **common)) as reader:
        rows = []
        for row in reader:
            rows.append(row)
            if len(rows) == config.rows_per_chunk:
                yield stack(rows, names)
                rows = []
        if rows:
            yield stack(rows, names)


def whole(reader):
    """The reader, kept from ending too early.

    Petastorm 0.13.1 ends when all row groups that were handed out have come back and, asked next, all have been handed
    out. The last ones may be handed out between the two questions: a reader then loses them, now and then, without a
    word. The second question is made to count only when its answer was the same the time before. The pool without
    threads or processes does not need it.
    """
    pool = reader._workers_pool
    if not isinstance(pool, DummyPool):
        pool._ventilator = AskedTwice(pool._ventilator)
    return reader


class AskedTwice:
    """A ventilator (what hands out row groups) that says it has completed only when it had the last time."""

    def __init__(self, ventilator):
        self._ventilator, self._before = ventilator, False

    def completed(self):
        before, self._before = self._before, self._ventilator.completed()
        return before and self._before

    def __getattr__(self, name):
        return getattr(self._ventilator, name)


def leave(preempted=None):
    """Ends a process that has read, at once; with the status of `preempted`, if it left before its work was done.

    Petastorm opens files as Python objects, and pyarrow's threads need Python's lock to let go of the last ones. If the
    interpreter ends while one of them waits for it, the process is aborted ("terminate called without an active
    exception"): rare, after all work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(preempted.code if preempted else 0)


def reader_settings(config, names, shard, num_shards, seed, limit=None):
    """What Petastorm's two readers are told alike."""
    common = {
        "schema_fields": names,
        "num_epochs": 1,
        # `seed` alone orders a shard's row groups; `shuffle_row_groups` would shuffle them again, by the clock when
        # the seed is 0.
        "seed": seed,
        "shuffle_row_groups": False,
        # Distributed: this shard's row groups only; no other process reads them.
        "cur_shard": shard,
        "shard_count": num_shards,
        "reader_pool_type": config.pool,
        "workers_count": config.num_loader_workers,
        "results_queue_size": config.prefetch_chunks,
        "predicate": None if limit is None else in_lambda(["id"], functools.partial(operator.gt, limit)),
    }
    if config.cache == "local-disk":
        folder = Path(config.output_dir) / "scratch/cache" / str(shard)
        common |= {
            "cache_type": "local-disk",
            "cache_location": str(folder),
            "cache_size_limit": config.cache_mb << 20,
            "cache_row_size_estimate": 100,
        }
    return common


def check_row_groups(config, rank=0, world_size=1):
    """Raises SystemExit when a store does not fit.

    It checks the store's files, row groups, columns and rows, and looks for values that no network can take.
    """
    # Distributed: each rank looks at the values of its own share of the row groups; together they see all of them
    # before training.
    manifest = json.loads((Path(config.data_dir) / "manifest.json").read_text())
    for part in ("train", "test"):
        store, number, num_rows = f"{config.data_dir}/{part}", 0, 0
        files = files_of(store, manifest)
        if config.reader == "row" and not Path(store, "_common_metadata").exists():
            raise SystemExit(
                f"{store} was not written by Petastorm: recipe.reader=row cannot read it; say batch or arrow"
            )
        for path in files:
            file = pq.ParquetFile(path)
            check_columns(file.schema_arrow, manifest, path)
            num_rows += file.metadata.num_rows
            for group in range(file.metadata.num_row_groups):
                if number % world_size == rank:  # Distributed: each rank checks its share of the row groups.
                    check_values(file.read_row_group(group, columns=columns_of(manifest)), path)
                number += 1
        if number < config.num_shards:
            raise SystemExit(
                f"{store} has {number} row groups, too few for num_shards={config.num_shards}: ask for fewer, "
                "or write smaller row groups (data.parameters.rows_per_group)"
            )
        if num_rows != manifest["rows"][part]:
            raise SystemExit(f"{store} has {num_rows:,} rows, but its manifest says {manifest['rows'][part]:,}")


def files_of(store, manifest):
    """The Parquet files of a store, sorted.

    Raises SystemExit where there are others than the manifest names, or folders.
    """
    entries = [path for path in sorted(Path(store).iterdir()) if not path.name.startswith(("_", "."))]
    if folders := [path.name for path in entries if path.is_dir()]:
        raise SystemExit(
            f"{store} holds folders ({', '.join(folders[:3])}): partitioned stores are not read. Write it anew "
            "as one folder of files, the partition's value as a column"
        )
    files = parquet_files(store)
    part = Path(store).name
    listed = {name for name in manifest.get("files", {}) if name.startswith(f"{part}/") and name.endswith(".parquet")}
    found = {f"{part}/{path.name}" for path in files}
    if listed and listed != found:
        raise SystemExit(
            f"{store} has other files than its manifest: missing {sorted(listed - found)[:5]}, too many "
            f"{sorted(found - listed)[:5]}"
        )
    return files


def check_columns(schema, manifest, path):
    """Raises SystemExit unless the file has the columns, once each, as numbers (of the digits: as they are encoded)."""
    for name in columns_of(manifest):
        if schema.names.count(name) != 1:
            there = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise SystemExit(f"{path}: expected one column {name!r}; there are: {there}")
        kind = schema.field(name).type
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        if manifest["task"] != "digits" and not number:
            raise SystemExit(
                f"{path}: column {name!r} is {kind}, expected a number; write it anew as one, or leave it out"
            )


def check_values(table, path):
    """Raises SystemExit, with the column, where a value is null, not a number or infinite."""
    for name in table.column_names:
        column = table[name]
        if number := column.null_count:
            what = "null"
        elif types.is_floating(column.type) and (number := table.num_rows - pc.sum(pc.is_finite(column)).as_py()):
            what = "not a finite number"
        else:
            continue
        raise SystemExit(
            f"{path}: column {name!r} has {number} values that are {what}; nothing was trained. "
            "Fill them, or drop those rows, and write the store anew"
        )


def addresses_of(store):
    """The addresses of a store's Parquet files.

    Given the folder, Petastorm would take every other file in it for Parquet too.
    """
    return [address_of(path) for path in parquet_files(store)]


def parquet_files(store):
    return [path for path in sorted(Path(store).glob("*.parquet")) if not path.name.startswith(("_", "."))]


def address_of(folder):
    """The folder as Petastorm takes it: it decodes nothing, so blanks and umlauts stand there as they are."""
    path = str(Path(folder).absolute())
    if bad := set(path) & set("#?"):
        raise SystemExit(f"{path}: Petastorm's addresses end at {min(bad)!r}; set cache_dir=... to a folder without it")
    return f"file://{path}"


def arrow_chunks(store, names, shard, num_shards, seed, limit):
    """The modern way: pyarrow's datasets instead of Petastorm. Same shards, same order of row groups."""
    files = [str(path) for path in parquet_files(store)]
    # Distributed: a fragment is one row group; each process takes its own, by number.
    dataset = pyarrow.dataset.dataset(files, format="parquet", filesystem=LocalFileSystem())
    fragments = [group for file in dataset.get_fragments() for group in file.split_by_row_group()]
    order = list(range(len(fragments)))
    random.Random(seed).shuffle(order)  # of all of them, as Petastorm does
    order = [number for number in order if number % num_shards == shard]
    wanted = None if limit is None else pyarrow.dataset.field("id") < limit
    for number in order:
        table = fragments[number].to_table(columns=names, filter=wanted)
        if table.num_rows:
            yield {name: table[name].to_numpy() for name in names}


def columns_of(manifest):
    return (
        ["id", "label", "image"] if manifest["task"] == "digits" else ["id", label_of(manifest), *manifest["features"]]
    )


def label_of(manifest):
    """The column that is learnt: 0 or 1 in each row."""
    return manifest.get("label", "late")


def row_transform(manifest):
    """What Petastorm's own workers do with a row before they hand it on: of the digits they leave the picture out."""
    return TransformSpec(without_picture, removed_fields=["picture"]) if manifest["task"] == "digits" else None


def without_picture(row):
    return {name: value for name, value in row.items() if name != "picture"}


def stack(rows, names):
    return {name: np.stack([getattr(row, name) for row in rows]) for name in names}


def batches_of(chunks, batch_size, pool_rows, random):
    """Cuts chunks into shuffled batches; the last one may be smaller.

    A pool of `pool_rows` rows is filled, shuffled and emptied: rows of neighbouring row groups are mixed, as far as the
    pool reaches. The same rows in the same order give the same batches, however they were cut into chunks.
    """
    waiting, count = [], 0
    for chunk in chunks:
        size = len(chunk["id"])
        while size:
            taken = min(size, pool_rows - count)
            waiting.append({name: values[:taken] for name, values in chunk.items()})
            chunk = {name: values[taken:] for name, values in chunk.items()}
            size, count = size - taken, count + taken
            if count == pool_rows:
                yield from cut(join(waiting), batch_size, random)
                waiting, count = [], 0
    if waiting:
        yield from cut(join(waiting), batch_size, random)


def join(chunks):
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def cut(pool, batch_size, random):
    order = random.permutation(len(pool["id"]))
    for start in range(0, len(order), batch_size):
        yield {name: values[order[start : start + batch_size]] for name, values in pool.items()}
