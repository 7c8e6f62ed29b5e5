"""The driver of the cookbook: composes a run's settings, starts its workers, and decides whether the run counts."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "runrecord"))  # the same file that is installed into every recipe's environment


class UserError(Exception):
    """Something the user can put right; the text says what was found, what was expected and what to do next."""
