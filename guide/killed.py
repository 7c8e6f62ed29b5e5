"""What a killed worker costs: the runs that `make chaos` has made on this machine.

    make chaos RECIPE=pytorch FAULTS=kill

runs a recipe twice, undisturbed and with a worker that is killed. The newest such pair of each recipe counts.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook.tools import provenance
from cookbook.tools.chaos.report import results

COMMAND = "make chaos RECIPE=pytorch FAULTS=kill"


@dataclass(frozen=True)
class Killed:
    """A run that lost a worker and recovered, and the undisturbed one."""

    recipe: str
    place: str
    settings: str  # what was typed beside the recipe
    undisturbed_seconds: float
    seconds: float  # with the killed worker, over all tries
    steps_lost: int | None  # None: the recipe's workers note no steps
    folder: str

    @property
    def goodput(self) -> float:
        return self.undisturbed_seconds / self.seconds

    def report(self, page: Path) -> str:
        """The address of its report, from the page's folder."""
        return os.path.relpath(Path(self.folder) / "report.html", page)


def read(root: Path, machine: str) -> list[Killed]:
    """The newest recovered run of each recipe in which one worker was killed, on that class of machine, by name."""
    newest = {one["recipe"]: one for one in results(root / "chaos") if counts(one, machine)}
    return [
        Killed(
            recipe=one["recipe"],
            place=one["place"],
            settings=" ".join(one["overrides"]),
            undisturbed_seconds=one["undisturbed_seconds"],
            seconds=one["seconds"],
            steps_lost=one["steps_lost"],
            folder=one["folder"],
        )
        for _, one in sorted(newest.items())
    ]


def counts(one: Mapping[str, Any], machine: str) -> bool:
    """Whether a chaos.json is of one kill, from which the run recovered, on that class of machine."""
    alone = one["names"] == ["kill"] and one["seed"] is None and one["recovered"]
    return alone and provenance.machine_class(one["machine"]) == machine
