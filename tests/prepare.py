"""Makes the environments that the chosen tests need, before any of them is timed.

Run: python -m tests.prepare [pytest's words]
"""

import contextlib
import inspect
import io
import re
import sys

import pytest

from cookbook.prepare.environments import make_all
from tests.areas import area_of
from tests.helpers import recipes


class Collected:
    """Keeps what pytest has chosen."""

    def __init__(self):
        self.items = []

    def pytest_collection_finish(self, session):
        self.items = list(session.items)


def texts_of(function, seen):
    """The source of a test, of the functions of its file that it calls, and the words that they use."""
    function = inspect.unwrap(function)
    if function in seen:
        return
    seen.add(function)
    yield inspect.getsource(function)
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    for name in (*function.__code__.co_names, *arguments):
        value = function.__globals__.get(name)
        value = getattr(value, "__wrapped__", value)  # of a fixture
        if inspect.isfunction(value) and value.__module__ == function.__module__:
            yield from texts_of(value, seen)
        elif isinstance(value, str | list | tuple):
            yield repr(value)


def recipes_of(items) -> list[str]:
    """The recipes that these tests run: named by their area, in their parameters,
    or as recipe=NAME in what they use."""
    named = {area_of(item) for item in items}
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        text = "".join([*texts_of(item.function, set()), repr(list(parameters))])
        named |= set(re.findall(r"(?:\brecipe=|recipe_python\([\"'])(\w+)", text)) | {
            value for value in parameters if isinstance(value, str)
        }
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
