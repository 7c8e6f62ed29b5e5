"""Overrides as people type them, made into those that Hydra can take: each name exists, each text stays what it is."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cookbook import UserError
from cookbook.job import Settings
from cookbook.settings.files import CONF
from cookbook.settings.quoting import in_a_sweep, quoted, scalar, texts_for_hydra, unquoted, value_for_hydra

# Values of these are texts whatever they look like, although the default is null.
TEXTS = re.compile(
    r"(^|\.)(path|inventory|uri|format|time_format|label|separator|encoding"
    r"|\w+_(dir|root|address|host|master|scheduler))$"
)
# These are lists of texts, or one text, although the default is null or [].
LISTS = re.compile(r"^(data\.(parameters\.)?(features|missing)|cluster\.(sbatch_options|inherit))$")
# Folders that are made where they are not there.
FOLDERS = re.compile(r"(^|\.)\w+_(dir|root)$")
# Mappings that take keys of the user's own: recipe.spark_conf.spark.ui.port=4050
OPEN = ("recipe.spark_conf", "data.columns")
OLD_NAMES_OF_MODE = ("recipe.framework", "recipe.strategy")
# What the files of a group say of themselves: another value needs the other settings of another file.
OF_THE_CHOICE = {"cluster.kind": "cluster", "tracking.kind": "tracking", "data.builder": "data", "data.holds": "data"}
HYDRA_OPTIONS = (
    "--cfg -c --package -p --info -i --config-path -cp --config-name -cn --config-dir -cd --experimental-rerun"
)
HYDRA_WITH_VALUE = HYDRA_OPTIONS.split()  # a value follows them, as a word of its own
HYDRA_ALONE_OPTIONS = "--help -h --hydra-help --version --resolve --run -r --multirun -m --shell-completion -sc"
HYDRA_ALONE = HYDRA_ALONE_OPTIONS.split()


def defaults_of(words: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """{name: default} of all settings that these choices of groups have, and the names of the mappings among them."""
    chosen = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words if "=" in word)}
    found: dict[str, Any] = {}
    mappings: set[str] = set()

    def take(content: Settings, prefix: str) -> None:
        for key, value in content.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if key in ("defaults", "hydra") or name == "data.scales":
                continue
            if isinstance(value, dict) and name != "recipe.driver":
                mappings.add(name)
                take(value, name)
            elif isinstance(value, dict):
                mappings.add(name)
            else:
                found[name] = value

    def take_file(group: str, name: str, prefix: str, seen: tuple[str, ...] = ()) -> None:
        path = CONF / group / f"{name}.yaml"
        if not path.exists() or name in seen:
            return
        content = yaml.safe_load(path.read_text()) or {}
        for entry in content.get("defaults", ()):
            if isinstance(entry, str) and entry != "_self_":
                other, _, below = entry.partition("@")  # `mlflow@mlflow`: that file, below a name of this one
                take_file(group, other, f"{prefix}.{below}" if below else prefix, (*seen, name))
        take(content, prefix)

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
            take_file(group, name, group)
    return found, mappings


def prepared(words: Sequence[str]) -> list[str]:
    """Overrides as Hydra can take them: every name exists, and a text is a text whatever characters are in it.

    A value of a setting whose default is a text, a path or an address is taken as it is; so is a value that Hydra's
    grammar does not allow. Quotes for Hydra (key='...') are understood, too. Raises UserError for a name that does not
    exist, for `~name`, and for a word that is no setting.
    """
    line, options, made, value_follows = _CommandLine(words), [], [], False
    _check_each_recipe(words)
    for word in words:
        if word.startswith("-") or value_follows:
            option = word.partition("=")[0]
            if not value_follows and ("=" in word or word[1:2] == "-") and option not in HYDRA_WITH_VALUE + HYDRA_ALONE:
                raise UserError(f"{word} is no option; a setting has no dashes in front: {word.lstrip('-')}")
            value_follows = word in HYDRA_WITH_VALUE and not value_follows
            options.append(word)
        else:
            made.append(line.for_hydra(_split(word)))
    return options + made  # argparse takes no settings behind an option that stands behind settings


def _check_each_recipe(words: Sequence[str]) -> None:
    """Raises UserError for a setting that one of several recipes of a sweep lacks."""
    recipes = next((word.partition("=")[2].split(",") for word in words if word.startswith("recipe=")), [])
    for recipe in recipes if len(recipes) > 1 else ():
        known = defaults_of([f"recipe={recipe}", *(word for word in words if not word.startswith("recipe="))])[0]
        for word in words:
            key = word.partition("=")[0]
            if key.startswith("recipe.") and key not in known and not key.startswith(OPEN):
                raise UserError(f"{word}: recipe={recipe} has no such setting; sweep over recipes that have it")


@dataclass(frozen=True)
class Override:
    """A word `key=value`, with the signs that may stand in front of it."""

    word: str
    sign: str
    key: str
    value: str


def _split(word: str) -> Override:
    """Raises UserError for a word that is no setting."""
    rest = word.lstrip("+~")
    sign, (key, equals, value) = word[: len(word) - len(rest)], rest.partition("=")
    if "~" in sign:
        raise UserError(
            f"{word}: no setting can be taken away, as the workers read all of them; give it another value: {key}=..."
        )
    if not equals:
        raise UserError(
            f"{word!r} is no setting: expected key=value. A value with blanks needs quotes around the whole: "
            f"ARGS=\"'data.path=/my files'\" (or '\"key=value\"')"
        )
    if not key or "@" in key or (" " in key and not key.startswith("data.columns.")):
        raise UserError(f"{word!r} is no setting: expected key=value, such as seed=1, without blanks in the key")
    return Override(word, sign, key, value)


class _CommandLine:
    """What all words of a command line say together: which settings there are, and which were given already."""

    def __init__(self, words: Sequence[str]) -> None:
        self.is_sweep = any(word in ("-m", "--multirun") for word in words)
        self.defaults, self.mappings = defaults_of(words)
        self.given: dict[str, str] = {}
        pairs = [word.split("=", 1) for word in words if "=" in word]
        self.swept = {key for key, value in pairs if self.is_sweep and "," in value and (CONF / key).is_dir()}

    def for_hydra(self, one: Override) -> str:
        if one.key.startswith("hydra.") or (CONF / one.key).is_dir():
            return self._choice(one)
        made = self._value(one)
        # Before Hydra looks at several choices of a group it composes none of them, and finds no such setting there.
        return in_a_sweep(made) if one.key.partition(".")[0] in self.swept else made

    def _value(self, one: Override) -> str:
        if mapping := next((name for name in OPEN if one.key.startswith(f"{name}.") and name in self.mappings), None):
            is_name = mapping == "data.columns" and one.value.lower() != "null"
            shown = quoted(unquoted(one.value)) if is_name else scalar(one.value)
            return f"++{mapping}={{{one.key.removeprefix(mapping + '.')}: {shown}}}"
        return self._setting(one)

    def _choice(self, one: Override) -> str:
        """A file of a group, or a setting of Hydra's own."""
        is_group = (CONF / one.key).is_dir()
        if re.match(r"hydra\.(run|job|output_subdir)\b", one.key):
            raise UserError(f"{one.word}: this says nothing about a run; output_root=FOLDER says where runs are kept")
        if is_group and "," in one.value and not self.is_sweep:
            raise UserError(f"{one.word}: several values make a sweep: say -m, or choose one")
        self._once(one)
        return f"{'' if is_group else one.sign}{one.key}={one.value}"

    def _setting(self, one: Override) -> str:
        key, value = one.key, one.value
        self._exists(one)
        if (FOLDERS.search(key) or key in ("resume", "cluster.notice_file")) and value.startswith("~"):
            value = os.path.expanduser(value)  # a shell does so only at the beginning of a word
        if FOLDERS.search(key) and not self.is_sweep:
            _check_folder(key, value)
        default = self.defaults.get(key)
        if key.startswith("recipe.") and (other := re.fullmatch(r"\$\{(cluster\.\w+)\}", str(default))):
            raise UserError(f"{one.word}: {key} is what {other[1]} says; set that one: {other[1]}={value}")
        # A default that only points at another setting is of that one's kind.
        while isinstance(default, str) and (other := re.fullmatch(r"\$\{([\w.]+)\}", default)):
            default = self.defaults.get(other[1])
        is_text = isinstance(default, str) or (default is None and bool(TEXTS.search(key)))
        if is_text:  # of numbers the last one counts, as Hydra has it
            self._once(one)
        are_texts = bool(LISTS.search(key)) and not self.is_sweep
        if "${" in value and (FOLDERS.search(key) or self.is_sweep or not (is_text or are_texts)):
            raise UserError(
                f"{key}={value}: nothing is filled in for ${{...}} here; write the value itself, "
                "or have the shell fill it in"
            )
        shown = (
            texts_for_hydra(key, value) if are_texts else value_for_hydra(key, value, is_text, self.is_sweep, default)
        )
        return f"{'++' if key in OPEN else ''}{key}={shown}"

    def _exists(self, one: Override) -> None:
        """Raises UserError, with the nearest name, for a setting that does not exist."""
        if re.match(r"recipe\.driver(\.|$)", one.key) and one.key != "recipe.driver.system":
            raise UserError(f"{one.key} belongs to the recipe and is no setting: change it in its file in conf/recipe/")
        if group := OF_THE_CHOICE.get(one.key):
            names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            like = f"{group}={one.value}" if one.value in names else f"{group}=NAME; there are: {', '.join(names)}"
            raise UserError(f"{one.word}: {one.key} is what the chosen file says; choose another file: {like}")
        if one.key in self.mappings and one.key not in OPEN:
            inside = sorted(name for name in self.defaults if name.startswith(f"{one.key}."))
            raise UserError(f"{one.word}: {one.key} is no setting, but a group of them; set one: {', '.join(inside)}")
        if one.key in self.defaults or one.key in OPEN or one.key == "recipe.driver.system":
            return
        if one.key in OLD_NAMES_OF_MODE and "recipe.mode" in self.defaults:
            raise UserError(f"{one.key} is called recipe.mode now: recipe.mode={one.value}")
        names = [*self.defaults, *(self.mappings - {"recipe.driver"})]
        raise UserError(_no_such_setting(one.word, one.key, names))

    def _once(self, one: Override) -> None:
        """Raises UserError when the key was given before, with another value."""
        if (first := self.given.setdefault(one.key, one.value)) != one.value:
            raise UserError(_twice(one.key, first, one.value))


def _check_folder(key: str, value: str) -> None:
    """Raises UserError for what would become a folder of an odd name below the working folder, without a word."""
    if "://" in value:
        why = "expected a folder on this machine (checkpoints can be kept in an object store: cluster.storage)"
    elif re.match(r"[A-Za-z]:[\\/]|\\\\", value):
        why = "this is a path of Windows; in WSL the folder C:\\Users is /mnt/c/Users"
    elif value.startswith("~"):
        why = "there is no such user"
    elif name := re.search(r"\$[A-Za-z_]\w*", value):
        why = f"{name[0]} is filled in by a shell, but not between '...'; write the value itself"
    else:
        return
    raise UserError(f"{key}={value}: {why}")


def _twice(key: str, first: str, second: str) -> str:
    braces = f" If a shell has made two of one value with {{a,b}}, put quotes around it: '{key}=...{{a,b}}...'"
    return f"{key} is given twice, as {first} and as {second}: say one.{'' if first.isalnum() else braces}"


def _no_such_setting(word: str, key: str, names: Sequence[str]) -> str:
    """What to say of a name that does not exist: the nearest one, or where one of that name stands."""
    group, _, last = key.rpartition(".")
    # By the last part alone: a short name is not much like another one because both stand in the same group.
    by_last = {name.rpartition(".")[2]: name for name in sorted(names, key=lambda name: name.startswith(f"{group}."))}
    near = [by_last[one] for one in difflib.get_close_matches(last, by_last, 1, 0.6)]
    near = near or difflib.get_close_matches(key, [name for name in names if not key.startswith(f"{name}.")], 1, 0.8)
    there = sorted(name for name in names if name.rpartition(".")[0] == group) or sorted(
        name for name in names if "." not in name
    )
    hint = f"; did you mean {near[0]}?" if near else "."
    if last not in by_last and (others := _choices_with(key)):
        hint = f" with this choice; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it."
    return f"{word.lstrip('+')}: there is no setting {key}{hint} There are: {', '.join(there)}"


def _choices_with(key: str) -> list[str]:
    """The choices of a group (data=image_folder) that have the setting (data.path), but the recipes."""
    group = key.partition(".")[0]
    if group == "recipe" or not (CONF / group).is_dir():
        return []
    choices = [f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml"))]
    return [choice for choice in choices if key in defaults_of([choice])[0]]
