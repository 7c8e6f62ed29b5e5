"""Writes a file whole: a reader finds the old text or the new one, and two writers do not mix theirs."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, text: str, mode: int | None = None) -> None:
    """Writes a file; its folder is made where it is missing.

    The file never has more permissions than `mode`, not even for a moment, and a new folder is its owner's only. None:
    what the umask leaves, of both.
    """
    path = Path(path)
    path.parent.mkdir(mode=0o777 if mode is None else 0o700, parents=True, exist_ok=True)
    if mode is None:
        mask = os.umask(0o077)
        os.umask(mask)
        mode = 0o666 & ~mask
    number, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with open(number, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
