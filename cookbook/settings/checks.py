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
    check_driver(choices["recipe"])
    _check_dataset(config, choices)
    _check_storage(config, choices)
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
    "storage": "true: checkpoints can be kept in an object store",
    "takes_notice": "true: the workers save and leave when their machine is taken away",
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
    driver = yaml.safe_load(path.read_text())["driver"]
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


# (lowest, highest) that a setting of this name may have, in whatever group it stands. The lowest is None where the
# recipe's own settings.py says it, which goes with a copy of the recipe. The highest keeps a slip of the finger (or
# seconds where milliseconds are meant) from dying late, for want of memory, or never: it is far above what anybody
# uses.
BOUNDS: dict[tuple[float | None, float], str] = {
    (0, 10_000): "warmup_epochs gpus_per_worker",
    (0, 10**9): "checkpoint_every_steps max_jitter_minutes",
    (0, 86_400): "image_timeout_seconds stop_grace_seconds notice_grace_seconds checkpoint_every_seconds",
    (0, 65_536): "fusion_threshold_mb",
    (0, 60_000): "cycle_time_ms",
    (0, 1): "warmup_share momentum max_unreadable_share",
    (None, 1): "max_malformed_share",
    (0.001, 0.999): "test_fraction",
    (0, 2**32 - 1): "seed split_seed",
    (None, 1024): "num_loader_workers",
    (None, 65_535): "serve_port",
    (1, 65_535): "port",
    (1, 4096): "num_threads_per_worker size num_hosts",
    (1, 525_600): "time_minutes",
    (None, 525_600): "window_minutes",
    (1, 10_000): "num_copies keep_every num_nodes num_workers min_workers",
    (1, 10**7): "num_hours",
    (1, 10**8): "num_train_rows num_test_rows rows_per_group",
    (1, 10**11): "num_lines max_rows max_steps",
    (1, 10**6): "context_length max_workers bucket_cap_mb",
    (2, 10**9): "malformed_every",
    (2, 1000): "num_classes",
    (1, 31 * 86_400): (
        "start_timeout_seconds stall_timeout_seconds diagnose_after_seconds connect_timeout_seconds silence_seconds"
    ),
    (None, 31 * 86_400): "exchange_timeout_seconds",
    (None, 86_400): "serve_timeout_seconds",
    (0.01, 86_400): "pull_seconds poll_seconds snapshot_seconds every_seconds wait_seconds resize_seconds",
    (0.01, 100_000): "cpus_per_worker",
    (64, 10**8): "memory_mb_per_worker",
    (None, 16_384): "width model_width num_heads num_layers num_microbatches",
    (None, 10_000): (
        "accumulation_steps backward_passes_per_step num_devices num_ps num_envs_per_worker num_shards "
        "num_processes num_learners num_data_cpus cpus_per_trial population prefetch_batches prefetch_chunks num_folds "
        "search_blocks steps_per_execution num_message_sizes num_seeds num_repeats max_restarts num_retries "
        "num_failures max_trial_failures max_shift"
    ),
    (None, 10**6): (
        "num_epochs budget_epochs epochs_per_trial trial_epochs num_iterations evaluation_every evaluation_episodes "
        "checkpoint_every perturb_every num_trees search_candidates num_clusters num_rounds pca_components num_files "
        "num_tasks object_store_mb object_mb"
    ),
    (None, 10**8): (
        "global_batch_size base_batch_size batch_size train_batch_size shuffle_rows rows_per_chunk rows_per_file "
        "rows_per_partition model_rows cache_mb commit_every_steps memory_mb"
    ),
}
RANGES = {name: bounds for bounds, names in BOUNDS.items() for name in names.split()}


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
            if key in RANGES and value is not None:  # a default of null says nothing of the kind
                low, high = RANGES[key]
                raise UserError(f"{name}={value!r}: expected a number {'' if low is None else f'from {low} '}to {high}")
            continue
        if not math.isfinite(value):
            raise UserError(f"{name}={value}: expected a finite number")
        low, high = RANGES.get(key, (None, math.inf))
        is_out = (low is not None and value < low) or value > high
        if is_out and key.endswith(("_share", "_fraction")):
            example = f"{value / 100:g} for {value:g} %" if 1 < value < 100 else "0.2 for 20 %"
            raise UserError(f"{name}={value}: expected a share between 0 and 1 ({example})")
        if is_out:
            bounds = f"at most {high}" if low is None else f"from {low} to {high}"
            kind = "a whole number" if type(low or high) is int and type(value) is int else "a number"
            raise UserError(f"{name}={value}: expected {kind} {'of ' if low is None else ''}{bounds}")


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
