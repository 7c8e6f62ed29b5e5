"""The history of nightly runs, a file of JSON lines: what stands in a line, how it is written, how all are read."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cookbook import ROOT, UserError
from cookbook.prepare.locks import lock_of, pins
from cookbook.tools.provenance import lock_age, machine_class


class Figure(NamedTuple):
    """A number that is judged against its history."""

    value: float
    more_is_better: bool
    least_spread: float  # as a share of the median


@dataclass(frozen=True)
class Entry:
    """One run of one recipe: a line of the history."""

    recipe: str
    time: float  # when it began, in seconds since 1970
    commit: str
    machine: str  # its class: processor, cores, memory
    settings: str  # the overrides; only runs with equal ones are compared
    status: str  # ok or failed
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # package: version, as locked, and as the workers said
    seconds: dict[str, float] = field(default_factory=dict)  # stage: seconds
    objective: str = ""
    direction: str = "maximize"
    value: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    lock_age_days: float | None = None  # None: a shallow clone does not know
    ratios: dict[str, float] = field(default_factory=dict)  # of a benchmark

    def figures(self) -> dict[str, Figure]:
        """{name: figure}, without those that are not known."""
        found = {f"ratio {name}": Figure(value, True, 0.03) for name, value in self.ratios.items()}
        for name, value, more_is_better, least_spread in (
            (self.objective or "objective", self.value, self.direction == "maximize", 0.01),
            ("samples/s", self.samples_per_second, True, 0.05),
            ("seconds of the run", self.seconds.get("run"), False, 0.05),
            ("peak memory in MB", self.peak_memory_mb, False, 0.05),
        ):
            if value is not None:
                found[name] = Figure(value, more_is_better, least_spread)
        return found


class History(NamedTuple):
    """What a file of the history has, oldest first."""

    runs: list[Entry]
    benches: list[Entry]
    canaries: list[dict[str, Any]]
    problems: list[str]  # about lines that cannot be read


def read(path: str | Path) -> History:
    """Reads a history.

    Lines that are equal count once: a night's file may contain the history that it began with.
    """
    found = History([], [], [], [])
    if not Path(path).is_file():
        raise UserError(f"HISTORY={path} is not a file; expected JSON lines, as `make nightly-record` writes them")
    seen = {""}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if line.strip() in seen:
            continue
        seen.add(line.strip())
        try:
            _take(json.loads(line), found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"line {number} cannot be read ({type(error).__name__}: {error}): {line[:80]}"
            found.problems.append(text)
    for entries in (found.runs, found.benches):
        entries.sort(key=lambda entry: entry.time)
    found.canaries.sort(key=lambda content: content["time"])
    return found


def _take(content: dict[str, Any], history: History) -> None:
    """Adds a line to the history. Raises one of several errors where it is none."""
    kind = content.pop("kind")
    if kind == "canary":
        history.canaries.append(content)
    else:
        {"run": history.runs, "bench": history.benches}[kind].append(_entry(content))


def _entry(content: dict[str, Any]) -> Entry:
    entry = Entry(**content)
    if entry.status not in ("ok", "failed") or not isinstance(entry.time, int | float):
        raise ValueError(f"status={entry.status!r}, time={entry.time!r}: expected ok or failed, and seconds since 1970")
    return entry


def append(path: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Appends one line. It is one write, so that two processes do not mix their lines."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"kind": kind, **content}, sort_keys=True) + "\n")


def variant_of(recipe: str, overrides: Iterable[str]) -> str | None:
    """The mode that these overrides choose. It may have a lock of its own."""
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    if "modes" not in own["driver"]:
        return None
    chosen = {name: value for name, _, value in (word.partition("=") for word in overrides)}
    variant: str | None = chosen.get("recipe.mode", own["mode"])
    return variant


def entry_of(content: Mapping[str, Any], commit: str, now: float) -> Entry:
    """A run.json as an entry of the history."""
    lock = lock_of(content["recipe"], variant_of(content["recipe"], content["overrides"]))
    metrics = content["metrics"]
    peaks = [value for name, value in metrics.items() if name.endswith("peak_mb")]
    settings = [word for word in content["overrides"] if not re.match(r"(recipe|output_root|resume|cache_dir)=", word)]
    value = content["objective"]["value"]
    return Entry(
        recipe=content["recipe"],
        time=content["started"],
        commit=commit,
        machine=machine_class(content["machine"]),
        settings=" ".join(sorted(settings)),
        status="ok" if content["status"] == "ok" else "failed",
        reason=content["reason"],
        versions=pins(lock.read_text()) | content["versions"],
        seconds=content["seconds"],
        objective=content["objective"]["name"],
        direction=content["objective"]["direction"],
        value=value if value is not None and math.isfinite(value) else None,
        samples_per_second=metrics.get("samples_per_second"),
        peak_memory_mb=max(peaks, default=None),
        lock_age_days=lock_age(lock, now),
    )
