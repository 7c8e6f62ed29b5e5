"""Five questions, and an answer: which recipe, the command, why, and when to take something else. Run: make choose

make choose                                                        asks on the terminal
make choose ARGS="task=tables rows=3e7 machines=one framework=pandas team=alone"

The reasons are figures of this machine's own runs, where `make guide` or a recipe has made any.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook import UserError, run_folder
from cookbook.programs import run_program
from cookbook.report import pages
from cookbook.report.pages import number as shown
from cookbook.tools import provenance
from guide import advice, results
from guide.settings import known, pairs_of
from guide.tasks import task_named

QUESTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "task": (
        "What is to be done?",
        {
            "tables": "filter, join and sum up tables",
            "logs": "parse logs, and find what stands out",
            "features": "raw rows to features, and linear or tree models",
            "images": "train a network on images",
            "language": "train a language model",
            "feeding": "bring Parquet to a network's training",
            "search": "search for good hyperparameters",
            "reinforcement": "learn by trying, in an environment",
            "pipeline": "from rows to a served model, step by step",
        },
    ),
    "rows": ("How many rows (or samples) are there? A number, such as 3e7", {}),
    "machines": (
        "What does it run on?",
        {
            "one": "one machine",
            "several": "several machines, by ssh",
            "slurm": "a cluster run by Slurm",
            "kubernetes": "a Kubernetes cluster",
        },
    ),
    "framework": (
        "What do you know, or have code in?",
        {
            "any": "no matter",
            "pandas": "pandas, NumPy, scikit-learn",
            "sql": "SQL, or Spark",
            "pytorch": "PyTorch",
            "tensorflow": "TensorFlow, Keras",
            "ray": "Ray",
        },
    ),
    "team": (
        "Who keeps it running?",
        {"alone": "you alone", "group": "a few people", "platform": "a team that runs a platform"},
    ),
}
# The guide's task of the same kind, and what the recipe is called there.
OTHER_TASKS = {"tables": "flights", "logs": "logs", "feeding": "feeding", "features": "models", "search": "search"}
SYSTEM_OF = {"ray_tune": "ray", "ray_train": "ray"}


@dataclass(frozen=True)
class Choice:
    """The answer."""

    recipe: str
    command: str
    reasons: tuple[str, ...]
    otherwise: tuple[str, ...]  # "condition: what to take then"

    def __str__(self) -> str:
        lines = [f"take         {self.recipe}", f"command      {self.command}"]
        lines += [f"{'because' if not n else '':<12} {reason}" for n, reason in enumerate(self.reasons)]
        lines += [f"{'otherwise' if not n else '':<12} {other}" for n, other in enumerate(self.otherwise)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Known:
    """What this machine has measured."""

    runs: Sequence[results.Run] = ()  # of the guide
    recipes: Sequence[Mapping[str, Any]] = ()  # the run.json of recipes' runs, oldest first


def checked(given: Mapping[str, str]) -> dict[str, str]:
    """The answers, checked. Raises UserError, with the nearest name, for one that is unknown."""
    for key, text in given.items():
        if key == "rows":
            rows_of(text)
        else:
            known(key, text, QUESTIONS[key][1])
    return dict(given)


def rows_of(text: str) -> int:
    """A number of rows: 30000000, 30_000_000 or 3e7."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
        if not 1 <= value < 1e15:
            raise ValueError
    except ValueError:
        raise UserError(f"rows={text}: expected a number of rows, 1 or more, such as 30000 or 3e7") from None
    return int(value)


def choose(answers: Mapping[str, str], here: Known) -> Choice:
    """The choice for five answers. Raises UserError where one is missing."""
    if missing := [key for key in QUESTIONS if key not in answers]:
        raise UserError(f'not answered: {", ".join(missing)}; make choose asks, ARGS="key=value ..." answers')
    task, rows = answers["task"], rows_of(answers["rows"])
    recipe, words, otherwise = _recipe_of(task, answers)
    command = f"make recipe-{recipe}"
    words = [*words, *_place_of(recipe, answers["machines"])]
    command += f' ARGS="{" ".join(words)}"' if words else ""
    if task in OTHER_TASKS:
        reasons, more = _from_guide(OTHER_TASKS[task], recipe, rows, here)
        if more and answers["machines"] == "one":  # the fastest tool of one process comes first
            reasons.insert(0, f"you may need no cluster for this; {more.pop(0)}")
    else:
        reasons, more = _from_recipes(recipe, here), []
    return Choice(recipe, command, tuple(reasons), (*more, *otherwise))


def _place_of(recipe: str, machines: str) -> list[str]:
    """The settings that bring a recipe to these machines; the words in capitals, and hosts.yaml, are yours to fill in.

    Kubeflow's pipelines run on this machine or on Kubernetes, and have an image of their own.
    """
    if recipe == "kubeflow" and machines != "kubernetes":
        return []
    image = f"image=REGISTRY/cookbook-{recipe.replace('_', '-')}:0.1.0"
    places = {
        "several": ["cluster=hosts", "cluster.inventory=hosts.yaml"],
        "slurm": ["cluster=slurm", "cluster.num_nodes=2"],
        "kubernetes": ["cluster=kubernetes", f"{'recipe' if recipe == 'kubeflow' else 'cluster'}.{image}"],
    }
    return places.get(machines, [])


def _recipe_of(task: str, answers: Mapping[str, str]) -> tuple[str, list[str], list[str]]:
    """(recipe, its overrides, what to take otherwise) by what each recipe does."""
    framework, machines, team = answers["framework"], answers["machines"], answers["team"]
    if task in ("tables", "logs", "features"):
        usual = "spark" if task == "logs" else "dask"
        chosen = {"pandas": "dask", "sql": "spark"}.get(framework, usual)
        if chosen == "dask" and task == "logs":
            chosen = "spark"  # the recipe that parses logs
        words = {"spark": ["recipe.steps=[ingest]"] if task == "tables" else [], "dask": []}[chosen]
        if task == "features":
            chosen, words = "dask", []
        return chosen, words, ["your code is pandas: dask runs it on parts; it is SQL: spark"]
    if task == "images":
        chosen = {"tensorflow": "tensorflow", "ray": "ray_train"}.get(framework, "pytorch")
        return (
            chosen,
            [],
            [
                "you want one way for PyTorch and TensorFlow, or MPI is there: horovod",
                "Ray runs the rest of your work: ray_train",
                "the network does not fit into one device: pytorch with recipe.mode=fsdp",
            ],
        )
    if task == "language":
        return (
            "pytorch",
            ["recipe.mode=fsdp"],
            [
                "a single layer is too large or too slow: recipe.mode=tensor_parallel",
                "the network is deep, and the links are slow: recipe.mode=pipeline",
            ],
        )
    if task == "feeding":
        return (
            "petastorm",
            ["recipe.reader=arrow"],
            ["the rows hold arrays or pictures with a codec: recipe.reader=row"],
        )
    if task == "search":
        if machines == "kubernetes" and team == "platform":
            return "kubeflow", [], ["without a platform: ray_tune does the same search on any machine"]
        return "ray_tune", [], ["a platform team runs Kubeflow on Kubernetes: kubeflow, whose trials are pods"]
    if task == "reinforcement":
        return "ray_rllib", [], ["no other recipe learns in an environment"]
    return "kubeflow", [], ["nobody runs Kubernetes: the recipe of the step that takes longest, and a shell script"]


def _from_guide(name: str, recipe: str, rows: int, here: Known) -> tuple[list[str], list[str]]:
    """(reasons, what to take otherwise) from the runs of the guide's task."""
    measured = advice.Measured(task_named(name), here.runs)
    unit, system = measured.task.unit, SYSTEM_OF.get(recipe, recipe)
    way = next((way for way in measured.most if way[0] == system), None)
    if way is None:
        return [f'{recipe} does this; figures: not measured here (make guide ARGS="smoke tasks={name}")'], []
    reasons, more = [f"{recipe}: {_figure(measured, way, rows)}"], []
    others = sorted((one for one in measured.most if one != way), key=lambda one: _seconds(measured, one, rows))
    for other in others:
        text = f"{other[0]}: {_figure(measured, other, rows)}"
        faster = _seconds(measured, other, rows) < _seconds(measured, way, rows)
        if faster and not measured.task.system(other[0]).distributed:
            more.append(f"one machine holds the data: {text}")
        elif faster:
            reasons.append(f"faster here, for other needs: {text}")
        else:
            reasons.append(f"slower here: {text}")
    return [f"{measured.task.title}, {rows:,} {unit}", *reasons], more


def _seconds(measured: advice.Measured, way: tuple[str, int], rows: int) -> float:
    line = measured.line(way)
    return line.at(rows) if line else measured.points(way)[0][1]


def _figure(measured: advice.Measured, way: tuple[str, int], rows: int) -> str:
    """Seconds to the first result for so many rows: measured, or what the line through the measured points says."""
    sizes = measured.sizes(way)
    runs = measured.of(way)
    known_runs = f"{len(runs)} run{'s' if len(runs) > 1 else ''} here"
    known_runs += " while it was busy" if any(run.was_busy for run in runs) else ""
    if rows in sizes:
        seconds = measured.median(way, rows, advice.first) or 0.0
        return f"{shown(seconds)} s to the first result (measured, {known_runs})"
    if len(sizes) < 2:
        seconds = measured.median(way, sizes[0], advice.first) or 0.0
        return f"{shown(seconds)} s for {sizes[0]:,} (measured, {known_runs}); for {rows:,} not measured here"
    kind = "between measured sizes" if sizes[0] <= rows <= sizes[-1] else "extrapolated"
    return (
        f"about {shown(_seconds(measured, way, rows))} s to the first result ({kind}, from {known_runs} of "
        f"{sizes[0]:,} to {sizes[-1]:,})"
    )


def _from_recipes(recipe: str, here: Known) -> list[str]:
    """Reasons from the recipe's last good run on this machine."""
    good = [content for content in here.recipes if content.get("recipe") == recipe and content.get("status") == "ok"]
    if not good:
        return [f"{recipe} does this; figures: not measured here (make recipe-{recipe})"]
    last = good[-1]
    objective, rate = last["objective"], last["metrics"].get("samples_per_second")
    said = [f"{last['world_size']} workers, {shown(last['seconds']['run'])} s"]
    if objective.get("value") is not None:
        said.append(f"{objective['name']} {shown(objective['value'])}")
    if rate:
        said.append(f"{shown(rate)} samples/s")
    return [f"its last run here: {', '.join(said)} ({last['folder']})"]


def of_this_machine(root: Path) -> Known:
    """What the folder of outputs has of this class of machine."""
    machine = provenance.machine_class(pages.machine())
    runs = results.newest(results.read(root / "guide/results.jsonl"), machine)
    contents = [content for _, content in run_folder.load_all(root)] if root.is_dir() else []
    mine = [content for content in contents if provenance.machine_class(content.get("machine", "")) == machine]
    return Known(runs, mine)


def asked(given: Mapping[str, str]) -> dict[str, str]:
    """The answers, with a question on the terminal for each that is not given. An unknown answer is asked again."""
    answers = dict(given)
    for key, (question, choices) in QUESTIONS.items():
        while key not in answers:
            print(question)
            for name, meaning in choices.items():
                print(f"  {name:<14} {meaning}")
            try:
                answers |= checked({key: input(f"{key}: ").strip()})
            except UserError as error:
                print(error)
    return answers


def usage() -> str:
    lines = ['usage: make choose [ARGS="key=value ..."]; what is not given is asked on the terminal', ""]
    for key, (question, choices) in QUESTIONS.items():
        lines.append(f"  {key:<12} {question}")
        lines += [f"  {'':<12}   {name:<14} {meaning}" for name, meaning in choices.items()]
    return "\n".join([*lines, "  output_root  the folder with this machine's runs; outputs"])


def main(argv: Sequence[str]) -> None:
    if {"help", "--help", "-h"} & set(argv):
        print(usage())
        return
    given = pairs_of(argv, [*QUESTIONS, "output_root"])
    root = Path(given.pop("output_root", "outputs"))
    answers = checked(given)
    if len(answers) < len(QUESTIONS) and not sys.stdin.isatty():
        missing = [key for key in QUESTIONS if key not in answers]
        raise UserError(f"not answered: {', '.join(missing)}; without a terminal all five are settings in ARGS")
    print(choose(asked(answers), of_this_machine(root)))


if __name__ == "__main__":
    run_program(main)
