"""What a setting may be: its kind (that of its default), its range, and whether settings fit together."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cookbook import ROOT, UserError
from cookbook.job import Settings
from cookbook.settings.files import CONF, comments_of
from runrecord import same_kind


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
        for name in chosen.get(group, "").split(","):
            if name and name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5)
                hint = f"; did you mean {group}={near[0]}?" if near else "."
                raise UserError(f"{group}={name} does not exist{hint} There are: {', '.join(names)}")


def check_kinds(config: Settings, choices: Mapping[str, str]) -> None:
    """Raises UserError when an override is of another kind than the value in the file that defines the setting."""
    if config["resume"] not in ("auto", "never") and not (Path(str(config["resume"])) / "run.json").exists():
        raise UserError(f"resume={config['resume']!r}: expected auto or never, or the folder of a run to go on with")
    for key, value in config["scale"].items():
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"scale.{key}={value!r}: expected a whole number of at least 1, or null for no limit")
    sources = [(group, CONF / group / f"{name}.yaml") for group, name in choices.items()]
    for group, path in [("", CONF / "config.yaml"), *sources]:
        if path.exists():
            _compare(yaml.safe_load(path.read_text()) or {}, config[group] if group else config, group, path)
    for key in ("cache_dir", "output_root"):
        if not config[key]:
            raise UserError(f"{key}={config[key] or ''}: expected a folder")
    for name in config["cluster"].get("inherit") or ():
        if not isinstance(name, str):
            raise UserError(f"cluster.inherit has {name!r} in it: expected names of environment variables")
    _check_dataset(config, choices)
    _check_storage(config, choices)
    for group in ("", *(group for group in choices if group in config)):
        check_ranges(config[group] if group else {"seed": config["seed"]}, group)


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
    if config["cluster"]["kind"] == "kubernetes":
        raise UserError(
            f"cluster.storage={store}: with cluster=kubernetes checkpoints are on the claim of cluster.claim; leave "
            "cluster.storage out"
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
        if key in ("defaults", "hydra") or key not in values or (isinstance(default, str) and "${" in default):
            continue
        value = values[key]
        if isinstance(default, dict) and isinstance(value, dict):
            _compare(default, value, name, path)
        elif value is None and (prefix == "scale" or re.search(r"\bnull:", comments_of(path).get(key, ""))):
            continue  # the file says what null means; of a scale it is: no limit
        elif not same_kind(value, default):
            raise UserError(
                f"{name}={value!r}: expected {_kind(default)}, like the default {default!r} in {path.relative_to(ROOT)}"
            )


# (lowest, highest) that a setting of this name may have, in whatever group it stands; None: no bound. Settings that
# only one recipe has are bounded by its own settings.py.
AT_LEAST_0 = (
    "max_restarts num_retries num_failures checkpoint_every_steps image_timeout_seconds warmup_epochs max_shift "
    "gpus_per_worker"
)
AT_LEAST_1 = (
    "num_hosts num_copies num_lines num_hours num_train_rows num_test_rows rows_per_group context_length keep_every "
    "object_mb time_minutes commit_every_steps start_timeout_seconds stall_timeout_seconds connect_timeout_seconds "
    "silence_seconds exchange_timeout_seconds"
)
PARTS_OF_A_SECOND = "pull_seconds poll_seconds snapshot_seconds"
SHARES = "warmup_share momentum test_fraction"
RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(AT_LEAST_0.split(), (0, None)),
    **dict.fromkeys(AT_LEAST_1.split(), (1, None)),
    **dict.fromkeys(PARTS_OF_A_SECOND.split(), (0.01, None)),
    **dict.fromkeys(SHARES.split(), (0, 1)),
    **dict.fromkeys(("seed", "split_seed"), (0, 2**32 - 1)),
    "port": (1, 65535),
    "num_workers": (1, None),
    "num_threads_per_worker": (1, 4096),
    "num_loader_workers": (0, 1024),
    "cpus_per_worker": (0.01, None),
    "memory_mb_per_worker": (64, None),
    "stop_grace_seconds": (0, 3600),
    "size": (1, 16384),
}


WHOLE_OR_NULL = ("port", "num_workers")  # their default is null in some files, which does not show their kind


def check_ranges(values: Settings, prefix: str) -> None:
    """Raises UserError for a number that no such setting can have: out of RANGES, infinite, or none at all."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            if key != "driver":
                check_ranges(value, name)
            continue
        if key in WHOLE_OR_NULL and value is not None and type(value) is not int:
            raise UserError(f"{name}={value!r}: expected a whole number, or null")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise UserError(f"{name}={value}: expected a finite number")
        low, high = RANGES.get(key, (None, None))
        if (low, high) == (0, 1) and not 0 <= value <= 1 and key.endswith(("_share", "_fraction")):
            example = f"{value / 100:g} for {value:g} %" if 1 < value <= 100 else "0.2 for 20 %"
            raise UserError(f"{name}={value}: expected a share between 0 and 1 ({example})")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            kind = "a whole number" if type(low) is int and type(value) is int else "a number"
            raise UserError(f"{name}={value}: expected {kind} {'of ' if high is None else ''}{bounds}")


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
