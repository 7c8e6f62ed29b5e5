"""The files in conf/, read as they are: without Hydra."""

import re
import textwrap
from pathlib import Path

import yaml

from cookbook import ROOT
from cookbook.job import Settings

CONF = ROOT / "conf"


LENGTH = 120  # of a line
# A key, its value, and the comment behind it; further lines of the comment follow, further in than any key begins.
COMMENTED = re.compile(r"^ *(\w+):[^#\n]*#[ \t]*(.*(?:\n {12,}# .+)*)$", re.MULTILINE)


def comments_of(*files: Path) -> dict[str, str]:
    """{key: comment} of the comments behind settings in files; the first file that explains a key wins."""
    found: dict[str, str] = {}
    for file in files:
        for key, comment in COMMENTED.findall(file.read_text()):
            found.setdefault(key, re.sub(r"\n +# ", " ", comment).strip())
    return found


def commented(line: str, comment: str, column: int) -> str:
    """A line of YAML with a comment behind it from a column on, over as many lines as it takes."""
    first, *more = textwrap.wrap(comment, LENGTH - column - 2, break_long_words=False, break_on_hyphens=False)
    lines = [f"{line:<{column - 2}}  # {first}"]
    if len(lines[0]) > LENGTH:  # a long value: its comment begins below it
        lines, more = [f"{line}  #"], [first, *more]
    return "\n".join([*lines, *(f"{'':<{column}}# {text}" for text in more)])


def is_changed(setting: str, config: Settings, place: str) -> bool:
    """Whether a setting of conf/cluster/ has another value than its files give it."""
    files = [CONF / f"cluster/{name}.yaml" for name in ("local", place)]
    defaults = [yaml.safe_load(path.read_text()).get(setting) for path in files if path.exists()]
    return config["cluster"][setting] not in defaults
