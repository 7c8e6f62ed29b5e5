"""What Hydra does not check: that a setting keeps the kind of value that its file gives it; and settings files with comments."""

import difflib
import json
import os
import re
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from cookbook import ROOT, UserError
from runrecord import same_kind

CONF = ROOT / "conf"


def refuse_to_be_a_worker(environment=os.environ):
    """Raises UserError when the driver itself was started once per rank."""
    for name, launcher in (
        ("RANK", "torchrun"),
        ("OMPI_COMM_WORLD_RANK", "mpirun"),
        ("HOROVOD_RANK", "horovodrun"),
        ("PMI_RANK", "mpiexec"),
    ):
        if name in environment:
            raise UserError(
                f"{name}={environment[name]}: the driver was started by {launcher}, once per rank. It starts the workers itself: "
                "run `python -m cookbook recipe=...` alone. (Workers by hand: the command that each run prints, with main.py.)"
            )


def check_choices(arguments):
    """Raises UserError, with the nearest name, when a group=choice names a file that is not there, or no recipe is named."""
    chosen = dict(re.match(r"(\w+)=(.*)", word).groups() for word in arguments if re.match(r"(\w+)=", word))
    groups = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
    }
    if "recipe" not in chosen:
        raise UserError(f"which recipe? Say recipe=NAME; there are: {', '.join(groups['recipe'])}")
    for group, names in groups.items():
        for name in chosen.get(group, "").split(","):
            if name and name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5)
                hint = f"; did you mean {group}={near[0]}?" if near else ""
                raise UserError(f"{group}={name} does not exist{hint} There are: {', '.join(names)}")


def check_kinds(config, choices):
    """Raises UserError when an override is of another kind than the value in the file that defines the setting."""
    if config["resume"] not in ("auto", "never") and not (Path(config["resume"]) / "run.json").exists():
        raise UserError(f"resume={config['resume']!r}: expected auto or never, or the folder of a run to go on with")
    for key, value in config["scale"].items():
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"scale.{key}={value!r}: expected a whole number of at least 1, or null for no limit")
    sources = [(group, CONF / group / f"{name}.yaml") for group, name in choices.items()]
    for group, path in [("", CONF / "config.yaml"), *sources]:
        if path.exists():
            _compare(yaml.safe_load(path.read_text()) or {}, config[group] if group else config, group, path)


def _compare(defaults, values, prefix, path):
    for key, default in defaults.items():
        name = f"{prefix}.{key}" if prefix else key
        if key in ("defaults", "hydra") or key not in values or (isinstance(default, str) and "${" in default):
            continue
        value = values[key]
        if isinstance(default, dict) and isinstance(value, dict):
            _compare(default, value, name, path)
        elif not same_kind(value, default):
            raise UserError(
                f"{name}={value!r}: expected {_kind(default)}, like the default {default!r} in {path.relative_to(ROOT)}"
            )


def _kind(value):
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}.get(
        type(value), type(value).__name__
    )


def without_password(text):
    """An override as it may stand in a record or a report: the password in an address (a tracker's, say) has no place there."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", text)


def plain(config):
    """The composed settings as plain, resolved dictionaries; what the driver needs to know of the chosen mode is filled in."""
    made = OmegaConf.to_container(config, resolve=True)
    driver = made["recipe"]["driver"]
    if "switch" in driver:
        chosen, modes = made["recipe"][driver["switch"]], driver.pop("modes")
        if chosen not in modes:
            raise UserError(f"recipe.{driver['switch']}={chosen!r} is unknown; expected one of: {', '.join(modes)}")
        driver.update(modes[chosen], variant=chosen)
    return made


def with_defaults_of_mode(words):
    """Overrides, preceded by those that belong to the recipe's chosen mode; what the words themselves set, wins.

    A mode (`driver.switch` names the setting that chooses it, `driver.modes` has what it brings) may work on other data than
    its recipe's default, and Hydra must know that before it composes.
    """
    chosen = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    path = CONF / f"recipe/{chosen.get('recipe')}.yaml"
    driver = yaml.safe_load(path.read_text())["driver"] if path.exists() else {}
    if "switch" not in driver:
        return list(words)
    names = chosen.get(f"recipe.{driver['switch']}", "").split(",")
    wanted = [driver["modes"].get(name, {}).get("overrides", {}) for name in names]
    wanted = [{key: value for key, value in overrides.items() if key not in chosen} for overrides in wanted]
    if any(overrides != wanted[0] for overrides in wanted):
        raise UserError(
            f"recipe.{driver['switch']}={','.join(names)} needs different settings ({wanted}): sweep over modes that share "
            "theirs, or say them all on the command line"
        )
    return [f"{key}={value}" for key, value in wanted[0].items()] + list(words)


def comments_of(*files):
    """{key: comment} of the one-line comments in settings files; the first file that explains a key wins."""
    found = {}
    for file in files:
        for key, comment in re.findall(r"^\s*(\w+):[^#\n]*#\s*(.+)$", file.read_text(), re.MULTILINE):
            found.setdefault(key, comment)
    return found


FOLDER_COMMENTS = {
    "data_dir": "the dataset folder, with its manifest.json",
    "output_dir": "where this run writes its record",
    "checkpoint_dir": "where checkpoints are written, and looked for at the start",
}


def commented_yaml(settings, choices):
    """Flat settings as YAML, each with the comment that explains it where it is defined."""
    files = [CONF / group / f"{choices[group]}.yaml" for group in ("recipe", "scale")] + [CONF / "config.yaml"]
    comments = FOLDER_COMMENTS | comments_of(*files)
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    width = min(48, max(map(len, lines)))
    return "".join(
        f"{line:<{width}}  # {comments[key]}\n" if key in comments else f"{line}\n"
        for key, line in zip(settings, lines, strict=True)
    )
