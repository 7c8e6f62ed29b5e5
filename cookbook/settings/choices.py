"""The files that a command line chooses from conf/ (recipe=horovod, scale=smoke), and the settings that these bring."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cookbook import UserError
from cookbook.job import Settings
from cookbook.settings.files import CONF
from cookbook.settings.quoting import as_word


def check_choices(arguments: Sequence[str]) -> None:
    """Raises UserError, with the nearest name, when a group=choice names no file, or when no recipe is named."""
    matches = (re.match(r"(\w+)=(.*)", word) for word in arguments)
    chosen = {match[1]: match[2] for match in matches if match}
    groups = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
    }
    if "recipe" not in chosen:
        raise UserError(f"which recipe? Say recipe=NAME; there are: {', '.join(groups['recipe'])}")
    for group, names in groups.items():
        for name in chosen[group].split(",") if group in chosen else ():
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5)
                hint = f"; did you mean {group}={near[0]}?" if near else "."
                raise UserError(f"{group}={name} does not exist{hint} There are: {', '.join(names)}")


def with_defaults_of_choices(words: Sequence[str]) -> list[str]:
    """Overrides, preceded by those of the chosen mode, scale and dataset; what the command line sets, wins.

    A mode (`recipe.mode` chooses it, `driver.modes` has what it brings) may work on other data than its recipe's
    default. A scale may shorten what only this recipe (`driver.scales`) or this dataset (`scales`) does. Hydra must
    know that before it composes.
    """
    chosen = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words if "=" in word)}
    names = chosen.get("recipe", "").split(",")
    brought = {name: _of_recipe(name, chosen) for name in names}
    if any(one != brought[names[0]] for one in brought.values()):
        raise UserError(
            f"recipe={','.join(names)} needs different settings at this scale ({brought}): choose one of them"
        )
    return [f"{key}={as_word(value)}" for key, value in brought[names[0]].items()] + list(words)


def _of_recipe(recipe: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """{setting: value} that the chosen mode, scale and dataset bring for a recipe."""
    path = CONF / f"recipe/{recipe}.yaml"
    content = yaml.safe_load(path.read_text()) if path.exists() else {"driver": {}}
    driver = content["driver"]
    found = _overrides_of("scale", driver.get("scales", {}), chosen)
    if "modes" in driver:
        found |= _overrides_of("recipe.mode", driver["modes"], chosen)
    entries = [entry for entry in content.get("defaults", ()) if isinstance(entry, dict)]  # others name files
    own = [name for entry in entries for key, name in entry.items() if "data" in key]
    data = str(chosen.get("data") or found.get("data") or "".join(own))
    brought = {name: _of_dataset(name, chosen) for name in data.split(",")}
    if any(one != brought[data.split(",")[0]] for one in brought.values()):
        raise UserError(f"data={data} needs different settings at this scale ({brought}): choose one of them")
    return found | brought[data.split(",")[0]]


def _of_dataset(name: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """{setting: value} that the chosen scale brings for a dataset."""
    path = CONF / f"data/{name}.yaml"
    scales = yaml.safe_load(path.read_text()).get("scales", {}) if path.exists() else {}
    return _overrides_of("scale", scales, chosen)


def _overrides_of(key: str, choices: Settings, chosen: Mapping[str, str]) -> dict[str, Any]:
    """{setting: value} that a choice brings and the command line does not set."""
    names = chosen.get(key, "").split(",")
    wanted = [choices.get(name, {}).get("overrides", {}) for name in names]
    wanted = [{key: value for key, value in overrides.items() if key not in chosen} for overrides in wanted]
    if any(overrides != wanted[0] for overrides in wanted):
        raise UserError(
            f"{key}={','.join(names)} needs different settings ({wanted}): sweep over choices that share theirs, or "
            "say them all on the command line"
        )
    first: dict[str, Any] = wanted[0]
    return first
