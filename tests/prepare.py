"""Makes the environments that the chosen tests need, before any of them is timed. Run: python -m tests.prepare [pytest's words]"""

import contextlib
import io
import re
import sys

import pytest

from cookbook.environments import make_all
from tests.areas import area_of
from tests.helpers import recipes


class Collected:
    """Keeps what pytest has chosen."""

    def __init__(self):
        self.items = []

    def pytest_collection_finish(self, session):
        self.items = list(session.items)


def recipes_of(items) -> list[str]:
    """The recipes that these tests run: named by their area, or in the text of their file as recipe=NAME."""
    named = {area_of(item) for item in items}
    for text in {item.path.read_text() for item in items}:
        named |= set(re.findall(r"\brecipe=(\w+)", text))
    return [recipe for recipe in recipes() if recipe in named]


def main(words):
    collected = Collected()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main(["--collect-only", "-q", *words], plugins=[collected])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        print(said.getvalue())
        sys.exit(int(status))
    make_all(recipes_of(collected.items))


if __name__ == "__main__":
    main(sys.argv[1:])
