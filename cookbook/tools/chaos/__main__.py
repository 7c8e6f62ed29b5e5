"""The command line: make chaos, make chaos-table."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cookbook import UserError, recipes, require_recipe
from cookbook.programs import run_program
from cookbook.report.console import console
from cookbook.tools.chaos import __doc__ as about
from cookbook.tools.chaos import report
from cookbook.tools.chaos.outcome import Outcome
from cookbook.tools.chaos.plans import help_text, plans_of
from cookbook.tools.chaos.run import Session

MOST_SEEDS = 100


def seeds_of(text: str) -> list[int]:
    """`3` as [3], `1-4` as [1, 2, 3, 4]. Raises UserError."""
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < first + MOST_SEEDS:
        raise UserError(
            f"SEED={text}: expected a number, or two such as 1-10 for a plan of each ({MOST_SEEDS} at most)"
        )
    return list(range(first, last + 1))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    text = f"{help_text()}\n\nRecipes: {', '.join(recipes())}"
    parser = argparse.ArgumentParser(
        prog="make chaos", description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="", metavar="RECIPE")
    parser.add_argument(
        "settings", nargs="*", help="settings of the run, as ARGS; scale=smoke unless they say otherwise"
    )
    parser.add_argument("--faults", default="", help='FAULTS="kill@step=7,rank=1 ..."')
    parser.add_argument("--seed", default="0", help="SEED of random plans: a number, or several such as 1-10")
    parser.add_argument("--root", default="outputs/chaos", help="where results and runs are kept (%(default)s)")
    parser.add_argument(
        "--table", action="store_true", help="print the table of all results instead (make chaos-table)"
    )
    parser.add_argument("--to", default="", help="with --table: a file to put it into")
    if argv and ("help" in argv or argv == ["", "--faults=", "--seed="] or argv == [""]):
        parser.print_help()
        sys.exit(0)
    return parser.parse_intermixed_args([word for word in argv if word != "--seed="])


def main(argv: Sequence[str]) -> int:
    wanted = arguments(["help" if word == "--faults=help" else word for word in argv])
    root = Path(wanted.root)
    if wanted.table:
        print(report.write_table(root, Path(wanted.to) if wanted.to else None))
        return 0
    if not wanted.recipe:
        raise UserError(f"RECIPE is missing. There are: {', '.join(recipes())}. Try: make chaos FAULTS=help")
    require_recipe(wanted.recipe)
    session = Session(wanted.recipe, wanted.settings, root)
    seeds = seeds_of(wanted.seed)
    plans = plans_of(wanted.faults, seeds, session.scene)
    is_drawn = wanted.faults.startswith("random")
    for seed, plan in zip(seeds if is_drawn else [None] * len(plans), plans, strict=True):
        drawn = f" of seed {seed}" if is_drawn else ""
        console.print(f"{'plan' + drawn:<20} {' '.join(fault.text for fault in plan)}", markup=False)
    outcomes: list[Outcome] = []
    with session.place():
        shown, calm = session.undisturbed()
        asked_for = [reason for plan in plans for fault in plan if (reason := fault.too_early(shown))]
        if asked_for and len(plans) == 1:
            raise UserError("; ".join(asked_for))
        for number, plan in enumerate(plans):
            outcomes.append(session.disturbed(plan, seeds[number] if is_drawn else None, shown, calm))
            report.write_page(Path(outcomes[-1].folder), outcomes[-1:])
            report.show(outcomes[-1])
    console.print()
    page = Path(outcomes[0].folder) / "report.html"
    if len(outcomes) > 1:
        report.show_all(outcomes)
        page = report.write_page(Path(outcomes[-1].folder), outcomes)
    report.say_where(outcomes, page)
    return 0 if all(one.recovered or one.cannot for one in outcomes) else 1


def listen() -> None:
    """Whoever ends this program ends the run that goes on, and undoes what was done to it."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


if __name__ == "__main__":
    listen()
    run_program(main)
