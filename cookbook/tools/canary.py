"""Tries newer versions than a recipe's lock has, in a copy of the checkout; finds the upgrade that breaks the recipe.

    make canary RECIPE=dask [HISTORY=history.jsonl] [MINUTES=40]

Two things are tried with each requirements.in of a recipe: the newest versions that it allows, and one step beyond
each of its limits (the next release after `==2.13.0`, the first one that `<2.4` forbids). The recipe runs at
`scale=smoke` with them. If it breaks, bisection finds the upgrade. The outcome is a proposal: it is printed, and
appended to the history for `make health`. Nothing in this checkout changes, and the exit status is always 0.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml
from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cookbook import ROOT, UserError, bootstrap, recipes, run_folder
from cookbook.prepare.environments import (
    NoSolution,
    environment_name,
    fingerprint,
    lock_of,
    overrides_of,
    pins,
    resolve,
    variants_of,
)
from cookbook.report import pages
from cookbook.tools import history, provenance
from cookbook.words import run_program

MINUTES = 40  # after this time no trial begins
TRIAL_SECONDS = 1500  # the most that one trial may take: the environment (Horovod is compiled) and the run
# Not part of a checkout, or made in it.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".venvs", "outputs", "__pycache__", ".*_cache", ".terraform")


@dataclass(frozen=True)
class Proposal:
    """What came out of one question."""

    target: str
    status: str  # works, breaks, current (there is nothing newer), impossible (no versions fit together), unfinished
    upgrades: dict[str, tuple[str, str]] = field(default_factory=dict)  # package: (version in the lock, newer version)
    culprits: tuple[str, ...] = ()  # the fewest upgrades that break it
    reason: str = ""


class OutOfTime(Exception):
    """The minutes are over."""


# ---- versions


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


# ---- trials


class Trials:
    """Runs of a recipe at scale=smoke with different locks, each in a copy of the checkout; equal locks run once."""

    def __init__(self, recipe: str, variant: str | None, deadline: float) -> None:
        self.recipe, self.variant, self.deadline = recipe, variant, deadline
        self.outcomes: dict[str, str] = {}

    def __call__(self, lock: str, text: str) -> str:
        """Returns why the recipe fails with this lock, or an empty text. Raises OutOfTime."""
        key = hashlib.sha256(lock.encode()).hexdigest()
        if key not in self.outcomes:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            print(f"canary       {text} ...", flush=True)
            began = time.monotonic()
            self.outcomes[key] = self.run(lock)
            said = self.outcomes[key].splitlines()[0] if self.outcomes[key] else "ok"
            print(f"canary       {text}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
        return self.outcomes[key]

    def run(self, lock: str) -> str:
        with tempfile.TemporaryDirectory(prefix="canary-") as folder:
            copy = Path(folder, "checkout")
            shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
            target = copy / lock_of(self.recipe, self.variant).relative_to(ROOT)
            target.write_text(lock)
            words = [f"recipe={self.recipe}", *variant_words(self.recipe, self.variant), "scale=smoke", "resume=never"]
            argv = [sys.executable, "-m", "cookbook", *words, f"output_root={copy}/outputs"]
            with environment_of(copy, self.recipe, self.variant):
                status, output = run_to_its_end(argv, copy, TRIAL_SECONDS)
            content = run_folder.load((copy / "outputs" / self.recipe / "latest").resolve())
        if status == 0:
            return ""
        if reason := content.get("reason"):
            return str(reason)
        lines = [line for line in output.splitlines() if line.strip()] or ["no word"]
        return next((line for line in lines if line.startswith("error:")), lines[-1])


def run_to_its_end(argv: list[str], folder: Path, seconds: float) -> tuple[int, str]:
    """(exit status, output) of a driver.

    It is asked to end, and cleans up, when it takes longer than `seconds`, or when the canary itself is ended.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.write(f"\nerror: it did not end within {seconds:.0f} s\n")
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                process.wait()
        log.seek(0)
        return process.returncode, log.read()


@contextlib.contextmanager
def environment_of(copy: Path, recipe: str, variant: str | None) -> Iterator[None]:
    """Removes afterwards the environment that the copy makes, unless this or another checkout had it before."""
    name = f"{environment_name(recipe, variant)}-{fingerprint(recipe, variant, copy)[:12]}"
    folder = bootstrap.cache_dir() / "environments" / name
    keep = folder.exists() or fingerprint(recipe, variant, copy) == fingerprint(recipe, variant)
    try:
        yield
    finally:
        if not keep:
            with FileLock(folder.with_suffix(".lock")):
                shutil.rmtree(folder, ignore_errors=True)
            for suffix in (".log", ".lock"):
                folder.with_suffix(suffix).unlink(missing_ok=True)


def variant_words(recipe: str, variant: str | None) -> list[str]:
    """The setting that chooses a variant of a recipe which has a lock of its own."""
    if variant is None:
        return []
    driver = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())["driver"]
    if variant not in driver.get("modes", {}):
        raise UserError(f"conf/recipe/{recipe}.yaml: expected {variant} in driver.modes, which has a lock of its own")
    return [f"recipe.mode={variant}"]


class Question:
    """One requirements.in and the newer versions that are asked of it."""

    def __init__(self, source: Path, lock: str, words: tuple[str, ...], trial: Callable[[str, str], str]) -> None:
        self.source, self.lock, self.words, self.trial = source, lock, words, trial

    def lock_with(self, versions: dict[str, str], *words: str, held: bool = True) -> str:
        """A lock in which these packages have these versions, and the others stay as they are where they can."""
        with tempfile.TemporaryDirectory() as folder:
            asked = Path(folder, self.source.name)
            asked.write_text(with_versions(self.source.read_text(), versions))
            chosen = Path(folder, "chosen.txt")
            chosen.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
            named = [word for name in versions for word in ("--upgrade-package", name)]
            return resolve(asked, *named, "-c", str(chosen), *words, *self.words, lock=self.lock if held else None)

    def fits(self, versions: dict[str, str]) -> bool:
        try:
            self.lock_with(versions)
        except NoSolution:
            return False
        return True

    def newest(self) -> Proposal:
        """The newest versions that requirements.in allows."""
        target = f"the newest versions that {self.source.name} allows"
        try:
            lock = resolve(self.source, "--upgrade", *self.words)
        except NoSolution as error:
            return Proposal(target, "impossible", reason=last_line(error))
        return self.judge(target, difference(self.lock, lock), lock)

    def next_step(self) -> Proposal:
        """One release beyond each limit of requirements.in."""
        target = f"one step beyond the limits of {self.source.name}"
        steps = beyond(self.source, *self.words)
        if not steps:
            return Proposal(target, "current", reason="no package has a newer release beyond its limit")
        taken, out = most_that_fit(steps, lambda names: self.fits({name: steps[name] for name in names}))
        note = "; ".join(f"{name} {steps[name]} does not fit with the other packages" for name in out)
        if not taken:
            return Proposal(target, "impossible", reason=note)
        chosen = {name: steps[name] for name in taken}
        lock = self.lock_with(chosen)
        found = self.judge(target, {name: (pins(self.lock).get(name, "absent"), steps[name]) for name in taken}, lock)
        return replace(found, reason="; ".join(filter(None, [found.reason, note])))

    def judge(self, target: str, upgrades: dict[str, tuple[str, str]], lock: str) -> Proposal:
        """Runs the recipe with all upgrades, and looks for those that break it."""
        if not upgrades:
            return Proposal(target, "current", reason="the lock has them already")
        try:
            reason = self.trial(lock, f"{target}: {len(upgrades)} upgrades")
            if not reason:
                return Proposal(target, "works", upgrades)
        except OutOfTime:
            return Proposal(target, "unfinished", upgrades, reason="the time was over before it ran")

        def breaks(names: list[str]) -> bool:
            try:
                tried = self.lock_with({name: upgrades[name][1] for name in names})
            except NoSolution:  # these need others: nothing is known of them alone
                return False
            return bool(self.trial(tried, f"only {', '.join(names[:4])}{' and others' if len(names) > 4 else ''}"))

        try:
            if not breaks(list(upgrades)):
                note = "no upgrade does it: a package that is new here"
                return Proposal(target, "breaks", upgrades, reason=f"{reason} ({note})")
            culprits = fewest_that_break(list(upgrades), breaks)
        except OutOfTime:
            note = "the time was over before the upgrade was found"
            return Proposal(target, "breaks", upgrades, reason=f"{reason} ({note})")
        return Proposal(target, "breaks", upgrades, tuple(culprits), reason)


def last_line(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]


def proposals(recipe: str, deadline: float) -> list[Proposal]:
    """All proposals for a recipe. The lock as it is runs first: if that fails, newer versions cannot be judged."""
    found = []
    for variant in variants_of(recipe):
        path = lock_of(recipe, variant)
        lock = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
        trial = Trials(recipe, variant, deadline)
        if reason := trial(path.read_text(), f"{path.name} as it is"):
            found.append(Proposal(f"{path.name} as it is", "breaks", reason=reason))
            continue
        question = Question(path.with_suffix(".in"), lock, tuple(overrides_of(recipe)), trial)
        for target, ask in (
            ("The newest versions that requirements.in allows.", question.newest),
            ("One release beyond each limit of requirements.in.", question.next_step),
        ):
            try:
                found.append(ask())
            except UserError as error:
                found.append(Proposal(target, "unfinished", reason=last_line(error)))
    return found


def main(argv: Sequence[str]) -> None:
    names = recipes()
    description = "Tries newer versions than a recipe's lock has, in a copy of the checkout, "
    description += "and says which single upgrade breaks the recipe."
    parser = argparse.ArgumentParser(prog="make canary", description=description)
    parser.add_argument("recipe", choices=names, metavar="RECIPE", help=", ".join(names))
    parser.add_argument("--history", default="", help="a file of JSON lines that the outcome is appended to")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no trial begins after so many (%(default)s)")
    wanted = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.time()
    found = proposals(wanted.recipe, time.monotonic() + 60 * wanted.minutes)
    for one in found:
        print(f"{one.status:<12} {one.target}{': ' if one.reason else ''}{one.reason.partition(chr(10))[0]}")
        for name in one.culprits or one.upgrades:
            print(f"             {'breaks with ' if one.culprits else ''}{name} {' -> '.join(one.upgrades[name])}")
    if wanted.history:
        content = {
            "recipe": wanted.recipe,
            "time": began,
            "machine": provenance.machine_class(pages.machine()),
            "commit": provenance.commit_of(),
            "proposals": [asdict(one) for one in found],
        }
        history.append(os.path.abspath(wanted.history), "canary", content)


if __name__ == "__main__":
    run_program(main)
