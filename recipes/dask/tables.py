"""Where the steps' tables are: in the run folder, or in an object store where the workers share no disk."""

import shutil
from pathlib import Path

import pandas as pd

from storage import for_arrow, is_address, open_folder, shared_dir


def place_of(config):
    # Distributed: a task reads what a task on another machine has written, so all of them must reach the place.
    return shared_dir(config.output_dir, config.checkpoint_dir)


def parquet_files(folder):
    """The addresses of a folder's Parquet files, in the order of their names."""
    if not is_address(folder):
        return sorted(map(str, Path(folder).glob("*.parquet")))
    return [f"{folder}/{name}" for name in open_folder(folder).files() if name.endswith(".parquet") and "/" not in name]


def read_table(file, columns=None):
    """A Parquet file as a frame."""
    path, system = for_arrow(file)  # pandas would take pyarrow's own client, which gives up after three seconds
    return pd.read_parquet(path, columns=columns, filesystem=system)


def write_table(frame, file):
    path, system = for_arrow(file)
    frame.to_parquet(path, index=False, filesystem=system)


def begin(place, names):
    """Makes empty folders for tables; returns the folder that they are in until `finish`."""
    if is_address(place):
        # An object store cannot rename. What says that a table is whole is the step's result, written after it.
        for name in names:
            folder = open_folder(f"{place}/{name}")
            folder.remove(folder.files())
        return place
    partial = Path(place) / ".ingest.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in names:
        (partial / name).mkdir(parents=True)
    return str(partial)


def give_up(partial):
    """Removes the tables of `begin`."""
    if not is_address(partial):
        shutil.rmtree(partial, ignore_errors=True)


def finish(place, partial, names):
    """Gives the tables their names."""
    if is_address(place):
        return
    for name in names:
        shutil.rmtree(Path(place) / name, ignore_errors=True)
        (Path(partial) / name).rename(Path(place) / name)
    Path(partial).rmdir()
