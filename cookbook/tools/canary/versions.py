"""Newer versions than a lock has: which there are, which fit together, and which of them break a recipe."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cookbook.prepare.locks import NoSolution, pins, resolve


def difference(old: str, new: str) -> dict[str, tuple[str, str]]:
    """{package: (version in one lock, version in the other)} of the packages that both have, in different versions."""
    before, after = pins(old), pins(new)
    changed = [name for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    return {name: (before[name], after[name]) for name in changed}


def limits(requirements: str) -> dict[str, str]:
    """{package: the versions beyond its upper limit, as a specifier} of a requirements.in; others are absent."""
    found = {}
    for line in requirements.splitlines():
        text, _, comment = line.partition("#")
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(text.strip())
            for one in requirement.specifier:
                if "not in the lock" in comment:  # compiled by build_wheels.py for this very version
                    continue
                if (one.operator == "==" and one.version.endswith(".*")) or one.operator == "~=":
                    least = one.version.removesuffix(".*")
                    series = least.rpartition(".")[0] if one.operator == "~=" else least
                    found[requirement.name] = f">={least},!={series}.*"
                elif one.operator in ("==", "==="):
                    found[requirement.name] = f">{one.version}"
                elif one.operator in ("<", "<="):
                    found[requirement.name] = f">{'=' if one.operator == '<' else ''}{one.version}"
    return found


def beyond(source: Path, *words: str) -> dict[str, str]:
    """{package: the first release beyond its limit}; packages that have none are absent."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, versions in limits(source.read_text()).items():
            asked = Path(folder, "requirements.in")
            asked.write_text(f"{name}{versions}\n")
            with contextlib.suppress(NoSolution):
                lock = resolve(asked, "--no-deps", "--resolution", "lowest-direct", *words)
                if version := pins(lock).get(canonicalize_name(name)):
                    found[name] = version
    return found


def with_versions(requirements: str, versions: dict[str, str]) -> str:
    """The text of a requirements.in with other versions of some packages; their extras and comments stay."""
    lines = []
    for line in requirements.splitlines():
        named = re.match(r"([\w.-]+)(\[[^]]*\])?", line)
        if named and named[1] in versions:
            line = f"{named[0]}=={versions[named[1]]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def most_that_fit(names: Iterable[str], fits: Callable[[list[str]], bool]) -> tuple[list[str], list[str]]:
    """(the names that can be taken together, the others).

    If they do not all fit, each is tried in turn: alone, or with one other that is still out.
    """
    names = list(names)
    if fits(names):
        return names, []
    taken: list[str] = []
    out = list(names)
    for name in names:
        pairs = [[name, other] for other in out if other != name]
        for more in [[name], *pairs]:
            if name in out and fits([*taken, *more]):
                taken += more
                out = [other for other in out if other not in more]
    return taken, out


def fewest_that_break(names: list[str], breaks: Callable[[list[str]], bool]) -> list[str]:
    """The fewest of `names` that break the recipe. It breaks with all of them, and works without them.

    Mostly that is one, and log2(len(names)) trials find it.
    """
    guilty: list[str] = []
    suspects = list(names)
    while not (guilty and breaks(guilty)):
        # With the guilty ones the first `low` suspects do no harm; the first `high` break the recipe.
        low, high = 0, len(suspects)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if breaks([*guilty, *suspects[:middle]]) else (middle, high)
        guilty.append(suspects[high - 1])
        suspects = suspects[: high - 1]
        if not suspects:
            break
    return guilty
