"""The files in conf/, read as they are: without Hydra."""

import re
from pathlib import Path

from cookbook import ROOT

CONF = ROOT / "conf"


def comments_of(*files: Path) -> dict[str, str]:
    """{key: comment} of the one-line comments in settings files; the first file that explains a key wins."""
    found: dict[str, str] = {}
    for file in files:
        for key, comment in re.findall(r"^\s*(\w+):[^#\n]*#\s*(.+)$", file.read_text(), re.MULTILINE):
            found.setdefault(key, comment)
    return found
