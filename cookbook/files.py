"""Writes a file whole: a reader finds the old text or the new one, and two writers do not mix theirs."""

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: str | Path, text: str, mode: int | None = None) -> None:
    """Writes a file; its folder is made where it is missing.

    The file never has more permissions than `mode`, not even for a moment, and a new folder is its owner's only. None:
    what the umask leaves, of both.
    """
    path = Path(path)
    path.parent.mkdir(mode=0o777 if mode is None else 0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        with open(number, "w") as file:
            file.write(text)
            if mode is not None:
                os.fchmod(number, mode)  # the umask may have taken something away
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
