"""Files that are written whole (a reader finds the old text or the new one, never a mixture), and read with care."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from cookbook import UserError

LONGEST_LOG = 64 << 20  # bytes of a log that are looked at: a library that is asked to may write gigabytes


def write_whole(path: str | Path, text: str, mode: int | None = None) -> None:
    """Writes a file; its folder is made where it is missing.

    With `mode` the file never has more permissions than that, not even for a moment, and only its owner can enter a
    new folder. Without it the umask decides, for both.
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


def write_block(path: Path, name: str, text: str) -> None:
    """Puts what `make NAME` has made between that command's two lines of a page; the rest of the page stays.

    Raises UserError when the page cannot be read or does not have both lines.
    """
    begin, end = f"<!-- {name}: made by `make {name}` -->", f"<!-- end of {name} -->"
    try:
        before, _, rest = path.read_text().partition(begin)
    except OSError as error:
        raise UserError(f"TO={path}: {error.strerror}") from None
    _, mark, after = rest.partition(end)
    if not mark:
        raise UserError(f"TO={path}: there are no lines {begin} and {end} to put the table between")
    write_whole(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def read_block(path: Path, name: str) -> str:
    """What stands between the two lines of `write_block`; empty where there is no such page, or no such lines."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    return text.partition(f"<!-- {name}: made by `make {name}` -->")[2].partition(f"<!-- end of {name} -->")[0]


def read_log(path: str | Path, start: int = 0, most: int = LONGEST_LOG) -> str:
    """The text of a log from a byte on; of a very long one its begin and its end, which hold what matters."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        if size <= most:
            return file.read().decode(errors="replace")
        begin = file.read(most // 2)
        file.seek(-(most // 2), os.SEEK_END)
        return (begin + f"\n[{size - most:,} bytes are left out]\n".encode() + file.read()).decode(errors="replace")


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; {} where there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
