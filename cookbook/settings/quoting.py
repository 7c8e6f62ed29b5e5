"""Values as Hydra's grammar takes them: what a person typed stays what it is."""

import json
import re

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cookbook import UserError


def value_for_hydra(key: str, value: str, text: bool, several: bool, default: object) -> str:
    """The value of a setting. `text`: whatever it looks like, it is a text; `several`: the command line is a sweep.

    Raises UserError for what is no list although the default is one, and for several values without a sweep.
    """
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
        parsed = override.value() if not override.is_sweep_override() else None
        sweep = override.is_sweep_override()
    except HydraException:
        if isinstance(default, list):
            raise UserError(
                f"{key}={value} is not a list: expected something like {json.dumps(default)}; texts in it with other "
                "characters than letters, digits and -_./ need quotes"
            ) from None
        return quoted(value)
    if override.is_interval_sweep():
        raise UserError(f"{key}={value}: nothing here draws numbers from an interval; list them: {key}=0.1,0.2 with -m")
    if sweep and several and key not in ("output_root", "cache_dir", "resume"):
        return value
    if text or default is None:
        own_quotes = value[:1] in ("'", '"') and value[-1:] == value[:1] and not sweep
        plain = not sweep and isinstance(parsed, str) and (parsed == value or own_quotes)
        null = not sweep and parsed is None
        if "${" in value:
            return quoted(str(parsed) if own_quotes else value)
        if plain or null or (not text and not sweep):
            return value
        return quoted(value)
    if sweep:
        what = f"a list is written {key}=[{value}]" if isinstance(default, list) else "choose one"
        if isinstance(default, float) and re.fullmatch(r"[+-]?\d*,\d+", value):
            what = f"a decimal point is a dot: {key}={value.replace(',', '.')}"
        raise UserError(f"{key}={value}: several values make a sweep, which takes -m; {what}")
    return value


def in_a_sweep(override: str) -> str:
    """An override for Hydra as one of a sweep: a single value is a choice of one."""
    if OverridesParser.create().parse_override(override).is_sweep_override():
        return override
    key, _, value = override.partition("=")
    return f"{key}=choice({value})"


def texts_for_hydra(key: str, value: str) -> str:
    """A list of texts, or one text, each as it is typed: NaN and 007 are no numbers, and NULL in a list is a word."""
    if value in ("null", ""):
        return value
    if value[:1] != "[" and "," not in value:
        return quoted(unquoted(value))
    word = r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\]{}'"][^,\[\]{}'"]*)\s*"""
    if not re.fullmatch(rf"\[(\s*|{word}(,{word})*)\]", value):
        raise UserError(
            f"{key}={value}: a list is written {key}=[a,b]; what has a comma, a bracket or a quote in it needs quotes"
        )
    return f"[{','.join(quoted(unquoted(found.strip())) for found in re.findall(word, value[1:-1]))}]"


def unquoted(word: str) -> str:
    """A word without the quotes around it."""
    in_quotes = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1].replace(f"\\{word[0]}", word[0]) if in_quotes else word


def quoted(value: str) -> str:
    """A text in Hydra's quotes: a backslash counts only before a quote, and before `${`, which then is text."""
    value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    inner = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    trailing = len(inner) - len(inner.rstrip("\\"))
    return f"'{inner}{inner[len(inner) - trailing :] if trailing else ''}'"


def scalar(value: str) -> str:
    """A value of a mapping whose keys are the user's: a number, true, false and null as such, all else as a text.

    What stands in quotes is a text, without them.
    """
    kind = yaml.safe_load(value) if value else ""
    is_scalar = value.lower() == "null" or isinstance(kind, (bool, int, float))
    return value if is_scalar else quoted(unquoted(value))


def as_word(value: object) -> str:
    """A value of a settings file as Hydra reads it on the command line."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return json.dumps(value)
