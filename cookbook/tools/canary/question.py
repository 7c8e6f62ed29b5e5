"""What is asked of newer versions of a recipe's packages, and what came out."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cookbook.prepare.locks import NoSolution, pins, resolve
from cookbook.tools.canary.trials import OutOfTime
from cookbook.tools.canary.versions import beyond, difference, fewest_that_break, most_that_fit, with_versions


@dataclass(frozen=True)
class Proposal:
    """What came out of one question."""

    target: str
    status: str  # works, breaks, current (there is nothing newer), impossible (no versions fit together), unfinished
    upgrades: dict[str, tuple[str, str]] = field(default_factory=dict)  # package: (version in the lock, newer version)
    culprits: tuple[str, ...] = ()  # the fewest upgrades that break it
    reason: str = ""


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
