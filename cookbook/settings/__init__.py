"""Settings: Hydra composes them from conf/ and the command line, once a run.

Only this package and the command line import Hydra.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cookbook import UserError, bootstrap
from cookbook.job import Settings
from cookbook.settings.checks import check_kinds
from cookbook.settings.choices import with_defaults_of_choices
from cookbook.settings.files import CONF, commented, comments_of
from cookbook.settings.overrides import prepared
from cookbook.settings.quoting import value_for_hydra

OmegaConf.register_new_resolver("cookbook_cache", lambda: str(bootstrap.cache_dir()), replace=True)


# The variable that has a worker's rank, the one that says among how many, and the launcher that sets both.
LAUNCHED = (
    ("RANK", "WORLD_SIZE", "torchrun"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("HOROVOD_RANK", "HOROVOD_SIZE", "horovodrun"),
    ("PMI_RANK", "PMI_SIZE", "mpiexec"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"),
)


SET_IN_SRUN_SHELLS = ("PMI_RANK", "SLURM_PROCID")  # every shell of an interactive srun has these


def refuse_to_be_a_worker(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError when the driver itself was started once per rank.

    Variables of a world of one process were left behind by an earlier launch, and are no reason.
    """
    for name, size, launcher in LAUNCHED:
        number = environment.get(size, "" if name not in SET_IN_SRUN_SHELLS else "1")
        if name in environment and number != "1":
            raise UserError(
                f"{name}={environment[name]}: the driver was started by {launcher}, once per rank. It starts the "
                "workers itself: run `.venv/bin/python -m cookbook recipe=...` alone. (Workers by hand: the command "
                f"that each run prints, with main.py.) If {name} is left over from something else: unset {name} {size}"
            )


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed settings as plain, resolved dictionaries, with what the chosen mode brings for the driver."""
    try:
        made = _as_dict(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the settings cannot be resolved: {error}") from None
    made["data"].pop("scales", None)  # choices.with_defaults_of_choices has heeded it
    driver = made["recipe"]["driver"]
    if "modes" in driver:
        chosen, modes = made["recipe"]["mode"], driver.pop("modes")
        if chosen not in modes:
            raise UserError(f"recipe.mode={chosen!r} is unknown; expected one of: {', '.join(modes)}")
        driver.update(modes[chosen], variant=chosen)
    return made


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of conf/<name>.yaml and overrides. Raises UserError with Hydra's own first line."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error).splitlines()[0]) from None


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of `recipe=... overrides` as plain data, and the chosen file of each group."""
    found = composed("config", prepared(with_defaults_of_choices([f"recipe={recipe}", *overrides])))
    choices = {group: name for group, name in found.hydra.runtime.choices.items() if "/" not in group}
    with open_dict(found):
        del found["hydra"]
        del found["tracking"]
    config = plain(found)
    check_kinds(config, {group: name for group, name in choices.items() if group in config})
    return config, choices


def compose_infra(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of conf/infra/<name>.yaml with overrides. Raises UserError for a wrong name or kind."""
    names = sorted(path.stem for path in (CONF / "infra").glob("*.yaml"))
    if name not in names:
        raise UserError(f"TARGET={name} does not exist. There are: {', '.join(names)}")
    known = yaml.safe_load((CONF / f"infra/{name}.yaml").read_text())
    words = [_text_as_it_is(word, {"infra": known}) for word in overrides]
    try:
        return _as_dict(composed("infra", [f"infra={name}", *words])["infra"])
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{str(error).splitlines()[0]} There are: {', '.join(known['variables'])}") from None


def _text_as_it_is(word: str, defaults: Mapping[str, Any]) -> str:
    """The override as Hydra can take it: a text (a public key, say) is a text, whatever characters are in it."""
    key, _, value = word.partition("=")
    default: Any = defaults
    for part in key.split("."):
        if not isinstance(default, dict) or part not in default:
            return word  # there is no such setting, as Hydra will say
        default = default[part]
    return f"{key}={value_for_hydra(key, value, isinstance(default, str), False, default)}"


def compose_tracking(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the tracker, as a run of this recipe with these overrides would have them."""
    found = composed("config", prepared([f"recipe={recipe}", *overrides]))
    HydraConfig.instance().set_config(found)
    return _as_dict(found["tracking"])


def _as_dict(config: DictConfig) -> dict[str, Any]:
    made = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def worker_settings(config: Settings, data_dir: str | Path, run_dir: str | Path, storage: str = "") -> dict[str, Any]:
    """The flat settings that the workers read: the recipe's own (but its `driver` part), the caps and the folders.

    A cap that the recipe does not heed is null there.

    `storage`: the run's own address in an object store; then its checkpoints go there.
    """
    recipe = {key: value for key, value in config["recipe"].items() if key != "driver"}
    heeded = config["recipe"]["driver"].get("caps", ("max_rows", "max_steps"))
    caps = {name: config["scale"][name] if name in heeded else None for name in ("max_rows", "max_steps")}
    return {
        "seed": config["seed"],
        **recipe,
        **caps,
        "data_dir": str(data_dir),
        "output_dir": str(run_dir),
        "checkpoint_dir": f"{storage or run_dir}/checkpoints",
    }


FOLDER_COMMENTS = {
    "data_dir": "the dataset folder, with its manifest.json",
    "output_dir": "where this run writes its record",
    "checkpoint_dir": "where checkpoints are written, and looked for at the start",
}


def commented_yaml(settings: Settings, choices: Mapping[str, str], fixed: Collection[str] = ()) -> str:
    """Flat settings as YAML, each with the comment that explains it where it is defined.

    `fixed`: settings that a copy's Makefile has, too; the comment says so.
    """
    files = [CONF / group / f"{choices[group]}.yaml" for group in ("recipe", "scale")] + [CONF / "config.yaml"]
    comments = FOLDER_COMMENTS | comments_of(*files)
    comments |= {key: f"[in the command, see README.md] {comments.get(key, '')}" for key in fixed}
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    width = min(48, max(map(len, lines)))
    return "".join(
        f"{commented(line, comments[key], width + 2)}\n" if key in comments else f"{line}\n"
        for key, line in zip(settings, lines, strict=True)
    )
