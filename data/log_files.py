"""The user's own logs: a list of files, nothing copied. Plain, .gz, .bz2 or .zst; a file, a folder or a glob; also object stores.

Says before any work which files cannot be read. Object-store addresses (s3a://, gs://, hdfs://) are handed to Spark as they are.
Licence: the user's own.
"""

import bz2
import gzip
import zlib
from glob import glob
from pathlib import Path

from _common import DatasetError, run_builder

KNOWN = (".log", ".txt", ".gz", ".bz2", ".zst", "")


def build(folder, path, format):
    if not path:
        raise DatasetError(
            "which files? Say data.path=/var/log/nginx (a file, a folder or a glob) and data.format=combined"
        )
    if "://" in path:
        return manifest([path], format, "as the store has it")
    given = Path(path).expanduser()
    found = sorted(given.rglob("*") if given.is_dir() else map(Path, glob(str(given), recursive=True)))
    # A file that is named twice (by a link, say) is read once.
    files = list(dict.fromkeys(file.resolve() for file in found if not file.is_dir() and file.suffix in KNOWN))
    if not files:
        raise DatasetError(
            f"path={path}: there are no log files (with an ending of: {', '.join(filter(None, KNOWN))}, or none)"
        )
    problems = [f"{file}: {problem}" for file in files if (problem := problem_of(file))]
    if problems:
        listed = "\n  ".join(problems[:20])
        raise DatasetError(
            f"{len(problems)} of {len(files)} log files cannot be read:\n  {listed}\nMend or remove them, or leave them out of path="
        )
    return manifest([str(file) for file in files], format, f"{sum(file.stat().st_size for file in files):,} bytes")


def problem_of(file):
    """What keeps the file from being read, or None. Only its beginning is looked at; Spark finds out when a packed file is cut off."""
    try:
        with {".gz": gzip.open, ".bz2": bz2.open}.get(file.suffix, open)(file, "rb") as content:
            content.read(1)
    except EOFError:
        return "is cut off at its very beginning"
    except (OSError, zlib.error) as error:
        return f"{error.strerror if getattr(error, 'strerror', None) else error}"
    return None


def manifest(paths, format, size):
    return {
        "name": "log_files",
        "version": "1",
        "source": f"{len(paths)} files of the user, {size}",
        "licence": "the user's own",
        "format": format,
        "paths": paths,
        "rows": {},
        "schema": {"lines": format},
    }


if __name__ == "__main__":
    run_builder(build)
