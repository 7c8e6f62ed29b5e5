"""Runs several recipes, or modes of one, on the same task and compares their results.

Run: make compare RECIPES="horovod pytorch tensorflow" [ARGS="recipe.num_epochs=4"]
     make compare RECIPES="pytorch:recipe.mode=single pytorch:recipe.mode=fsdp" ARGS="scale.max_steps=100"
"""

import datetime
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from cookbook import ROOT, UserError, run_folder
from cookbook.programs import run_program
from cookbook.report import pages
from cookbook.report.console import console, print_table
from cookbook.settings import choices, compose_recipe

ALIKE = ("seed", "num_epochs", "global_batch_size", "max_rows", "max_steps", "data_dir")  # what makes a comparison fair

Content = Mapping[str, Any]  # a run.json
Member = tuple[str, Path, Content]  # (label, run folder, run.json)


def compare(entries: Sequence[str], common: Iterable[str], root: str = "outputs") -> tuple[Path, list[str]]:
    """Runs each entry ("NAME[:key=value...]") with the common overrides; returns (path of the page, problems)."""
    if len(entries) < 2:
        raise UserError('name at least two recipes to compare: make compare RECIPES="horovod pytorch"')
    common = list(common)
    roots = [word.removeprefix("output_root=").strip("'\"") for word in common if word.startswith("output_root=")]
    root, common = (roots or [root])[-1], [word for word in common if not word.startswith("output_root=")]
    planned: list[tuple[str, list[str]]] = []
    for entry in entries:
        name, *own = entry.split(":")
        argv = [f"recipe={name}", *own, *common]
        choices.check_choices(argv)
        compose_recipe(name, argv[1:])  # a mistake is an error now, not after the first run
        planned.append((entry.replace("recipe.", ""), argv))
    folder = Path(root).absolute() / "compare" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    members: list[Member] = []
    for number, (label, argv) in enumerate(planned, 1):
        console.print(f"--- {number} of {len(planned)}: {label}", markup=False)
        own_root = folder / f"{number}"
        subprocess.run([sys.executable, "-m", "cookbook", *argv, f"output_root={own_root}", "resume=never"], cwd=ROOT)
        name = argv[0].removeprefix("recipe=")
        made = run_folder.newest(own_root, name) or own_root / name
        members.append((label, made.resolve(), run_folder.load(made)))
    rows, problems = table_of(members), problems_of(members)
    page = pages.write_compare_page(folder, members, rows, losses_per_epoch(members), problems)
    show(rows, problems)
    return page, problems


def problems_of(members: Sequence[Member]) -> list[str]:
    """What speaks against the comparison: runs that do not count, and settings in which they differ."""
    good = [member for member in members if member[2].get("status") == "ok"]
    bad = [member for member in members if member[2].get("status") != "ok"]
    problems = [f"{label}: {content.get('reason') or 'it never began'}" for label, _, content in bad]
    configs = {label: yaml.safe_load((folder / "config.yaml").read_text()) for label, folder, _ in good}
    for key in ALIKE:
        values = {label: config.get(key) for label, config in configs.items()}
        if len(set(map(str, values.values()))) > 1:
            each = ", ".join(f"{value} in {label}" for label, value in values.items())
            problems.append(f"not like for like: {key} is {each}")
    return problems


def curve(content: Content, name: str = "train/loss") -> dict[int, float]:
    """{step: value} of a curve; empty where the run has none."""
    return dict(map(tuple, content.get("curves", {}).get(name, [])))


def difference(reference: Mapping[int, float], other: Mapping[int, float]) -> tuple[float | None, int]:
    """(largest relative difference, number of steps) of the two loss curves at the steps that both have."""
    shared = sorted(reference.keys() & other.keys())
    if not shared:
        return None, 0
    return max(abs(other[step] - reference[step]) / max(abs(reference[step]), 1e-12) for step in shared), len(shared)


def table_of(members: Sequence[Member]) -> list[dict[str, Any]]:
    """One row a member, as dictionaries; losses are compared with the first member's."""
    reference = curve(members[0][2])
    return [_row(label, content, reference) for label, _, content in members]


def _row(label: str, content: Content, reference: Mapping[int, float]) -> dict[str, Any]:
    losses, metrics, objective = curve(content), content.get("metrics", {}), content.get("objective", {})
    relative, shared = difference(reference, losses)
    return {
        "run": label,
        "status": content.get("status", "failed"),
        "workers": content.get("world_size", 0),
        "first loss": next(iter(losses.values()), None),
        "last loss": metrics.get("train/loss"),
        "max relative loss difference": relative,
        "points compared": shared,
        objective.get("name", "objective"): objective.get("value"),
        "samples/s": metrics.get("samples_per_second"),
        "seconds": content.get("seconds", {}).get("total"),
    }


def losses_per_epoch(members: Sequence[Member], most: int = 30) -> list[dict[str, Any]]:
    """Rows {step, label: loss, ...}; of a long curve only about `most` steps."""
    steps = sorted({step for _, _, content in members for step in curve(content)})
    thinned = steps[:: max(1, len(steps) // most)]
    thinned += [] if not steps or thinned[-1] == steps[-1] else [steps[-1]]
    return [{"step": step, **{label: curve(content).get(step) for label, _, content in members}} for step in thinned]


def show(rows: Sequence[Mapping[str, Any]], problems: Iterable[str]) -> None:
    """Prints the table and the problems."""
    table = Table(title="comparison", title_justify="left")
    for key in rows[0]:
        table.add_column(key, justify="left" if key in ("run", "status") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else pages.number(value) for value in row.values()))
    print_table(table, width=170)
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)


def main(argv: Sequence[str]) -> int:
    page, problems = compare(argv[0].split() if argv else [], argv[1:])
    print(f"report {page}")
    return 1 if problems else 0


if __name__ == "__main__":
    run_program(main)
