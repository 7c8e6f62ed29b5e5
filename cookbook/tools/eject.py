"""Copies a recipe out of the cookbook so that it runs by itself.

Run: make eject RECIPE=horovod TO=../mine [ARGS="key=value"]
"""

import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from cookbook import ROOT, UserError, redact, require_recipe, settings, systems
from cookbook.job import Job, Process, Settings
from cookbook.prepare import datasets
from cookbook.prepare.environments import lock_of
from cookbook.prepare.tools import PYTHON
from cookbook.words import run_program

HERE = "/HERE"  # stands for the copy's folder until the command is a template
COUNT = 104_729  # stands for the number of workers until then


@dataclass(frozen=True)
class Copied:
    """What of a recipe goes into its copy."""

    recipe: str
    process: Process  # the command that starts it here
    num_workers: int
    lock: Path
    builder: str | None  # of its dataset
    parameters: dict[str, Any]  # of that

    @property
    def source(self) -> Path:
        return ROOT / "recipes" / self.recipe

    def as_template(self, text: str) -> str:
        """The text for a Makefile. A dollar sign is doubled, or make would take it for a variable."""
        variables = {str(self.source): "$(CURDIR)", HERE: "$(CURDIR)", str(COUNT): "$(NUM_WORKERS)"}
        text = text.replace("$", "$$")
        for value, variable in variables.items():
            text = text.replace(value, variable)
        return text

    @property
    def scripts(self) -> dict[str, str]:
        """{name: content} of the scripts that the command starts."""
        # Horovod's lists two hosts with half of the workers each, the first half rounded up.
        halves = [(str(-(-number // 2)), str(number // 2)) for number in (COUNT, self.num_workers)]
        found = {}
        for path, content in self.process.files.items():
            for before, now in zip(*halves, strict=True):
                content = content.replace(before, now)
            found[Path(path).name] = content
        return found


def eject(recipe: str, to: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Writes the recipe's program, composed settings, data builder, lock, test and a Makefile into an empty folder.

    Returns the folder. Raises UserError for one that is not empty, and for settings with secrets in them.
    """
    target = Path(to).expanduser().absolute()
    require_recipe(recipe)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"TO={target} is not an empty folder; choose another one: nothing is ever overwritten")
    config, choices = settings.compose_recipe(recipe, overrides)
    if secrets := redact.secrets_of(config):
        raise UserError(
            f"{', '.join(secrets)}: a copy keeps no secrets; leave it out, and give it to the copy's program when it "
            "runs"
        )
    flat = settings.worker_settings(config, f"dataset/{config['data']['builder']}", "outputs/run")
    copied = what_to_copy(recipe, config)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(copied.source, partial, ignore=shutil.ignore_patterns("README.md", "__pycache__"))
    (partial / "dataset").mkdir()
    for folder, files in (("", modules_of(copied)), ("dataset", builder_files(copied))):
        for file in files:
            shutil.copy(file, partial / folder)
    (partial / "config.yaml").write_text(settings.commented_yaml(flat, choices))
    for name, text in rendered(copied).items():
        (partial / name).write_text(text)
    for name, content in copied.scripts.items():
        (partial / name).write_text(content)
        (partial / name).chmod(0o755)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return target


def what_to_copy(recipe: str, config: Settings) -> Copied:
    num_workers, data = config["cluster"]["num_workers"], config["data"]
    counted = {**config, "cluster": {**config["cluster"], "num_workers": COUNT}}
    job = Job(counted, ROOT / "recipes" / recipe, Path(HERE, ".venv/bin/python"), Path(HERE))
    (process,) = systems.load(job.system).on_local(job)
    parameters = dict(data["parameters"])
    if "download_dir" in parameters:
        parameters["download_dir"] = "dataset/downloads"
    if parameters.get("path") and "://" not in parameters["path"]:
        parameters["path"] = str(Path(parameters["path"]).expanduser().absolute())
    lock = lock_of(recipe, config["recipe"]["driver"].get("variant"))
    return Copied(recipe, process, num_workers, lock, data["builder"], parameters)


def modules_of(copied: Copied) -> list[Path]:
    """The run record, and the cookbook's own modules that the command or one of the recipe's programs uses."""
    sources = "".join(path.read_text() for path in copied.source.glob("*.py"))
    used = [*copied.process.argv, *re.findall(r'(?:"-m", "|^from )(\w+)', sources, re.MULTILINE)]
    launchers = {name for name in ("tfrun", "rayrun", "netrun") if name in used}
    own = [name for name in ("preempt", "storage") if name in used]
    names = ["runrecord", *own, *sorted(launchers), *(["loopback"] if launchers else [])]
    return [ROOT / f"runrecord/{name}.py" for name in names]


def builder_files(copied: Copied) -> Iterable[Path]:
    return datasets.builder_files(copied.builder) if copied.builder else ()


def rendered(copied: Copied) -> dict[str, str]:
    """{name: text} of the files that are made from templates: the Makefile and its like."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "cookbook/tools/eject_templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    values = {
        "recipe": copied.recipe,
        "num_workers": copied.num_workers,
        "python": PYTHON,
        "lock": copied.lock.name,
        "command": copied.as_template(copied.process.shell_command),
        "builder": copied.builder,
        "parameters": " ".join(
            shlex.quote(word).replace("$", "$$") for word in datasets.as_arguments(copied.parameters)
        ),
        "builds": (copied.source / "build_wheels.py").exists(),
        "overrides": (copied.source / "overrides.txt").exists(),
        "scripts": list(copied.scripts),
    }
    names = templates.list_templates()
    return {name.removesuffix(".j2"): templates.get_template(name).render(values) for name in names}


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2 or not argv[0] or not argv[1]:
        raise SystemExit('usage: make eject RECIPE=horovod TO=../mine [ARGS="recipe.num_epochs=3 data=images"]')
    target = eject(argv[0], argv[1], argv[2:])
    print(f"{target}: " + ", ".join(sorted(path.name for path in target.iterdir())))
    print(f"next: cd {target} && make setup run test")


if __name__ == "__main__":
    run_program(main)
