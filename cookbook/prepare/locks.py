"""Locks: which version of each package a recipe's environment has, as uv chooses them from requirements.in.

As a program it renews them: make lock [RECIPE=horovod]
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cookbook import ROOT, UserError, require_recipe
from cookbook.prepare.tools import PYTHON, uv
from cookbook.programs import run_program

# A CPU build of torch does not need these. On a machine with GPUs they are installed all the same, because torch's own
# metadata pins them exactly.
GPU_PACKAGES = re.compile(r"^(nvidia-|cuda-|triton)")


def lock_of(recipe: str, variant: str | None = None, root: Path | None = None) -> Path:
    """The lock of a recipe's environment: the variant's own where there is one (requirements-<variant>.txt)."""
    folder = (root or ROOT) / "recipes" / recipe
    own = folder / f"requirements-{variant}.txt"
    return own if own.exists() else folder / "requirements.txt"


def pins(lock: str) -> dict[str, str]:
    """{package: version} of a lock's text."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))


def overrides_of(recipe: str, root: Path | None = None) -> list[str]:
    """uv's option for a recipe whose packages contradict each other.

    overrides.txt, beside its requirements, has the requirements that win.
    """
    path = (root or ROOT) / "recipes" / recipe / "overrides.txt"
    return ["--override", str(path)] if path.exists() else []


class NoSolution(UserError):
    """No versions of these packages fit together."""


def resolve(source: Path, *options: str, lock: str | None = None) -> str:
    """Returns the text of a lock for a requirements.in: every package pinned, no index addresses, no GPU packages.

    `lock` is the text of an earlier one: its versions stay unless `options` (uv's options) ask for others.
    Raises NoSolution with uv's reason where no versions fit together, UserError when uv cannot look (no network, say).
    """
    compile_ = [uv(), "pip", "compile", "-q", "--no-annotate", "--no-header", "--python-version", PYTHON]
    places = ("UV_FIND_LINKS", "UV_INDEX")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(places)}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        if lock:
            output.write_text(lock)
        argv = [*compile_, *options, source.name, "-o", str(output)]
        done = subprocess.run(argv, cwd=source.parent, env=environment, capture_output=True, text=True)
        if done.returncode:
            kind = NoSolution if "No solution found" in done.stderr else UserError
            raise kind(f"{source.name} cannot be locked:\n{done.stderr.strip()}")
        lines = output.read_text().splitlines()
    built = re.findall(r"^(\S+)==\S+\s+# not in the lock", source.read_text(), re.MULTILINE)
    return "".join(f"{line}\n" for line in lines if not GPU_PACKAGES.match(line) and line.split("==")[0] not in built)


def renew_lock(source: Path, *options: str) -> None:
    """Writes the lock beside a requirements.in (or pyproject.toml), with the newest versions that it allows."""
    target = source.with_suffix(".txt") if source.suffix == ".in" else source.with_name("requirements.txt")
    text = resolve(source, "--upgrade", *options)
    target.write_text(f"# Made by `make lock` from {source.name}; do not edit.\n{text}")
    print(f"{target.relative_to(ROOT)}: {len(text.splitlines())} packages")


def variants_of(recipe: str) -> list[str | None]:
    """The recipe's variants that have a lock of their own, and None for the plain one."""
    locks = (ROOT / "recipes" / recipe).glob("requirements-*.txt")
    return [None, *sorted(path.stem.removeprefix("requirements-") for path in locks)]


def main(argv: Sequence[str]) -> None:
    """Renews the locks of these recipes; without any, all locks."""
    for name in argv:
        require_recipe(name)
    if not argv:
        renew_lock(ROOT / "pyproject.toml", "--all-extras")
        renew_lock(ROOT / "docs/requirements.in")
        renew_lock(ROOT / "guide/requirements.in")
    for source in sorted(ROOT.glob("recipes/*/requirements*.in")):
        if not argv or source.parent.name in argv:
            renew_lock(source, *overrides_of(source.parent.name))


if __name__ == "__main__":
    run_program(main)
