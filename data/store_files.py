"""A Parquet store of your own, for the petastorm recipe: a label of two values and number columns, by name.

Reads a file or a folder of Parquet files; folders named `month=1` give a column. Rows with values that no network can take (null, not a
number, infinite) end the build with the column and their number, or are left out and counted (`nulls: drop`). Writes two stores, `train`
and `test`: `id` int64 (0, 1, ... in the order of the files), the label and the features float32. Licence: the user's own.
"""

from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _common import DatasetError, every_file, printable, run_builder
from pyarrow import types

KINDS = {".parquet", ".parq", ".pq"}
ROWS_AT_ONCE = 65_536


def build(folder, path, label, features=None, nulls="error", test_fraction=0.2, rows_per_group=20_000, seed=0):
    if not path or not label:
        raise DatasetError(
            "which store, and which column is learnt? Say data.path=/my/store data.label=clicked (0 or 1 in each row)"
        )
    if nulls not in ("error", "drop"):
        raise DatasetError(f"nulls={nulls}: expected error or drop")
    if not 0 < test_fraction < 1:
        raise DatasetError(f"test_fraction={test_fraction}: expected a number between 0 and 1")
    files, left_out = found_files(path)
    features = check_columns(files, label, [features] if isinstance(features, str) else features)
    count, dropped = sum(pq.read_metadata(file).num_rows for file, _ in files), 0
    chance = np.random.default_rng(seed)
    parts = {
        part: Part(folder / part, label, features, min(rows_per_group, count // 14 + 1)) for part in ("train", "test")
    }
    for file, constants in files:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
            values = {name: numbers_of(batch, name, constants, file) for name in (label, *features)}
            good = np.logical_and.reduce([np.isfinite(column) for column in values.values()])
            if nulls == "error" and not good.all():
                name = next(name for name, column in values.items() if not np.isfinite(column).all())
                raise DatasetError(
                    f"{file}: column {name!r} has {np.sum(~np.isfinite(values[name]))} values that are null, not a number or infinite; "
                    "fill them, or say data.nulls=drop to leave such rows out"
                )
            if strange := set(values[label][good]) - {0.0, 1.0}:
                raise DatasetError(
                    f"{file}: label {label!r} has the value {min(strange):g}; expected 0 or 1 in each row"
                )
            dropped += int(np.sum(~good))
            to_test = chance.random(len(good)) < test_fraction
            for part, mine in (("train", good & ~to_test), ("test", good & to_test)):
                parts[part].add({name: column[mine] for name, column in values.items()})
    for name, part in parts.items():
        part.close()
        if part.num_rows and part.num_ones in (0, part.num_rows):
            raise DatasetError(
                f"label {label!r} is {int(bool(part.num_ones))} in all {part.num_rows} rows of the {name} part: nothing can be learnt"
            )
    return {
        "name": "store_files",
        "version": "1",
        "source": f"{len(files)} Parquet files of the user",
        "licence": "the user's own",
        "rows": {name: part.num_rows for name, part in parts.items()},
        "account": {"read": count, "good": count - dropped, "quarantined": dropped},
        "task": "flights",  # the recipe's kind of task: one label of two values, number columns
        "label": label,
        "features": features,
        "mean": parts["train"].mean.tolist(),
        "std": np.sqrt(parts["train"].squares / max(parts["train"].num_rows - 1, 1)).tolist(),
        "schema": {"id": "int64", **dict.fromkeys([label, *features], "float32")},
        "left_out": left_out,
    }


def found_files(path):
    """([(file, {column: value} of its folders' names)], [{file, reason}] of those that are not read)."""
    root = Path(path).expanduser().absolute()
    if root.is_file():
        return [(root, {})], []
    if not root.is_dir():
        raise DatasetError(f"path={path}: there is no such file or folder")
    files, left_out = [], []
    for file, problem in every_file(root):
        inside = file.relative_to(root).parts
        if any(name.startswith(("_", ".")) for name in inside):
            problem = "hidden, or a writer's own"
        elif not problem and file.suffix.lower() not in KINDS:
            problem = f"its ending is none of {', '.join(sorted(KINDS))}"
        elif not problem and not file.stat().st_size:
            problem = "empty"
        if problem:
            left_out.append({"file": printable(file), "reason": problem})
        else:
            named = (name.partition("=") for name in inside[:-1] if "=" in name)
            files.append((file, {name: unquote(value) for name, _, value in named}))
    if not files:
        raise DatasetError(f"path={path}: there are no Parquet files ({', '.join(sorted(KINDS))})")
    return files, left_out


def check_columns(files, label, features):
    """The features: those that are named, else all number columns but the label and `id`. Raises DatasetError."""
    kinds = {}
    for file, constants in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(f"{file} cannot be read: {error}") from None
        kinds[file] = {field.name: field.type for field in schema} | dict.fromkeys(constants, pa.float64())
        if twice := [a for a, b in pairwise(sorted(schema.names)) if a == b]:
            raise DatasetError(f"{file} has two columns named {twice[0]!r}")
        if both := sorted(set(schema.names) & constants.keys()):
            raise DatasetError(
                f"{file} has a column {both[0]!r}, and so has the name of its folder: leave one of them out"
            )
    first = next(iter(kinds))
    features = features or [
        name for name, kind in kinds[first].items() if is_number(kind) and name not in (label, "id")
    ]
    if label in features or len(set(features)) < len(features) or "id" in features:
        raise DatasetError(
            f"data.features={features}: expected each column once, without the label {label!r} and `id`, which numbers the rows"
        )
    if not features:
        raise DatasetError(f"{first} has no number column beside the label {label!r}")
    for file, there in kinds.items():
        for name in (label, *features):
            listed = ", ".join(f"{column} ({kind})" for column, kind in there.items())
            if name not in there:
                raise DatasetError(
                    f"{file} has no column {name!r}; there are: {listed}. data.label and data.features name them"
                )
            if not is_number(there[name]):
                raise DatasetError(
                    f"{file}: column {name!r} is {there[name]}, expected a number; there are: {listed}. data.features=[...] chooses"
                )
    return list(features)


def is_number(kind):
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def numbers_of(batch, name, constants, file):
    """A column as float64 (n,); nan where it is null."""
    if name in constants:
        try:
            return np.full(batch.num_rows, float(constants[name]))
        except ValueError:
            raise DatasetError(
                f"{file}: the name of its folder says {name}={constants[name]}, expected a number; data.features=[...] chooses columns"
            ) from None
    column = batch.column(batch.schema.get_field_index(name))
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


class Part:
    """One of the two stores, written group by group; knows the mean and the squared distances of its features as well."""

    def __init__(self, folder, label, features, rows_per_group):
        folder.mkdir()
        self.folder, self.label, self.features, self.rows_per_group = folder, label, features, rows_per_group
        self.waiting, self.num_rows, self.num_groups, self.num_ones = [], 0, 0, 0
        self.mean, self.squares = np.zeros(len(features)), np.zeros(len(features))

    def add(self, columns):
        new, rows = len(columns[self.label]), np.stack([columns[name] for name in self.features], axis=1)
        if not new:
            return
        # Chan, Golub and LeVeque 1979: mean and squares of two groups together.
        mean, total = rows.mean(axis=0), self.num_rows + new
        self.squares += ((rows - mean) ** 2).sum(axis=0) + (mean - self.mean) ** 2 * self.num_rows * new / total
        self.mean += (mean - self.mean) * new / total
        self.num_ones += int(columns[self.label].sum())
        ids = pa.array(np.arange(self.num_rows, total))
        floats = {name: pa.array(columns[name].astype(np.float32)) for name in (self.label, *self.features)}
        self.waiting.append(pa.table({"id": ids, **floats}))
        self.num_rows = total
        while sum(table.num_rows for table in self.waiting) >= self.rows_per_group:
            table = pa.concat_tables(self.waiting)
            self.write(table.slice(0, self.rows_per_group))
            self.waiting = [table.slice(self.rows_per_group)]

    def write(self, table):
        pq.write_table(table, self.folder / f"part-{self.num_groups:05d}.parquet")
        self.num_groups += 1

    def close(self):
        if self.waiting and (table := pa.concat_tables(self.waiting)).num_rows:
            self.write(table)


if __name__ == "__main__":
    run_builder(build)
