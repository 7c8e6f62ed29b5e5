"""The feature store's own description: a schema and statistics beside the Parquet files.

From them a reader sees that data has changed.
"""

import json

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pyarrow.parquet as pq

from features import CATEGORIES, NUMERIC
from storage import for_arrow, open_folder
from tables import parquet_files, place_of, read_table

STATISTICS = ("count", "missing", "mean", "std", "min", "max")


def read_store(config, names=None):
    """The feature store, or some columns of it, as a Dask frame: a partition for each file."""
    files = parquet_files(f"{place_of(config)}/features")
    return dd.from_map(read_file, files, names=names)


def read_file(path, names):
    return read_table(path, names)


def store(config, run):
    """Writes _schema.json and _statistics.json (readers of Parquet folders pass over such names).

    Returns how many files and features there are, and the largest correlation with `late`.
    """
    folder = f"{place_of(config)}/features"
    files = parquet_files(folder)
    schema = schema_of(files[0])
    if strange := [file.rpartition("/")[2] for file in files if schema_of(file) != schema]:
        raise SystemExit(
            f"the files of the feature store do not have one schema: {', '.join(strange)} differ from "
            f"{files[0].rpartition('/')[2]}"
        )
    table = read_store(config)
    numbers = [name for name in schema if name in (*NUMERIC, "dep_delay")]
    part = table[table["part"] == "train"][numbers]
    # Distributed: one graph for all six, so that each partition is read once.
    lazy = [part.count(), part.isna().sum(), part.mean(), part.std(), part.min(), part.max()]
    found = dict(zip(STATISTICS, dask.compute(*lazy), strict=True))
    statistics = {name: {key: float(found[key][name]) for key in STATISTICS} for name in numbers}
    correlations = correlate(table, numbers)
    for name, content in (("_schema.json", schema), ("_statistics.json", statistics)):
        open_folder(folder).write(name, json.dumps(content, indent=1).encode() + b"\n")
    rows = [{"feature": name, **statistics[name], "correlation with late": correlations[name]} for name in numbers]
    run.table("features", rows)
    best = max(correlations, key=lambda name: abs(correlations[name]))
    chosen, left_out = choose(table, numbers)
    if left_out:
        run.skip("features", "left out of the models: " + "; ".join(left_out))
    return {
        "chosen": chosen,
        "files": len(files),
        "features": len(numbers),
        "strongest": best,
        "strongest_correlation": correlations[best],
    }


def schema_of(file):
    """{column: type} of a Parquet file."""
    path, system = for_arrow(file)
    return {field.name: str(field.type) for field in pq.read_schema(path, filesystem=system)}


def choose(table, numbers):
    """(names of the features that differ among the training flights with a label, sentences on the others)."""
    train = table[(table["part"] == "train") & table["late"].notnull()]
    # Distributed: one graph for all; of the categories only the different values travel.
    lazy = train[numbers].min(), train[numbers].max(), *[train[name].drop_duplicates() for name in CATEGORIES]
    least, most, *values = dask.compute(*lazy)
    values = {name: sorted(found) for name, found in zip(CATEGORIES, values, strict=True)}
    empty = [name for name in numbers if np.isnan(least[name])]
    constant = [name for name in numbers if least[name] == most[name]]
    alone = [name for name in CATEGORIES if len(values[name]) < 2]
    said = [f"{', '.join(empty)} (no training flight has a value)"] if empty else []
    said += [f"{name} (always {least[name]:g})" for name in constant]
    said += [
        f"{name} (always {values[name][0]})" if values[name] else f"{name} (no training flight has a value)"
        for name in alone
    ]
    return [name for name in (*CATEGORIES, *numbers) if name not in (*empty, *constant, *alone)], said


def correlate(table, numbers):
    """{feature: Pearson's correlation with `late`} over the training rows, by Dask's arrays.

    Missing values stand at the mean.
    """
    train = table[(table["part"] == "train") & table["late"].notnull()]
    # Distributed: an array of blocks, one for each partition; `lengths` asks the workers how long each is.
    values = train[["late", *numbers]].to_dask_array(lengths=True).astype("float64")
    centred = values - da.nanmean(values, axis=0)
    centred = da.where(da.isnan(centred), 0.0, centred)
    # Distributed: each block gives its part of the product, and only the sums of those travel.
    product, squares = dask.compute(centred.T @ centred[:, 0], (centred**2).sum(axis=0))
    with np.errstate(invalid="ignore"):
        found = np.nan_to_num(product / np.sqrt(squares * squares[0]))
    return {name: float(value) for name, value in zip(numbers, found[1:], strict=True)}
