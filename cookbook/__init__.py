"""The driver of the cookbook: composes a run's settings, starts its workers, and decides whether the run counts."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "runrecord"))  # the same file that is installed into every recipe's environment


class UserError(Exception):
    """Something the user can put right; the text says what was found, what was expected and what to do next."""


def recipes() -> list[str]:
    """The names of all recipes: the folders that have a main program."""
    return sorted(path.parent.name for path in ROOT.glob("recipes/*/main.py"))


def require_recipe(name: str) -> None:
    """Raises UserError, with the nearest name, where there is no such recipe."""
    if name not in (names := recipes()):
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"RECIPE={name} does not exist{hint} There are: {', '.join(names)}")
