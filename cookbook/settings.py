"""Settings: Hydra composes them, and this module checks what Hydra does not check.

Nothing else imports Hydra but the command line.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cookbook import ROOT, UserError, bootstrap
from cookbook.job import Settings
from runrecord import same_kind

CONF = ROOT / "conf"


OmegaConf.register_new_resolver("cookbook_cache", lambda: str(bootstrap.cache_dir()), replace=True)


# The variable that has a worker's rank, the one that says among how many, and the launcher that sets both.
LAUNCHED = (
    ("RANK", "WORLD_SIZE", "torchrun"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("HOROVOD_RANK", "HOROVOD_SIZE", "horovodrun"),
    ("PMI_RANK", "PMI_SIZE", "mpiexec"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"),
)
ALONE_IS_NONE = ("PMI_RANK", "SLURM_PROCID")  # every shell of an interactive srun has these


def refuse_to_be_a_worker(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError when the driver itself was started once per rank.

    A world of one process is no launch: these variables were left behind by one.
    """
    for name, size, launcher in LAUNCHED:
        number = environment.get(size, "" if name not in ALONE_IS_NONE else "1")
        if name in environment and number != "1":
            raise UserError(
                f"{name}={environment[name]}: the driver was started by {launcher}, once per rank. It starts the "
                "workers itself: "
                "run `python -m cookbook recipe=...` alone. (Workers by hand: the command that each run prints, with "
                "main.py.) "
                f"If {name} is left over from something else: unset {name} {size}"
            )


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
                hint = f"; did you mean {group}={near[0]}?" if near else ""
                raise UserError(f"{group}={name} does not exist{hint} There are: {', '.join(names)}")


def check_kinds(config: Settings, choices: Mapping[str, str]) -> None:
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
    for group in ("", *(group for group in choices if group in config)):
        check_ranges(config[group] if group else {"seed": config["seed"]}, group)


def _compare(defaults: Settings, values: Settings, prefix: str, path: Path) -> None:
    for key, default in defaults.items():
        name = f"{prefix}.{key}" if prefix else key
        if key in ("defaults", "hydra") or key not in values or (isinstance(default, str) and "${" in default):
            continue
        value = values[key]
        if isinstance(default, dict) and isinstance(value, dict):
            _compare(default, value, name, path)
        elif value is None and re.search(r"\bnull:", comments_of(path).get(key, "")):
            continue  # the file says what null means
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
    "object_mb "
    "time_minutes commit_every_steps start_timeout_seconds stall_timeout_seconds connect_timeout_seconds "
    "silence_seconds "
    "exchange_timeout_seconds"
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
    "num_threads_per_worker": (1, 4096),
    "num_loader_workers": (0, 1024),
    "cpus_per_worker": (0.01, None),
    "memory_mb_per_worker": (64, None),
    "stop_grace_seconds": (0, 3600),
    "size": (1, 16384),
}


def check_ranges(values: Settings, prefix: str) -> None:
    """Raises UserError for a number that no such setting can have: out of RANGES, infinite, or none at all."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            if key != "driver":
                check_ranges(value, name)
            continue
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


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed settings as plain, resolved dictionaries, with what the chosen mode brings for the driver."""
    try:
        made = _as_dict(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the settings cannot be resolved: {error}") from None
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
    found = composed("config", with_defaults_of_mode(prepared([f"recipe={recipe}", *overrides])))
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
    try:
        return _as_dict(composed("infra", [f"infra={name}", *overrides])["infra"])
    except (UserError, OmegaConfBaseException) as error:
        known = yaml.safe_load((CONF / f"infra/{name}.yaml").read_text())
        raise UserError(f"{str(error).splitlines()[0]} There are: {', '.join(known['variables'])}") from None


def compose_tracking(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the tracker, as a run of this recipe with these overrides would have them."""
    found = composed("config", prepared([f"recipe={recipe}", *overrides]))
    HydraConfig.instance().set_config(found)
    return _as_dict(found["tracking"])


def _as_dict(config: DictConfig) -> dict[str, Any]:
    made = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


# Values of these are texts whatever they look like, although the default is null.
TEXTS = re.compile(
    r"(^|\.)(path|inventory|uri|format|time_format|label|separator|encoding"
    r"|\w+_(dir|root|address|host|master|scheduler))$"
)
# These are lists of texts, or one text, although the default is null.
LISTS = re.compile(r"^data\.(parameters\.)?(features|missing)$")
# Folders that are made where they are not there.
FOLDERS = re.compile(r"(^|\.)\w+_(dir|root)$")
# Mappings that take keys of the user's own: recipe.spark_conf.spark.ui.port=4050
OPEN = ("recipe.spark_conf", "data.columns")
HYDRA_OPTIONS = (
    "--cfg -c --package -p --info -i --config-path -cp --config-name -cn --config-dir -cd --experimental-rerun"
)
HYDRA_WITH_VALUE = HYDRA_OPTIONS.split()  # a value follows them, as a word of its own


def defaults_of(words: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """{name: default} of all settings that these choices of groups have, and the names of the mappings among them."""
    chosen = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    found: dict[str, Any] = {}
    mappings: set[str] = set()

    def take(content: Settings, prefix: str) -> None:
        for key, value in content.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if key in ("defaults", "hydra"):
                continue
            if isinstance(value, dict) and name != "recipe.driver":
                mappings.add(name)
                take(value, name)
            elif isinstance(value, dict):
                mappings.add(name)
            else:
                found[name] = value

    def take_file(group: str, name: str, seen: tuple[str, ...] = ()) -> None:
        path = CONF / group / f"{name}.yaml"
        if not path.exists() or name in seen:
            return
        content = yaml.safe_load(path.read_text()) or {}
        for entry in content.get("defaults", ()):
            if isinstance(entry, str) and entry != "_self_":
                take_file(group, entry, (*seen, name))
        take(content, group)

    main = yaml.safe_load((CONF / "config.yaml").read_text())
    take(main, "")
    groups = {
        key: name
        for entry in main["defaults"]
        if isinstance(entry, dict)
        for key, name in entry.items()
        if "override" not in key
    }
    for recipe in chosen.get("recipe", "").split(","):
        path = CONF / f"recipe/{recipe}.yaml"
        entries = yaml.safe_load(path.read_text()).get("defaults", ()) if path.exists() else ()
        own = [name for entry in entries if isinstance(entry, dict) for key, name in entry.items() if "data" in key]
        groups["data"] = ",".join(filter(None, [groups["data"], *own]))
    for group, default in groups.items():
        mappings.add(group)
        for name in str(chosen.get(group, default)).split(","):
            take_file(group, name)
    return found, mappings


def prepared(words: Sequence[str]) -> list[str]:
    """Overrides as Hydra can take them: every name exists, and a text is a text whatever characters are in it.

    A value of a setting whose default is a text, a path or an address is taken as it is; so is a value that Hydra's
    grammar does not allow. Quotes for Hydra (key='...') are understood, too. Raises UserError for a name that does not
    exist, for `~name`, and for a word that is no setting.
    """
    several = any(word in ("-m", "--multirun") for word in words)
    defaults, mappings = defaults_of(words)
    made: list[str] = []
    given: dict[str, str] = {}
    value_follows = False
    for word in words:
        if word.startswith("-") or value_follows:
            value_follows = word in HYDRA_WITH_VALUE
            made.append(word)
            continue
        rest = word.lstrip("+~")
        sign, (key, equals, value) = word[: len(word) - len(rest)], rest.partition("=")
        if "~" in sign:
            raise UserError(
                f"{word}: no setting can be taken away, as the workers read all of them; give it another value: "
                f"{key}=..."
            )
        if not equals:
            raise UserError(
                f"{word!r} is no setting: expected key=value. A value with blanks needs quotes around the whole: "
                f"ARGS=\"'data.path=/my files'\" (or '\"key=value\"')"
            )
        group = key.split("@")[0]
        if key.startswith("hydra.") or (("/" in key or "@" in key or (CONF / group).is_dir()) and "." not in group):
            if "," in value and not several and (CONF / group).is_dir():
                raise UserError(f"{word}: several values make a sweep: say -m, or choose one")
            made.append(f"{sign}{key}={value}" if key.startswith("hydra.") else f"{key}={value}")
            continue
        if opened := next((name for name in OPEN if key.startswith(f"{name}.") and name in mappings), None):
            is_name = opened == "data.columns" and value.lower() != "null"
            shown = _quoted(value) if is_name else _scalar(value)
            made.append(f"++{opened}={{{key.removeprefix(opened + '.')}: {shown}}}")
            continue
        if key not in defaults and not (key in mappings or key.startswith("recipe.driver.")):
            renamed = renamed_of(words)
            raise UserError(
                f"{key} is called {renamed[key]} now: {renamed[key]}={value}"
                if key in renamed
                else _no_such_setting(word, key, [*defaults, *mappings])
            )
        default = defaults.get(key)
        # A default that only points at another setting is of that one's kind.
        while isinstance(default, str) and (other := re.fullmatch(r"\$\{([\w.]+)\}", default)):
            default = defaults.get(other[1])
        text = (isinstance(default, str) or default is None) and (isinstance(default, str) or TEXTS.search(key))
        if text and given.setdefault(key, value) != value:
            raise UserError(
                f"{key} is given twice, as {given[key]} and as {value}: say one. If a shell has made two of one "
                f"value with {{a,b}}, "
                f"put quotes around it: '{key}=...{{a,b}}...'"
            )
        texts = LISTS.search(key) and not several
        if "${" in value and (FOLDERS.search(key) or several or not (text or texts)):
            raise UserError(
                f"{key}={value}: nothing is filled in for ${{...}} here; write the value itself, "
                "or have the shell fill it in"
            )
        plus = "++" if key in OPEN else ""
        shown = _texts_for_hydra(key, value) if texts else _for_hydra(key, value, bool(text), several, default)
        made.append(f"{plus}{key}={shown}")
    return made


def renamed_of(words: Sequence[str]) -> dict[str, str]:
    """{old name of a setting: its name now}, of the recipes that overrides choose (`driver.renamed` in their files)."""
    chosen = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    paths = [CONF / f"recipe/{recipe}.yaml" for recipe in chosen.get("recipe", "").split(",")]
    drivers = [yaml.safe_load(path.read_text())["driver"] for path in paths if path.exists()]
    return {f"recipe.{old}": f"recipe.{new}" for driver in drivers for old, new in driver.get("renamed", {}).items()}


def _for_hydra(key: str, value: str, text: bool, several: bool, default: object) -> str:
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
        parsed = override.value() if not override.is_sweep_override() else None
        sweep = override.is_sweep_override()
    except HydraException:
        if isinstance(default, list):
            raise UserError(
                f"{key}={value} is not a list: expected something like {json.dumps(default)}; texts in it with other "
                "characters than "
                "letters, digits and -_./ need quotes"
            ) from None
        return _quoted(value)
    if sweep and several and key not in ("output_root", "cache_dir", "resume"):
        return value
    if text or default is None:
        own_quotes = value[:1] in ("'", '"') and value[-1:] == value[:1] and not sweep
        plain = not sweep and isinstance(parsed, str) and (parsed == value or own_quotes)
        null = not sweep and parsed is None
        if "${" in value:
            return _quoted(str(parsed) if own_quotes else value)
        if plain or null or (not text and not sweep):
            return value
        return _quoted(value)
    if sweep:
        what = f"a list is written {key}=[{value}]" if isinstance(default, list) else "choose one"
        raise UserError(f"{key}={value}: several values make a sweep, which takes -m; {what}")
    return value


def _texts_for_hydra(key: str, value: str) -> str:
    """A list of texts, or one text, each as it is typed: NaN and 007 are no numbers, and NULL in a list is a word."""
    if value in ("null", ""):
        return value
    if value[:1] != "[" and "," not in value:
        return _quoted(_unquoted(value))
    word = r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\]{}'"][^,\[\]{}'"]*)\s*"""
    if not re.fullmatch(rf"\[(\s*|{word}(,{word})*)\]", value):
        raise UserError(
            f"{key}={value}: a list is written {key}=[a,b]; what has a comma, a bracket or a quote in it needs quotes"
        )
    return f"[{','.join(_quoted(_unquoted(found.strip())) for found in re.findall(word, value[1:-1]))}]"


def _unquoted(word: str) -> str:
    """A word without the quotes around it."""
    quote = word[0]
    return word[1:-1].replace(f"\\{quote}", quote) if quote in "'\"" and word[1:] and word[-1] == quote else word


def _quoted(value: str) -> str:
    """A text in Hydra's quotes: a backslash counts only before a quote, and before `${`, which then is text."""
    value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    inner = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    trailing = len(inner) - len(inner.rstrip("\\"))
    return f"'{inner}{inner[len(inner) - trailing :] if trailing else ''}'"


def _scalar(value: str) -> str:
    kind = yaml.safe_load(value) if value else ""
    return value if value.lower() == "null" or isinstance(kind, (bool, int, float)) else _quoted(value)


def _no_such_setting(word: str, key: str, names: Sequence[str]) -> str:
    """What to say of a name that does not exist: the nearest one, or where one of that name stands."""
    last = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    near = same[:1] or difflib.get_close_matches(key, names, 1, 0.6)
    near = (
        near
        or [
            name
            for name in names
            if name.rpartition(".")[2]
            in difflib.get_close_matches(last, [n.rpartition(".")[2] for n in names], 1, 0.75)
        ][:1]
    )
    group = key.rpartition(".")[0]
    there = sorted(name for name in names if name.rpartition(".")[0] == group) or sorted(
        name for name in names if "." not in name
    )
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{word.lstrip('+')}: there is no setting {key}{hint} There are: {', '.join(there)}"


def with_defaults_of_mode(words: Sequence[str]) -> list[str]:
    """Overrides, preceded by those of the recipe's chosen mode and scale; what the command line sets, wins.

    A mode (`recipe.mode` chooses it, `driver.modes` has what it brings) may work on other data than its recipe's
    default. A scale (`driver.scales`) may shorten what only this recipe does. Hydra must know that before it composes.
    """
    chosen = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    path = CONF / f"recipe/{chosen.get('recipe')}.yaml"
    driver = yaml.safe_load(path.read_text())["driver"] if path.exists() else {}
    found = _overrides_of("scale", driver.get("scales", {}), chosen)
    if "modes" in driver:
        found |= _overrides_of("recipe.mode", driver["modes"], chosen)
    return [f"{key}={_as_word(value)}" for key, value in found.items()] + list(words)


def _overrides_of(key: str, choices: Settings, chosen: Mapping[str, str]) -> dict[str, Any]:
    """{setting: value} that a choice brings and the command line does not set."""
    names = chosen.get(key, "").split(",")
    wanted = [choices.get(name, {}).get("overrides", {}) for name in names]
    wanted = [{key: value for key, value in overrides.items() if key not in chosen} for overrides in wanted]
    if any(overrides != wanted[0] for overrides in wanted):
        raise UserError(
            f"{key}={','.join(names)} needs different settings ({wanted}): sweep over choices that share theirs, or "
            "say "
            "them all on the command line"
        )
    first: dict[str, Any] = wanted[0]
    return first


def _as_word(value: object) -> str:
    """A value of a settings file as Hydra reads it on the command line."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return json.dumps(value)


def comments_of(*files: Path) -> dict[str, str]:
    """{key: comment} of the one-line comments in settings files; the first file that explains a key wins."""
    found: dict[str, str] = {}
    for file in files:
        for key, comment in re.findall(r"^\s*(\w+):[^#\n]*#\s*(.+)$", file.read_text(), re.MULTILINE):
            found.setdefault(key, comment)
    return found


def worker_settings(config: Settings, data_dir: str | Path, run_dir: str | Path) -> dict[str, Any]:
    """The flat settings that the workers read: the recipe's own (but its `driver` part), the caps and the folders."""
    recipe = {key: value for key, value in config["recipe"].items() if key != "driver"}
    return {
        "seed": config["seed"],
        **recipe,
        "max_rows": config["scale"]["max_rows"],
        "max_steps": config["scale"]["max_steps"],
        "data_dir": str(data_dir),
        "output_dir": str(run_dir),
        "checkpoint_dir": str(Path(run_dir) / "checkpoints"),
    }


def check_workers(config: Settings, num_cores: int) -> str | None:
    """Raises UserError for a number of workers that cannot be started; returns a warning for one that will be slow."""
    num_workers, most = config["cluster"]["num_workers"], config["scale"]["max_workers"]
    if num_workers < 1:
        raise UserError(f"cluster.num_workers={num_workers}: expected at least 1")
    if most is not None and num_workers > most:
        raise UserError(
            f"cluster.num_workers={num_workers} is more than this scale allows ({most}); choose scale=default, or "
            "fewer workers"
        )
    threads = num_workers * config["cluster"]["num_threads_per_worker"]
    if threads > num_cores:
        return f"{threads} worker threads share {num_cores} cores: this runs, but its speed says nothing"
    return None


FOLDER_COMMENTS = {
    "data_dir": "the dataset folder, with its manifest.json",
    "output_dir": "where this run writes its record",
    "checkpoint_dir": "where checkpoints are written, and looked for at the start",
}


def commented_yaml(settings: Settings, choices: Mapping[str, str]) -> str:
    """Flat settings as YAML, each with the comment that explains it where it is defined."""
    files = [CONF / group / f"{choices[group]}.yaml" for group in ("recipe", "scale")] + [CONF / "config.yaml"]
    comments = FOLDER_COMMENTS | comments_of(*files)
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    width = min(48, max(map(len, lines)))
    return "".join(
        f"{line:<{width}}  # {comments[key]}\n" if key in comments else f"{line}\n"
        for key, line in zip(settings, lines, strict=True)
    )
