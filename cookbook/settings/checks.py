"""What a setting may be: its kind (that of its default), and whether settings fit together."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from cookbook import ROOT, UserError, redact, run_folder
from cookbook.job import Settings
from cookbook.settings.files import CONF, comments_of, is_changed
from cookbook.settings.ranges import check_ranges
from runrecord import same_kind


def check_kinds(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError when an override is of another kind than the value in the file that defines the setting."""
    if config["resume"] not in ("auto", "never") and not (Path(str(config["resume"])) / "run.json").exists():
        folder = Path(str(config["resume"]))
        if folder.is_dir() or folder.is_symlink():
            raise UserError(f"{run_folder.no_run('resume', folder)} (or auto, or never)")
        raise UserError(f"resume={config['resume']!r}: expected auto or never, or the folder of a run to go on with")
    for key, value in config["scale"].items():
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"scale.{key}={value!r}: expected a whole number of at least 1, or null for no limit")
    _check_caps(config, choices)
    sources = [(group, CONF / group / f"{name}.yaml") for group, name in choices.items()]
    for group, path in [("", CONF / "config.yaml"), *sources]:
        if path.exists():
            _compare(yaml.safe_load(path.read_text()) or {}, config[group] if group else config, group, path)
    for key in ("cache_dir", "output_root"):
        if not config[key]:
            raise UserError(f"{key}={config[key] or ''}: expected a folder")
    for name in config["cluster"].get("inherit") or ():
        if not re.match(r"[A-Za-z_*?\[]", str(name)):
            raise UserError(f"cluster.inherit has {name} in it: expected names of environment variables")
    check_driver(choices["recipe"])
    _check_dataset(config, choices)
    _check_address(config, choices)
    _check_notice(config, choices)
    _check_secrets(config["recipe"])
    _check_storage(config, choices)
    if config["recipe"].get("profile") and config["cluster"]["kind"] == "kubernetes":
        raise UserError(
            "recipe.profile=true: with cluster=kubernetes the traces would stay in the pods, which end with the run; "
            "profile with another cluster, or leave it out"
        )
    for group in ("", *(group for group in choices if group in config)):
        check_ranges(config[group] if group else {"seed": config["seed"]}, group)


# What a recipe's settings say to the driver, under `driver`. Those of a mode win where it is chosen.
DRIVER = {
    "system": "who starts the workers: a module of cookbook/systems/",
    "takes": "which datasets: those whose file in conf/data/ says `holds:` the same",
    "tools": "what must be on the machine before the environment can be made",
    "needs": "disk_mb and memory_mb, measured",
    "objective": "name and direction of the metric that sweeps and comparisons are judged by",
    "proof": "rules of evidence beyond those of every run",
    "repeats": "how exactly the result repeats: bits, a relative difference, or rules",
    "short": "settings that make the contract tests short",
    "address": "the setting in conf/cluster/ that names a running system, whose workers are then used",
    "position": "settings of the recipe that decide which rows a step takes: a run goes on only with the same",
    "storage": "true: checkpoints can be kept in an object store",
    "takes_notice": "true: the workers save and leave when their machine is taken away",
    "caps": "which of scale.max_rows and scale.max_steps its programs heed, where it is not both",
    "num_processes": "how many processes work, where that is not cluster.num_workers",
    "chief": "true: a process beside the workers gives them their work",
    "changes_members": "true: workers may be lost and come back while the others go on",
    "workers_on_demand": "true: the system starts workers as it needs them, so fewer than asked for may have worked",
    "modes": "what each value of recipe.mode brings",
    "scales": "what a scale changes in this recipe",
}
ALWAYS = {"system", "takes", "tools", "needs"}


def check_driver(recipe: str) -> None:
    """Raises UserError for a key under `driver` in a recipe's settings that means nothing, or that is missing."""
    path = CONF / f"recipe/{recipe}.yaml"
    content = yaml.safe_load(path.read_text())
    driver = content["driver"]
    if strange := [name for name in driver.get("position", ()) if name not in content]:
        raise UserError(f"{path.name}: driver.position names {strange[0]}, which is no setting of the recipe")
    modes = driver.get("modes", {})
    if missing := sorted(ALWAYS - driver.keys()):
        raise UserError(f"{path.name}: driver lacks {', '.join(missing)}")
    for where, content in [("driver", driver), *((f"driver.modes.{name}", mode) for name, mode in modes.items())]:
        known = DRIVER.keys() if where == "driver" else {*DRIVER, "overrides"} - {"modes", "scales"}
        if unknown := sorted(content.keys() - known):
            raise UserError(f"{path.name}: {where}.{unknown[0]} means nothing; there are: {', '.join(sorted(known))}")
        for key in {"objective", "proof"} - content.keys() - driver.keys():
            if where != "driver" or not modes:
                raise UserError(f"{path.name}: {where} lacks {key}")


def _check_caps(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError for a cap on rows or steps that the recipe, in its mode, takes no notice of."""
    path = CONF / f"scale/{choices['scale']}.yaml"
    own = yaml.safe_load(path.read_text()) if path.exists() else {}
    recipe, heeded = choices["recipe"], config["recipe"]["driver"].get("caps")
    for name in ("max_rows", "max_steps"):
        value = config["scale"][name]
        if heeded is not None and name not in heeded and value not in (None, own.get(name)):
            mode = f" recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else ""
            raise UserError(
                f"scale.{name}={value}: recipe={recipe}{mode} knows no such cap, and would take no notice; how much it "
                f"does is said by scale=smoke|default|bench, the dataset's settings and those in "
                f"conf/recipe/{recipe}.yaml"
            )


def _check_dataset(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError for a dataset that holds something else than the recipe, in its mode, takes."""
    takes, holds = config["recipe"]["driver"].get("takes"), config["data"].get("holds")
    if takes is None or takes == holds:
        return
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "data").glob("*.yaml")}
    fitting = sorted(name for name, content in files.items() if content.get("holds") == takes)
    mode = f" recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else ""
    raise UserError(
        f"data={choices['data']} holds {holds}, and recipe={choices['recipe']}{mode} takes {takes}: "
        f"choose data={' or data='.join(fitting)}"
    )


def check_path(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError, before an environment is made, for a dataset of the user's own files that are not named."""
    if "path" in config["data"] and not config["data"]["path"]:
        raise UserError(
            f"data.path is not set: data={choices['data']} takes files of yours, such as data.path=/their/folder"
        )


def _check_address(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError for the address of a running cluster of another system than the recipe's."""
    drivers = [yaml.safe_load(path.read_text())["driver"] for path in (CONF / "recipe").glob("*.yaml")]
    own = config["recipe"]["driver"].get("address")
    for name in sorted({driver["address"] for driver in drivers if "address" in driver} - {own}):
        if is_changed(name, config, choices["cluster"]):
            raise UserError(
                f"cluster.{name}={config['cluster'][name]}: recipe={choices['recipe']} "
                + (f"works on a running cluster of its own kind: cluster.{own}" if own else "starts its workers itself")
            )


def _check_notice(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError for a notice that nobody would heed."""
    if config["cluster"]["notice_file"] and not config["recipe"]["driver"].get("takes_notice"):
        mode = f" recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else ""
        raise UserError(
            f"cluster.notice_file={config['cluster']['notice_file']}: the workers of recipe={choices['recipe']}{mode} "
            "take no notice; docs/preemption.md says what a lost machine costs there"
        )


def _check_secrets(recipe: Settings) -> None:
    """Raises UserError for a secret in a setting that the workers read: it is taken out of the file they read it from.

    Spark's own settings go another way, by a file that only the user can read.
    """
    if found := [name for name in redact.secrets_of(recipe) if not name.startswith("spark_conf.")]:
        raise UserError(
            f"recipe.{found[0]} has a secret in it: workers read settings from a file of the run folder, which keeps "
            "none; give the secret by an environment variable (cluster.inherit) or a file that the program knows"
        )


STORE = re.compile(r"(s3|gs)://[A-Za-z0-9][A-Za-z0-9._-]+(/[^\s/@?#]+)*/?")


def _check_storage(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError for an object store that is none, or that the recipe cannot keep its checkpoints in."""
    store = config["cluster"].get("storage")
    if store is None:
        return
    if not STORE.fullmatch(store):
        raise UserError(
            f"cluster.storage={store}: expected s3://bucket/prefix or gs://bucket/prefix, without keys in it (they "
            "come from AWS_PROFILE and the like, another endpoint from AWS_ENDPOINT_URL)"
        )
    if not config["recipe"]["driver"].get("storage"):
        files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "recipe").glob("*.yaml")}
        able = sorted(
            name
            for name, content in files.items()
            for driver in [content["driver"]]
            if driver.get("storage") or any(mode.get("storage") for mode in driver.get("modes", {}).values())
        )
        raise UserError(
            f"cluster.storage={store}: recipe={choices['recipe']} keeps its checkpoints in a folder; those that can "
            f"keep them in an object store: {', '.join(able)}"
        )


def _compare(defaults: Settings, values: Settings, prefix: str, path: Path) -> None:
    for key, default in defaults.items():
        name = f"{prefix}.{key}" if prefix else key
        if key in ("defaults", "hydra") or key not in values:
            continue
        value = values[key]
        if isinstance(default, str) and "${" in default:
            continue
        if isinstance(default, dict) and isinstance(value, dict):
            _compare(default, value, name, path)
        elif value is None and (prefix == "scale" or re.search(r"\bnull:", comments_of(path).get(key, ""))):
            continue  # the file says what null means; of a scale it is: no limit
        elif not same_kind(value, default):
            shown = "null" if value is None else repr(value)
            raise UserError(
                f"{name}={shown}: expected {_kind(default)}, like the default {default!r} in {path.relative_to(ROOT)}"
            )
        elif isinstance(default, list) and default and not isinstance(default[0], str):
            odd = [one for one in value if not same_kind(one, default[0])]
            if odd:
                raise UserError(f"{name}={value}: {odd[0]!r} is not {_kind(default[0])}, as all of {default} are")


def _kind(value: object) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}.get(
        type(value), type(value).__name__
    )


def check_workers(config: Settings, num_cores: int) -> str | None:
    """Raises UserError for a number of workers that cannot be started; returns a warning for one that will be slow."""
    num_workers, most = config["cluster"]["num_workers"], config["scale"]["max_workers"]
    if most is not None and num_workers > most:
        raise UserError(
            f"cluster.num_workers={num_workers} is more than this scale allows ({most}); choose scale=default, or "
            "fewer workers"
        )
    threads = num_workers * config["cluster"]["num_threads_per_worker"]
    if threads > num_cores:
        return f"{threads} worker threads share {num_cores} cores: this runs, but its speed says nothing"
    return None
