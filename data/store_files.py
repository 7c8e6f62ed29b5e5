"""A Parquet store of your own, for the petastorm recipe: a label of two values and number columns, by name.

Reads a file or a folder of Parquet files; folders named `month=1` give a column. Rows with values that no network can
take (null, not a number, infinite) end the build with the column and their number, or are left out and counted
(`nulls: drop`). Writes two stores, `train` and `test`: `id` int64 (0, 1, ... in the order of the files), the label
and the features float32. Licence: the user's own.
"""

import keyword
import re
from collections import Counter
from glob import has_magic
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _common import DatasetError, every_file, pointer_of, printable, refuse_tables, run_builder, same_bytes, same_file
from pyarrow import types

KINDS = {".parquet", ".parq", ".pq"}
PACKED = {".zip", ".xz", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".zst", ".lz4"}
TABLES_OF_OTHERS = {
    ".csv",
    ".tsv",
    ".feather",
    ".arrow",
    ".orc",
    ".avro",
    ".json",
    ".jsonl",
    ".xlsx",
    ".xls",
    ".db",
    ".sqlite",
}
ROWS_AT_ONCE = 65_536
ALIKE_ROWS = 20  # files with as many rows, all the same, are copies


def build(folder, path, label, features=None, nulls="error", test_fraction=0.2, rows_per_group=20_000, seed=0):
    if not path or label in (None, ""):
        raise DatasetError(
            "which store, and which column is learnt? Say data.path=/my/store data.label=clicked (0 or 1 in each row)"
        )
    if nulls not in ("error", "drop"):
        raise DatasetError(f"data.nulls={nulls}: expected error or drop")
    if not 0 < test_fraction < 1:
        raise DatasetError(f"data.test_fraction={test_fraction}: expected a number between 0 and 1")
    if rows_per_group < 1:
        raise DatasetError(f"data.parameters.rows_per_group={rows_per_group}: expected a whole number of at least 1")
    files, left_out = found_files(path)
    files, without_rows = with_rows(files)
    left_out += without_rows
    label, features = str(label), [str(name) for name in ([features] if isinstance(features, str) else features or [])]
    features, others = check_columns(files, label, features)
    files = [(file, constants) for file, constants, _ in files]
    for name, why in others.items():
        print(f"not a feature: {name}: {why}", flush=True)
    count, dropped = sum(pq.read_metadata(file).num_rows for file, _ in files), 0
    parts = {}
    for part, share in (("train", 1 - test_fraction), ("test", test_fraction)):
        # Small stores get seven row groups, so that workers have something to share.
        parts[part] = Part(folder / part, label, features, min(rows_per_group, int(count * share) // 7 + 1))
    # A stream of its own: rows that somebody drew by default_rng(0) would fall into a part by their very label.
    chance, seen, lacking = np.random.default_rng([seed, 0x570E]), {}, Counter()
    for file, values in batches_of(files, (label, *features), label):
        number, total = seen.get(file, (0, 0))
        seen[file] = number + len(values[label]), (total + sum_of(values)) % 2**64
        good = np.logical_and.reduce([np.isfinite(column) for column in values.values()])
        if nulls == "error" and not good.all():
            name = next(name for name, column in values.items() if not np.isfinite(column).all())
            raise DatasetError(
                f"{file}: column {name!r} has {np.sum(~np.isfinite(values[name]))} values that are null, not a number "
                "or infinite (as float32); fill them, or say data.nulls=drop to leave such rows out"
            )
        if strange := set(values[label][good].tolist()) - {0.0, 1.0}:
            raise DatasetError(f"{file}: label {label!r} has the value {min(strange)!r}; expected 0 or 1 in each row")
        dropped += int(np.sum(~good))
        lacking.update({name: int(np.sum(~np.isfinite(column))) for name, column in values.items()})
        to_test = chance.random(len(good)) < test_fraction
        for part, mine in (("train", good & ~to_test), ("test", good & to_test)):
            parts[part].add({name: column[mine] for name, column in values.items()})
    if dropped == count:
        name, number = lacking.most_common(1)[0]
        raise DatasetError(
            f"no row is left by data.nulls=drop: column {name!r} has no number in {number} of {count} rows; leave it "
            "out: data.features=[...] chooses"
        )
    for name, part in parts.items():
        part.close()
        if part.num_rows and part.num_ones in (0, part.num_rows):
            raise DatasetError(
                f"label {label!r} is {int(bool(part.num_ones))} in all {part.num_rows} rows of the {name} part: "
                "nothing can be learnt"
            )
    notes = same_rows(seen) + called_parts(file for file, _ in files)
    for note in notes:
        print(note, flush=True)
    std = np.sqrt(parts["train"].squares / max(parts["train"].num_rows - 1, 1))
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
        "notes": [f"not a feature: {name}: {why}" for name, why in others.items()] + notes,
        "mean": parts["train"].mean.tolist(),
        "std": np.where(std > 0, std, 1.0).tolist(),  # a constant column says nothing, and does no harm
        "schema": {"id": "int64", **dict.fromkeys([label, *features], "float32")},
        "left_out": left_out,
    }


def sum_of(values):
    """The sum of a number for each row, which says what all columns have there: the same in any order of the rows."""
    mixed = np.zeros(len(next(iter(values.values()))), np.uint64)
    for column in values.values():
        mixed = (mixed ^ column.view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return int(mixed.sum())


def same_rows(seen):
    """Notes on files that hold the same rows as another one, in another order or written otherwise. Of few rows that
    says nothing.

    `seen`: {file: (number of rows, their `sum_of`)}.
    """
    first = {}
    return [
        f"{printable(file)} holds the same rows as {printable(first[facts])}: they are counted twice, unless you leave "
        "one of the two out of data.path"
        for file, facts in seen.items()
        if first.setdefault(facts, file) != file and facts[0] >= ALIKE_ROWS
    ]


def called_parts(files):
    """A note where files or folders are called train and test (or val): they are not the parts here; or none."""
    words = {word for file in files for word in re.split(r"[^a-z]+", "/".join(file.parts[-2:]).lower())}
    if "train" not in words or not words & {"test", "val", "valid", "validation"}:
        return []
    return [
        "files or folders are called train and test (or val): their rows are mixed, and others are drawn to test on "
        "(data.test_fraction)"
    ]


def batches_of(files, names, label):
    """Yields (file, {column: float32 (n,)}), nan where there is no value. Raises DatasetError for a file that cannot be
    read, and for other labels."""
    for file, constants in files:
        try:
            stored = [name for name in names if name not in constants]
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=stored):
                yield file, {name: numbers_of(batch, name, constants, file, label) for name in names}
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{file} cannot be read: {error}") from None


def found_files(path):
    """([(file, {column: value} of its folders' names)], [{file, reason}] of those that are not read)."""
    root = Path(path).expanduser().absolute()
    if not root.is_dir() and not root.is_file():
        what = " (a pattern is not taken: name the folder)" if has_magic(str(root)) else ""
        raise DatasetError(f"path={path}: there is no such file or folder{what}")
    refuse_tables(root)
    if root.is_file():
        return [(root, {})], []
    files, left_out, seen = [], [], {}
    for file, problem in every_file(root):
        inside = file.relative_to(root).parts
        if any(name.startswith(("_", ".")) for name in inside):
            problem = "hidden, or a writer's own"
        elif not problem and file.suffix.lower() not in KINDS:
            problem = f"its ending is none of {', '.join(sorted(KINDS))}" + hint_for(file)
        elif not problem and not file.stat().st_size:
            problem = "empty"
        elif not problem and (first := seen.setdefault(same_file(file), file)) != file:
            problem = f"the same file as {printable(first)}"
        if problem:
            left_out.append({"file": printable(file), "reason": problem})
        else:
            files.append((file, folder_columns(file, inside[:-1])))
    by_columns = {}
    for file, constants in files:  # a folder month=2 makes other rows of the same bytes
        by_columns.setdefault(tuple(sorted(constants.items())), []).append(file)
    copies = {file: first for alike in by_columns.values() for file, first in same_bytes(alike).items()}
    files = [one for one in files if one[0] not in copies]
    left_out += [
        {"file": printable(file), "reason": f"the same content as {printable(copies[file])}"} for file in sorted(copies)
    ]
    if not files:
        listed = "".join(f"\n  {one['file']}: {one['reason']}" for one in left_out[:5])
        more = f"\n  and {len(left_out) - 5} more" if left_out[5:] else ""
        raise DatasetError(
            f"path={path}: there are no Parquet files ({', '.join(sorted(KINDS))}). "
            f"Left out: {listed or 'nothing'}{more}"
        )
    return files, left_out


def folder_columns(file, folders):
    """{name: text} of the folders named name=text. Raises DatasetError where two of them say different things."""
    found = {}
    for name, _, value in (folder.partition("=") for folder in folders if "=" in folder):
        if found.setdefault(name, unquote(value)) != unquote(value):
            raise DatasetError(
                f"{printable(file)} lies in two folders that differ: {name}={found[name]} and {name}={unquote(value)}"
            )
    return found


def with_rows(files):
    """(those with rows, [{file, reason}] of the others, whose columns mean nothing). Raises DatasetError for a file
    that cannot be read."""
    kept, left_out = [], []
    for file, constants in files:
        try:
            schema, rows = pq.read_schema(file), pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            if pointer := pointer_of(file):
                raise DatasetError(f"{file} cannot be read: {pointer}") from None
            if file.suffix.lower() not in KINDS and (hint := hint_for(file)):
                raise DatasetError(f"{file} cannot be read: it is no Parquet file{hint}") from None
            raise DatasetError(
                f"{file} cannot be read: {str(error).rstrip('.')}. Damaged, or with types that pyarrow "
                f"{pa.__version__} does not know: then write it anew with plain ones (float32, int64, string)"
            ) from None
        if rows:
            kept.append((file, constants, schema))
        else:
            left_out.append({"file": printable(file), "reason": "it has no rows"})
    if not kept:
        raise DatasetError(f"the {len(files)} Parquet files have no rows")
    return kept, left_out


def hint_for(file):
    """What to do with a file of another ending, where one can tell; or ""."""
    try:
        with open(file, "rb") as content:
            begin = content.read(4)
    except OSError:
        return ""
    if begin == b"PAR1":
        return ", but it is Parquet: rename it, or name it in data.path"
    if file.suffix.lower() in PACKED:
        return ": unpack it"
    return ": convert it to Parquet" if file.suffix.lower() in TABLES_OF_OTHERS else ""


def check_columns(files, label, features):
    """(features: those that are named, else all number columns but the label and `id`; {other column: why it is none}).

    Raises DatasetError where one of them cannot be taken.
    """
    kinds = {}
    for file, constants, schema in files:
        folders = {
            name: pa.float64() if number_in(text) is not None else pa.string() for name, text in constants.items()
        }
        kinds[file] = {field.name: field.type for field in schema} | folders
        if twice := [a for a, b in pairwise(sorted(schema.names)) if a == b]:
            raise DatasetError(f"{file} has two columns named {twice[0]!r}")
        if both := sorted(set(schema.names) & constants.keys()):
            raise DatasetError(
                f"{file} has a column {both[0]!r}, and so has the name of its folder: leave one of them out"
            )
    first = next(iter(kinds))
    others = {}
    if not features:
        columns = dict.fromkeys(name for there in kinds.values() for name in there if name != label)
        others = {name: why for name in columns if (why := why_no_feature(name, kinds))}
        features = [name for name in columns if name not in others]
    if label in features or label == "id" or "id" in features or len(set(features)) < len(features):
        raise DatasetError(
            f"data.label={label} data.features={features}: expected each column once, and not `id`, which numbers the "
            "rows here"
        )
    if not features:
        listed = "".join(f"\n  {name}: {why}" for name, why in others.items())
        raise DatasetError(f"{first} has no number column beside the label {label!r}{listed}")
    for file, there in kinds.items():
        listed = ", ".join(f"{column} ({kind})" for column, kind in there.items())
        for name in (label, *features):
            if name not in there:
                raise DatasetError(
                    f"{file} has no column {name!r}; there are: {listed}. data.label and data.features name them"
                )
            if not is_number(there[name]):
                expected, how = ("0 or 1, or false or true", "Write it anew so") if name == label else ("a number", "")
                raise DatasetError(
                    f"{file}: column {name!r} is {there[name]}, expected {expected}; there are: {listed}. "
                    f"{how or 'data.features=[...] chooses'}"
                )
    if odd := [
        name
        for name in (label, *features)
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name == "self"
    ]:
        raise DatasetError(
            f"column {odd[0]!r}: Petastorm takes only names of letters, digits and _ that begin with a letter; rename "
            "it, or choose others: data.features=[...]"
        )
    return features, others


def why_no_feature(name, kinds):
    """Why a column is not taken where no features are named, or None. `kinds`: {file: {column: type}}."""
    if name == "id":
        return "the rows are numbered here by a column of this name"
    if re.fullmatch(r"__index_level_\d+__", name):
        return "pandas has numbered the rows by it"
    for file, there in kinds.items():
        if name not in there:
            return f"it lacks in {printable(file)}"
        if not is_number(there[name]):
            return f"it is {there[name]}, not numbers (in {printable(file)})"
    return None


def is_number(kind):
    """Whether a column of this type holds numbers; one without any value may."""
    kind = kind.value_type if kind is not None and types.is_dictionary(kind) else kind
    return kind is not None and any(
        fits(kind) for fits in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    )


def number_in(text):
    """The number that a folder's name says (1 for true), nan for Hive's "no value", None for another text."""
    if text == "__HIVE_DEFAULT_PARTITION__":
        return float("nan")
    if text.lower() in ("false", "true"):
        return float(text.lower() == "true")
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text) else None


def numbers_of(batch, name, constants, file, label):
    """A column as float32 (n,); nan where it is null. Raises DatasetError for whole numbers that it cannot hold, and
    for labels but 0 and 1."""
    if name in constants:
        text = constants[name]
        if re.fullmatch(r"[+-]?\d+", text) and int(np.float32(text)) != int(text):
            raise DatasetError(
                f"{file}: the folder {name}={text} says a whole number that float32 cannot hold; leave it out: "
                "data.features=[...] chooses"
            )
        return np.full(batch.num_rows, number_in(text), np.float32)
    column = batch.column(batch.schema.get_field_index(name))
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    finite = np.isfinite(numbers)
    if name == label and (strange := set(numbers[finite].tolist()) - {0.0, 1.0}):
        raise DatasetError(f"{file}: label {label!r} has the value {min(strange)!r}; expected 0 or 1 in each row")
    if (changed := changed_by_float32(column, numbers[finite], short[finite])) is not None:
        raise DatasetError(
            f"{file}: column {name!r} has whole numbers that float32 cannot hold ({changed}); leave it out: "
            "data.features=[...] chooses"
        )
    finite &= np.isfinite(short)
    if len(np.unique(numbers[finite])) > 2 * len(np.unique(short[finite])):
        raise DatasetError(
            f"{file}: column {name!r} has numbers that float32 does not tell apart ({numbers[finite][0]!r}, say); "
            "subtract what they have in common, or leave it out: data.features=[...] chooses"
        )
    return short


def changed_by_float32(column, numbers, short):
    """One of the whole numbers of a column that become another one as float32, or None. `numbers`, `short`: as float64
    and float32, without nulls."""
    if types.is_integer(column.type):
        exact = column.drop_null().to_numpy(zero_copy_only=False)
        limit = 2.0 ** (64 if exact.dtype == np.uint64 else 63)
        with np.errstate(invalid="ignore"):
            bad = (short >= limit) | (short.astype(exact.dtype) != exact)
    elif types.is_decimal(column.type) and column.type.scale <= 0:
        exact = np.array([int(value) for value in column.drop_null().to_pylist()], dtype=object)
        bad = np.array([not np.isfinite(a) or int(a) != b for a, b in zip(short, exact, strict=True)], dtype=bool)
    elif np.all(numbers == np.floor(numbers)):  # whole numbers beside nulls are doubles in pandas
        exact, bad = numbers, np.isfinite(short) & (short != numbers)
    else:
        return None
    return int(exact[bad][0]) if bad.any() else None


class Part:
    """One of the two stores, written group by group; knows the mean and the squared distances
    of its features as well."""

    def __init__(self, folder, label, features, rows_per_group):
        folder.mkdir()
        self.folder, self.label, self.features, self.rows_per_group = folder, label, features, rows_per_group
        self.waiting, self.num_rows, self.num_groups, self.num_ones = [], 0, 0, 0
        self.mean, self.squares = np.zeros(len(features)), np.zeros(len(features))

    def add(self, columns):
        new, rows = (
            len(columns[self.label]),
            np.stack([columns[name] for name in self.features], axis=1, dtype=np.float64),
        )
        if not new:
            return
        # Chan, Golub and LeVeque 1979: mean and squares of two groups together.
        mean, total = rows.mean(axis=0), self.num_rows + new
        self.squares += ((rows - mean) ** 2).sum(axis=0) + (mean - self.mean) ** 2 * self.num_rows * new / total
        self.mean += (mean - self.mean) * new / total
        self.num_ones += int(columns[self.label].sum())
        ids = pa.array(np.arange(self.num_rows, total))
        floats = {name: pa.array(columns[name]) for name in (self.label, *self.features)}
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
