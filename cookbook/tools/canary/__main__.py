"""The command line: make canary."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from cookbook import UserError, recipes
from cookbook.prepare.locks import lock_of, overrides_of, variants_of
from cookbook.programs import run_program
from cookbook.report import pages
from cookbook.tools import history, provenance
from cookbook.tools.canary.question import Proposal, Question, last_line
from cookbook.tools.canary.trials import Trials

MINUTES = 40  # after this time no trial begins


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
