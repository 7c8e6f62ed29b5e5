"""Copies a recipe out of the cookbook so that it runs by itself.

Run: make eject RECIPE=horovod TO=../mine [ARGS="key=value"]
"""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from cookbook import ROOT, UserError, redact, require_recipe, settings, systems
from cookbook.job import Job
from cookbook.prepare import datasets
from cookbook.prepare.environments import lock_of
from cookbook.prepare.tools import PYTHON
from cookbook.words import words_of_make

HERE = "/HERE"  # stands for the copy's folder until the command is a template
COUNT = 104_729  # stands for the number of workers until then


def eject(recipe: str, to: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Writes the recipe's program, composed settings, data builder, lock, test and a Makefile into an empty folder."""
    source, target = ROOT / "recipes" / recipe, Path(to).expanduser().absolute()
    require_recipe(recipe)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"TO={target} is not an empty folder; choose another one: nothing is ever overwritten")
    config, choices = settings.compose_recipe(recipe, overrides)
    if secrets := redact.secrets_of(config):
        raise UserError(
            f"{', '.join(secrets)}: a copy keeps no secrets; leave it out, and give it to the copy's program when it "
            "runs"
        )
    variant = config["recipe"]["driver"].get("variant")
    flat = settings.worker_settings(config, f"dataset/{config['data']['builder']}", "outputs/run")
    num_workers = config["cluster"]["num_workers"]
    config["cluster"]["num_workers"] = COUNT
    job = Job(config, source, Path(HERE, ".venv/bin/python"), Path(HERE))
    (process,) = systems.load(job.system).on_local(job)

    def as_template(text: str) -> str:
        """The text for a Makefile. A dollar sign is doubled, or make would take it for a variable."""
        variables = {str(source): "$(CURDIR)", HERE: "$(CURDIR)", str(COUNT): "$(NUM_WORKERS)"}
        text = text.replace("$", "$$")
        for value, variable in variables.items():
            text = text.replace(value, variable)
        return text

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ignored = shutil.ignore_patterns("README.md", "__pycache__")
    shutil.copytree(source, partial, ignore=ignored)
    sources = "".join(path.read_text() for path in source.glob("*.py"))
    # The cookbook's own launchers, which the command or one of the recipe's programs starts or imports.
    used = [*process.argv, *re.findall(r'(?:"-m", "|^from )(\w+)', sources, re.MULTILINE)]
    launchers = {name for name in ("tfrun", "rayrun", "netrun") if name in used}
    storage = ["storage"] if "storage" in used else []
    for name in ["runrecord", *storage, *launchers, *(["loopback"] if launchers else [])]:
        shutil.copy(ROOT / f"runrecord/{name}.py", partial)
    (partial / "dataset").mkdir()
    for file in datasets.builder_files(config["data"]["builder"]) if config["data"]["builder"] else []:
        shutil.copy(file, partial / "dataset")
    (partial / "config.yaml").write_text(settings.commented_yaml(flat, choices))
    parameters = {"download_dir": "dataset/downloads"} if "download_dir" in config["data"]["parameters"] else {}
    parameters = config["data"]["parameters"] | parameters
    if parameters.get("path") and "://" not in parameters["path"]:
        parameters["path"] = str(Path(parameters["path"]).expanduser().absolute())
    scripts = {as_template(path): content for path, content in process.files.items()}
    loader = jinja2.FileSystemLoader(ROOT / "cookbook/tools/eject_templates")
    templates = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    for template in templates.list_templates():
        text = templates.get_template(template).render(
            recipe=recipe,
            num_workers=num_workers,
            python=PYTHON,
            lock=lock_of(recipe, variant).name,
            command=as_template(process.shell_command),
            builder=config["data"]["builder"],
            parameters=" ".join(shlex.quote(word).replace("$", "$$") for word in datasets.as_arguments(parameters)),
            builds=(source / "build_wheels.py").exists(),
            overrides=(source / "overrides.txt").exists(),
            scripts=[Path(path).name for path in scripts],
        )
        (partial / template.removesuffix(".j2")).write_text(text)
    for path, content in scripts.items():
        file = partial / Path(path).name
        # Horovod's script lists two hosts with half of the workers each, the first half rounded up.
        larger, smaller = str(-(-num_workers // 2)), str(num_workers // 2)
        file.write_text(content.replace(str(-(-COUNT // 2)), larger).replace(str(COUNT // 2), smaller))
        file.chmod(0o755)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return target


def main(argv: Sequence[str]) -> None:
    try:
        argv = words_of_make(argv)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if len(argv) < 2 or not argv[0] or not argv[1]:
        raise SystemExit('usage: make eject RECIPE=horovod TO=../mine [ARGS="recipe.num_epochs=3 data=images"]')
    try:
        target = eject(argv[0], argv[1], argv[2:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{target}: " + ", ".join(sorted(path.name for path in target.iterdir())))
    print(f"next: cd {target} && make setup run test")


if __name__ == "__main__":
    main(sys.argv[1:])
