"""Flights of your own: Parquet or CSV files (plain or .gz) with the columns of the flights table; a list of them, nothing is copied.

Weather, planes and airports are those of the flights dataset; what they do not know is missing in the features.
Licence: the user's own.
"""

from glob import glob
from pathlib import Path

import pyarrow.parquet as pq
from _common import DatasetError, run_builder
from flights import build as build_tables

KNOWN = (".parquet", ".csv", ".gz")


def build(folder, path):
    if not path:
        raise DatasetError("which files? Say data.path=/my/flights (a file, a folder or a glob)")
    given = Path(path).expanduser()
    found = sorted(given.rglob("*") if given.is_dir() else map(Path, glob(str(given), recursive=True)))
    # A file that is named twice (by a link, say) is read once.
    files = list(dict.fromkeys(file.resolve() for file in found if not file.is_dir() and file.suffix in KNOWN))
    if not files:
        raise DatasetError(f"path={path}: there are no flights (files that end in {', '.join(KNOWN)})")
    problems = [f"{file}: {problem}" for file in files if (problem := problem_of(file))]
    if problems:
        listed = "\n  ".join(problems[:20])
        raise DatasetError(
            f"{len(problems)} of {len(files)} files cannot be read:\n  {listed}\nMend or remove them, or leave them out of path="
        )
    made = build_tables(folder, num_copies=1, keep_every=1, max_jitter_minutes=0, seed=0)
    for file in folder.glob("flights-*.parquet"):
        file.unlink()
    own = {"name": "flights_files", "source": f"{len(files)} files of the user", "licence": "the user's own"}
    return made | own | {"paths": [str(file) for file in files], "rows": {}, "malformed": None}


def problem_of(file):
    """What keeps the file from being read, or None. A Parquet file ends with its schema, so a cut one shows here."""
    try:
        if file.suffix == ".parquet":
            pq.ParquetFile(file).close()
        else:
            with open(file, "rb") as content:
                content.read(1)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        return getattr(error, "strerror", None) or str(error)
    return None


if __name__ == "__main__":
    run_builder(build)
