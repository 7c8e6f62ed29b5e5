"""The command line of a run.

Hydra composes the settings once, they are checked, and `run.py` does the rest.
"""

import json
import locale
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cookbook import (
    ROOT,
    UserError,
    evidence,
    inventory,
    machine,
    places,
    recipes,
    redact,
    resume,
    run_folder,
    settings,
    signals,
    surroundings,
    systems,
)
from cookbook.job import Settings
from cookbook.prepare import doctor
from cookbook.programs import argv_of_make
from cookbook.report import summary
from cookbook.report.console import console
from cookbook.run import Run
from cookbook.settings import checks, choices, files, overrides, quoting
from cookbook.settings.heeded import unheeded
from cookbook.signals import Interrupted
from preempt import Preempted

# (overrides, content of run.json) of the runs of this process: more than one in a sweep.
FINISHED: list[tuple[list[str], dict[str, Any]]] = []


def main() -> None:
    _speak_utf8()
    signals.listen()
    try:
        settings.refuse_to_be_a_worker()
        argv = sys.argv[1:] = argv_of_make(sys.argv[1:])
        if not any(word in ("--help", "-h", "--hydra-help", "--version", "--info", "-i") for word in argv):
            choices.check_choices(argv)
            sys.argv[1:] = overrides.prepared(choices.with_defaults_of_choices(argv))
            if sys.argv[1:2] in (["-m"], ["--multirun"]):
                _make_folder_of_sweeps(argv)
        elif not any(word.startswith("recipe=") for word in argv):
            sys.argv.append(f"recipe={recipes()[0]}")
        hydra.main(config_path=str(files.CONF), config_name="config", version_base="1.3")(run)()
    except UserError as error:
        raise SystemExit(_message(error)) from None
    except Interrupted:
        sys.exit(130)
    except Preempted as error:
        sys.exit(error.code)
    if len(FINISHED) > 1:
        summary.print_sweep(FINISHED)
    if any(content["status"] != "ok" for _, content in FINISHED):
        sys.exit(1)


def _make_folder_of_sweeps(words: Sequence[str]) -> None:
    """Raises UserError where Hydra could not make the folder of a sweep."""
    root = next((word.partition("=")[2] for word in words if word.startswith("output_root=")), "outputs")
    try:
        Path(quoting.unquoted(root)).expanduser().joinpath("sweeps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_root={root} cannot be used: {error.strerror}; choose another") from None


def _speak_utf8() -> None:
    """Starts this program anew where the shell's locale has another encoding: files and names of a run are UTF-8."""
    if not sys.flags.utf8_mode and locale.getencoding() != "UTF-8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def run(composed: DictConfig) -> None:
    """Runs the composed settings."""
    hydra_config = HydraConfig.get()
    chosen = {group: name for group, name in hydra_config.runtime.choices.items() if "/" not in group}
    typed = [redact.redacted_text(word) for word in hydra_config.overrides.task]
    recipe = chosen["recipe"]
    try:
        config = settings.plain(composed)
        checks.check_kinds(config, chosen)
        checks.check_path(config, chosen)
        notes = surroundings.settle(config["cluster"])
        config["cluster"] = inventory.with_hosts(config["cluster"])
        warning = checks.check_workers(config, machine.num_cores())
        driver = config["recipe"]["driver"]
        places.load(config["cluster"]["kind"]).check(config, systems.load(driver["system"]))
        evidence.check_rules(driver["proof"])
        doctor.require(driver["tools"], recipe)
        if any(name.startswith("java") for name in driver["tools"]):
            machine.check_user(os.getuid())
        if config["tracking"]["kind"] != "none":
            from cookbook.report import tracking

            tracking.check(config["tracking"])
        _check_recipe_settings(recipe, config)
        if config["resume"] not in ("auto", "never"):
            resume.check(Path(config["resume"]), recipe, config)
        try:
            this_run = run_folder.open_run(
                config["output_root"], recipe, run_folder.identity(recipe, config), config["resume"]
            )
        except OSError as error:
            name = "output_root" if config["resume"] in ("auto", "never") else "resume"
            raise UserError(f"{name}={config[name]} cannot be used: {error.strerror}; choose another") from None
    except UserError as error:
        if hydra_config.mode != RunMode.MULTIRUN:
            raise SystemExit(_message(error)) from None  # Hydra would add a traceback to any other exception
        console.print(_message(error), markup=False)
        FINISHED.append((typed, {"status": "failed", "reason": redact.redacted_text(str(error))}))
        return
    for note in notes:
        console.print(f"note: {note}", markup=False)
    ignored = unheeded(recipe, config, typed)
    for text in filter(None, [warning, *ignored]):
        console.print(f"warning: {text}", markup=False)
    sweep = str(Path(hydra_config.sweep.dir).absolute()) if hydra_config.mode == RunMode.MULTIRUN else ""
    content = Run(recipe, config, chosen, typed, this_run, sweep, ignored).go().as_dict()
    FINISHED.append((typed, content))
    signals.check()  # one that came while the report was written
    signals.listen()
    if content["interrupted_by"]:
        raise Interrupted(content["reason"])
    if content["status"] == "preempted":
        raise Preempted(content["reason"])
    if signals.NOTICED and hydra_config.mode == RunMode.MULTIRUN:
        raise Interrupted(signals.NOTICED[0])  # this run was over before it took notice; the next one is not begun


def _message(error: UserError) -> str:
    return f"error: {redact.redacted_text(str(error))}"


def _check_recipe_settings(recipe: str, config: Settings) -> None:
    """Runs the recipe's settings.py, where there is one. It refuses settings that make no sense before work begins."""
    program = ROOT / "recipes" / recipe / "settings.py"
    if not program.exists():
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(settings.worker_settings(config, "", ""), file)  # JSON is YAML
        file.flush()
        argv = [sys.executable, str(program), file.name, str(config["cluster"]["num_workers"])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "runrecord")}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(done.stderr.strip())


if __name__ == "__main__":
    main()
