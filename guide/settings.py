"""What is typed behind make: words with a value, checked, with the nearest name where one is unknown."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cookbook import UserError
from guide.tasks import TASKS, Wanted

SIZES = tuple(dict.fromkeys(size.name for task in TASKS for size in task.sizes))
SYSTEMS = tuple(dict.fromkeys(system.name for task in TASKS for system in task.systems))
WORKERS = tuple(str(workers) for workers in sorted({n for task in TASKS for one in task.systems for n in one.workers}))
KEYS = {
    "tasks": "which tasks, with commas: " + ", ".join(task.name for task in TASKS),
    "systems": "which systems, with commas: " + ", ".join(SYSTEMS),
    "sizes": "which sizes, with commas: " + ", ".join(SIZES),
    "workers": "with how many workers, with commas: " + ", ".join(WORKERS),
    "launches": "times that each program is started anew; 3, smoke 1",
    "repeats": "times that a started program does its work again; 3, smoke 1",
    "minutes": "after which a program is given up; 30, smoke 5",
    "output_root": "the folder for results and page; outputs",
    "fresh": "true: measure again what the results have already",
}
HELP = (
    'usage: make guide [ARGS="smoke|page key=value ..."]\n\n'
    "smoke: the small sizes, each once; 10 minutes on a machine that is idle. Without it a night.\n"
    "page: measures nothing, and writes the page over the results that are there.\n"
    "Results are kept in <output_root>/guide/results.jsonl: what a guide that was cut off has measured is not\n"
    "measured again.\n\n" + "\n".join(f"  {key:<12} {meaning}" for key, meaning in KEYS.items())
)


def known(key: str, value: str, names: Iterable[str]) -> str:
    """The value, if it is one of the names. Raises UserError with the nearest one."""
    names = list(names)
    if value not in names:
        near = difflib.get_close_matches(value, names, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"{key}={value} does not exist{hint} There are: {', '.join(names)}")
    return value


def pairs_of(words: Sequence[str], keys: Iterable[str]) -> dict[str, str]:
    """{key: value} of words `key=value`. Raises UserError for other words, unknown keys, and keys given twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: expected key=value, with one of {', '.join(keys)}")
        known("setting", key, keys)
        if key in found:
            raise UserError(f"{key} is given twice: {found[key]} and {value}")
        found[key] = value
    return found


def number(key: str, text: str, least: int) -> int:
    """A whole number. Raises UserError for anything else, and for one that is too small."""
    try:
        value = float(text.replace("_", ""))
        if value != int(value) or value < least:
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{key}={text}: expected a whole number, {least} or more") from None
    return int(value)


def wanted_of(words: Sequence[str]) -> tuple[Wanted, Mapping[str, Any]]:
    """(what to measure, the other settings: page, minutes, output_root, fresh)."""
    smoke = "smoke" in words
    given = pairs_of([word for word in words if word not in ("smoke", "page")], KEYS)

    def some(key: str, names: Sequence[str]) -> tuple[str, ...]:
        if key not in given:
            return tuple(names)
        return tuple(known(key, one.strip(), names) for one in given[key].split(","))

    chosen = some("tasks", [task.name for task in TASKS])
    tasks = tuple(task for task in TASKS if task.name in chosen)
    usual = dict.fromkeys(size for task in tasks for size in (task.smoke if smoke else _whole(task)))
    wanted = Wanted(
        tasks,
        some("systems", SYSTEMS),
        some("sizes", SIZES) if "sizes" in given else tuple(usual),
        tuple(int(one) for one in some("workers", WORKERS)),
        number("launches", given.get("launches", "1" if smoke else "3"), 1),
        number("repeats", given.get("repeats", "1" if smoke else "3"), 1),
    )
    rest = {
        "page": "page" in words,
        "minutes": number("minutes", given.get("minutes", "5" if smoke else "30"), 1),
        "output_root": given.get("output_root", "outputs"),
        "fresh": known("fresh", given.get("fresh", "false"), ("true", "false")) == "true",
    }
    return wanted, rest


def _whole(task: Any) -> list[str]:
    return [size.name for size in task.sizes if size.name != "tiny"]
