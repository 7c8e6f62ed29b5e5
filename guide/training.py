"""Training of networks: the runs that recipes have made on this machine, beside each other where they did the same.

    make compare RECIPES="pytorch:recipe.mode=single pytorch horovod tensorflow ray_train" ARGS="scale=smoke"

makes such runs. Two of them are the same task when their dataset, seed, batch, epochs, steps and rows are equal.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cookbook import run_folder
from cookbook.report.pages import number
from cookbook.tools import provenance
from cookbook.tools.compare import ALIKE
from guide.advice import Advice

RECIPES = ("horovod", "pytorch", "tensorflow", "ray_train")
TOLERANCE = 0.05  # by which the objective of two runs of one task may differ: they shuffle and start in other ways
COMMAND = 'make compare RECIPES="pytorch:recipe.mode=single pytorch horovod tensorflow ray_train" ARGS="scale=smoke"'


@dataclass(frozen=True)
class Training:
    """A run of a recipe."""

    system: str  # recipe and mode
    workers: int
    size: str  # the dataset, and how much of it
    folder: str
    task: str  # what is equal in runs of the same task
    rate: float  # samples a second, of all workers
    launch_seconds: float
    run_seconds: float
    peak_mb: float | None
    objective: str
    value: float
    launch: int = 0

    @property
    def id(self) -> str:
        return "run-" + hashlib.sha256(self.folder.encode()).hexdigest()[:10]

    def report(self, page: Path) -> str:
        """The address of its report, from the page's folder."""
        return os.path.relpath(Path(self.folder) / "report.html", page)


def read(root: Path, machine: str) -> list[Training]:
    """The good runs below a folder that were made on a class of machine, one process or more, oldest first."""
    if not root.is_dir():
        return []
    places = [root, *sorted(root.glob("compare/*/*/"))]
    found = [pair for place in places for pair in run_folder.load_all(place)]
    unique = {content["folder"]: (folder, content) for folder, content in found if content.get("folder")}
    made = [training_of(folder, content, machine) for folder, content in unique.values()]
    return [training for training in made if training]


def training_of(folder: Path, content: Mapping[str, Any], machine: str) -> Training | None:
    """A run.json as a training; None where it is none, did not end well, or is another machine's."""
    metrics, objective = content.get("metrics", {}), content.get("objective", {})
    rate, value = metrics.get("samples_per_second"), objective.get("value")
    settings = folder / "config.yaml"
    if content.get("recipe") not in RECIPES or content.get("status") != "ok" or rate is None or value is None:
        return None
    if provenance.machine_class(content.get("machine", "")) != machine or not settings.exists():
        return None
    config = yaml.safe_load(settings.read_text())
    peaks = [peak for name, peak in metrics.items() if name.endswith("peak_mb")]
    dataset = (content.get("dataset") or {}).get("name", "no data")
    return Training(
        system=f"{content['recipe']} {config.get('mode', '')}".strip(),
        workers=content["world_size"],
        size=f"{dataset}, {content.get('num_rows') or '?'} rows",
        folder=content["folder"],
        task=repr([config.get(key) for key in ALIKE]),
        rate=rate,
        launch_seconds=content["seconds"].get("launch", 0.0),
        run_seconds=content["seconds"].get("run", 0.0),
        peak_mb=max(peaks, default=None),
        objective=objective["name"],
        value=value,
    )


def groups_of(trainings: Sequence[Training]) -> list[list[Training]]:
    """The runs of each task that two or more ways have done; of each way the newest run."""
    found: dict[tuple[str, str], dict[tuple[str, int], Training]] = {}
    for one in trainings:
        found.setdefault((one.task, one.objective), {})[one.system, one.workers] = one
    return [list(ways.values()) for ways in found.values() if len(ways) > 1]


def unequal(group: Sequence[Training]) -> bool:
    """Whether the runs of one task did not reach the same objective."""
    values = [one.value for one in group]
    return max(values) - min(values) > TOLERANCE * max(1.0, max(map(abs, values)))


def advice_of(group: Sequence[Training]) -> list[Advice]:
    """What a group says. Runs that did not reach the same objective give no advice."""
    if unequal(group):
        return [Advice("")]
    found = [_best(group, "samples/s", lambda one: one.rate, True)]
    found.append(_best(group, "s of the workers", lambda one: one.run_seconds, False))
    for one in group:
        twin = next((other for other in group if other.system == one.system and other.workers == 1), None)
        if twin and one.workers > 1:
            said = f"{one.system}: {one.workers} workers are {one.rate / twin.rate:.2f} times as fast as one"
            found.append(Advice(said, (one, twin)))
    return found


def _best(group: Sequence[Training], unit: str, figure: Any, most: bool) -> Advice:
    ranked = sorted(group, key=figure, reverse=most)
    first, second = ranked[:2]
    texts = [f"{one.system}, {one.workers} workers: {number(figure(one))} {unit}" for one in (first, second)]
    return Advice(f"{texts[0]}; next {texts[1]}", (first, second))
