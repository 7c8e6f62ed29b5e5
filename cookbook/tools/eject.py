"""Copies a recipe out of the cookbook so that it runs by itself.

Run: make eject RECIPE=horovod TO=../mine [ARGS="key=value"]
"""

import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jinja2

from cookbook import ROOT, UserError, redact, require_recipe, settings, systems
from cookbook.job import Job, Process, Settings
from cookbook.prepare import datasets
from cookbook.prepare.locks import lock_of
from cookbook.prepare.tools import PYTHON
from cookbook.programs import run_program

HERE = "/HE RE"  # stands for the copy's folder until the command is a template; the blank brings quotes around it
ALWAYS = ("seed", "output_dir", "checkpoint_dir")  # settings that each copy has; of the others those that it reads
COUNTS = (1_000_000, 2_000_000, 1_000_001)  # of workers: what they do to the command's numbers makes it a template


@dataclass(frozen=True)
class Copied:
    """What of a recipe goes into its copy."""

    recipe: str
    process: Process  # what starts it here
    command: str  # what starts it in the copy, as a Makefile has it
    fixed: frozenset[str]  # settings that this command was made from
    num_workers: int
    lock: Path
    builder: str | None  # of its dataset
    parameters: dict[str, Any]  # of that

    @property
    def source(self) -> Path:
        return ROOT / "recipes" / self.recipe

    def programs(self) -> str:
        """The text of all programs of the copy."""
        paths = [path for path in self.source.glob("*.py") if path.name != "test_recipe.py"]
        return "".join(path.read_text() for path in paths)

    def typed(self, folder: str) -> str:
        """What starts the copy in `folder`, as one types it."""
        return at(self.process, self.source, folder).shell_command


class Noted(dict[str, Any]):
    """Settings that note which of them were asked for."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


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
    if not config["data"]["builder"]:
        del flat["data_dir"]
    programs = copied.programs()
    flat = {k: v for k, v in flat.items() if k in ALWAYS or re.search(rf"\b{k}\b", programs)}
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(copied.source, partial, ignore=shutil.ignore_patterns("README.md", "__pycache__"))
    for folder, files in (("", modules_of(copied)), ("dataset", builder_files(copied))):
        for file in files:
            (partial / folder).mkdir(exist_ok=True)
            shutil.copy(file, partial / folder)
    (partial / "config.yaml").write_text(settings.commented_yaml(flat, choices, copied.fixed))
    for name, text in rendered(copied, flat, overrides).items():
        (partial / name).write_text(text)
    for path, content in copied.process.files.items():
        (partial / Path(path).name).write_text(content)
        (partial / Path(path).name).chmod(0o755)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return target


def what_to_copy(recipe: str, config: Settings) -> Copied:
    num_workers, data = config["cluster"]["num_workers"], config["data"]
    noted = Noted(config["recipe"])

    def process(count: int) -> Process:
        counted = {**config, "recipe": noted, "cluster": {**config["cluster"], "num_workers": count}}
        job = Job(counted, ROOT / "recipes" / recipe, Path(HERE, ".venv/bin/python"), Path(HERE))
        (made,) = systems.load(job.system).on_local(job)
        return made

    source = ROOT / "recipes" / recipe
    command = as_template([at(process(count), source, HERE).shell_command for count in COUNTS])
    here, asked = process(num_workers), (noted.asked | {"num_workers", "mode"}) - {"driver"}
    parameters = dict(data["parameters"])
    if "download_dir" in parameters:
        parameters["download_dir"] = "dataset/downloads"
    if parameters.get("path") and "://" not in parameters["path"]:
        parameters["path"] = str(Path(parameters["path"]).expanduser().absolute())
    lock = lock_of(recipe, config["recipe"]["driver"].get("variant"))
    return Copied(
        recipe, here, command, frozenset(asked & noted.keys()), num_workers, lock, data["builder"], parameters
    )


def at(process: Process, source: Path, folder: str) -> Process:
    """The process with the copy in `folder`."""

    def there(text: str) -> str:
        return text.replace(str(source), folder).replace(HERE, folder)

    own = {name: value for name, value in process.environment.items() if name != "LD_LIBRARY_PATH"}  # this shell's
    variables = {name: there(value) for name, value in own.items()}
    return replace(process, argv=[there(word) for word in process.argv], environment=variables)


def as_template(commands: Sequence[str]) -> str:
    """One command for a Makefile, of those for the numbers of workers in COUNTS.

    A number that changes with them becomes a formula of NUM_WORKERS. A dollar sign is doubled, or make would take it
    for a variable.
    """
    made = []
    for parts in zip(*(re.split(r"(\d+)", text) for text in commands), strict=True):
        if len(set(parts)) == 1:
            made.append(parts[0].replace("$", "$$"))
            continue
        small, large, odd = map(int, parts)
        slope = Fraction(large - small, COUNTS[1] - COUNTS[0])
        more = small - slope * COUNTS[0]
        formula = "$(NUM_WORKERS)"
        if slope.denominator > 1:  # workers on two nodes: the half, rounded up or down
            up = " + 1" if odd > slope * COUNTS[2] + more else ""
            formula = f"({formula}{up}) / {slope.denominator}"
        formula += (f" * {slope.numerator}" if slope.numerator > 1 else "") + (f" + {more}" if more else "")
        made.append(formula if formula == "$(NUM_WORKERS)" else f"$(shell echo $$(( {formula} )))")
    return "".join(made).replace(HERE, "$(CURDIR)")


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


def rendered(copied: Copied, flat: Settings, overrides: Sequence[str]) -> dict[str, str]:
    """{name: text} of the files that are made from templates: the Makefile and its like."""
    counts = ["num_epochs", "num_iterations", "budget_epochs", "num_trees", "num_clusters"]
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
        "command": copied.command,
        "typed": copied.typed("."),
        "fixed": sorted(copied.fixed & flat.keys()),
        "in_command": sorted(copied.fixed - {"num_workers"}),
        "example": next(f"{name}=3" for name in counts if name in flat),
        "changed": shlex.join(overrides),
        "builder": copied.builder,
        "parameters": " ".join(
            shlex.quote(word).replace("$", "$$") for word in datasets.as_arguments(copied.parameters)
        ),
        "builds": (copied.source / "build_wheels.py").exists(),
        "overrides": (copied.source / "overrides.txt").exists(),
    }
    names = templates.list_templates()
    return {name.removesuffix(".j2"): templates.get_template(name).render(values) for name in names}


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2 or not argv[0] or not argv[1]:
        raise SystemExit('usage: make eject RECIPE=horovod TO=../mine [ARGS="recipe.num_epochs=3 data=images"]')
    target = eject(argv[0], argv[1], argv[2:])
    print(f"{target}: " + ", ".join(sorted(path.name for path in target.iterdir())))
    print(f"next: cd {shlex.quote(str(target))} && make setup run{'' if argv[2:] else ' test'}")


if __name__ == "__main__":
    run_program(main)
