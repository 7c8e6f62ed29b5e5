"""What became of a disturbed run, and how it compares with the undisturbed one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROW_RULES = re.compile(r"rows_once|enough_rows|every_row|trials_counted")
CLOCK = re.compile(r"seconds$|per_second$|^seconds/")  # metrics that depend on the machine's speed


@dataclass(frozen=True)
class Try:
    """One start of the command."""

    status: str  # ok, failed, killed (the driver left no word)
    reason: str
    exit_status: int
    seconds: float
    log: str
    afresh: bool  # it did not go on with what the try before has left


@dataclass(frozen=True)
class Hit:
    """A fault that happened."""

    fault: str
    at_step: int
    in_try: int  # from 1
    after_seconds: float  # since that try began
    says: str


@dataclass
class Outcome:
    """What became of a disturbed run: the content of its chaos.json."""

    recipe: str
    place: str
    overrides: list[str]
    faults: list[str]
    names: list[str]
    seed: int | None  # of a plan that was drawn
    command: str
    machine: str
    commit: str
    time: float  # seconds since 1970
    folder: str
    cannot: str = ""  # why the fault cannot happen to this run: nothing was run then
    recovered: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    undisturbed_folder: str = ""
    undisturbed_seconds: float = 0.0
    undisturbed_steps: int = 0
    seconds: float = 0.0  # of all tries
    seconds_lost: float = 0.0
    goodput: float = 0.0  # seconds of the undisturbed run / seconds of the disturbed one, over all its tries
    steps_taken: int | None = None  # None: no worker of this recipe notes its rows
    steps_lost: int | None = None
    result: str = ""  # how the result compares with the undisturbed one
    rows: str = ""  # what the rules about rows say
    left: list[str] = field(default_factory=list)  # processes and files that were left behind
    run: str = ""  # the disturbed run's own folder


def compared(calm: Mapping[str, Any], hurt: Mapping[str, Any], repeats: str | float) -> tuple[str, list[str]]:
    """(how two run.json compare, what is wrong). `repeats`: how exactly the recipe repeats itself, as its file says.

    `bits`: the digests of the parameters are equal. A number: the metrics agree so closely, relatively, but those that
    measure time. `rules`: nothing is promised but the rules of evidence, which each run is judged by.
    """
    if repeats == "rules":
        return "the rules of evidence hold; the recipe promises no more", []
    if repeats == "bits":
        both = [sorted({str(worker.get("digest")) for worker in one["workers"]}) for one in (calm, hurt)]
        if "None" in both[0] or not both[0]:
            return "", [
                "the undisturbed run has no digest of its parameters: `repeats` of the recipe must say how to compare"
            ]
        short = [", ".join(digest[:12] for digest in digests) for digests in both]
        if both[0] != both[1]:
            return f"digest {short[1]}, undisturbed {short[0]}", [
                f"another result: digest {short[1]} instead of {short[0]}"
            ]
        return f"equal digest {short[0]}", []
    tolerance = float(repeats)
    names = {name for one in (calm, hurt) for name in one["metrics"] if not CLOCK.search(name)}
    if not names:
        return "", ["there are no metrics to compare"]
    wrong = []
    for name in sorted(names):
        old, new = calm["metrics"].get(name), hurt["metrics"].get(name)
        if old is None or new is None or not math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-12):
            wrong.append(f"another result: {name} is {new} instead of {old}")
    return f"{len(names)} metrics within {tolerance:g}" if not wrong else f"{len(wrong)} metrics differ", wrong


def rows_of(calm: Mapping[str, Any], hurt: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(what the rules about rows say of the disturbed run, what is wrong)."""
    wrong = []
    for key in ("num_rows", "account"):
        if calm.get(key) != hurt.get(key):
            wrong.append(f"rows: {key} is {hurt.get(key)} instead of {calm.get(key)}")
    found = [one for one in hurt["findings"] if ROW_RULES.match(one["rule"])]
    wrong += [f"rows: {one['rule']} is {one['outcome']}: {one['says']}" for one in found if one["outcome"] != "held"]
    return "; ".join(f"{one['rule']}: {one['says']}" for one in found) or "the recipe has no rule about rows", wrong
