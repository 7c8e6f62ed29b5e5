"""Plans of faults: from what one types (FAULTS="...") to the faults of each disturbed run.

kill@step=7,rank=1        a name, and parameters behind @
delay=100ms               a name and its main parameter
kill                      all parameters as they are by default
each                      each fault that can happen, in a run of its own
random:5                  five faults that a seed chooses
"""

from __future__ import annotations

import difflib
import random
import re
import textwrap
from collections.abc import Sequence

from cookbook import UserError
from cookbook.tools.chaos.fault import Fault, Scene
from cookbook.tools.chaos.faults import FAULTS
from cookbook.tools.chaos.kinds import Kind

RANDOM = re.compile(r"random:([1-9]\d?)")
EACH = "each"


def nearest(word: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, names, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else "."


def parse(word: str) -> Fault:
    """One fault, as typed. Raises UserError, with the nearest name or what was expected."""
    head, at, tail = word.partition("@")
    name, equals, value = head.partition("=")
    if name not in FAULTS:
        names = [*FAULTS, "random:5", EACH]
        raise UserError(f"the fault {name!r} is unknown{nearest(name, names)} There are: {', '.join(names)}")
    kind, given = FAULTS[name], {}
    pairs = [f"{kind.main}={value}"] if equals else []
    pairs += tail.split(",") if at else []
    known = kind.parameters()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key not in known:
            near = nearest(key, list(known))
            raise UserError(f"{word}: {name} has no parameter {key!r}{near} It has: {', '.join(known)}")
        if key in given:
            raise UserError(f"{word}: {key} is given twice")
        wanted: Kind = known[key].metadata["kind"]
        try:
            given[key] = wanted.read(text if equals else "")
        except ValueError:
            raise UserError(f"{word}: {key}={text} is none: expected {wanted.says}") from None
    return kind(**given)


def possible(scene: Scene) -> list[type[Fault]]:
    """The faults that can happen to runs in that scene, on this machine."""
    return [kind for kind in FAULTS.values() if not kind.impossible(scene) and not kind.lacking()]


def plan_by_chance(count: int, seed: int, scene: Scene, among: Sequence[type[Fault]]) -> list[Fault]:
    """A plan of `count` faults. The same seed, scene and faults to choose among give the same plan."""
    chance = random.Random(f"{seed} {count}")
    plan = []
    for _ in range(count):
        kind = among[chance.randrange(len(among))]
        plan.append(kind.by_chance(chance, scene, chance.randrange(kind.earliest, 91)))
    return plan


def in_order(plan: Sequence[Fault], num_steps: int) -> list[Fault]:
    """The faults by the steps at which they happen; those of the same step as they were typed."""
    return sorted(plan, key=lambda fault: fault.step.of(num_steps))


def plans_of(text: str, seeds: Sequence[int], scene: Scene) -> list[list[Fault]]:
    """What FAULTS asks for: a list of plans, each for one disturbed run. Raises UserError for what cannot be.

    Words that name faults make one plan, `each` makes one for each fault that can happen, `random:5` one of five faults
    for each seed.
    """
    words = text.split()
    if not words:
        raise UserError('which faults? FAULTS="kill@step=7,rank=1 driver_kill"; FAULTS=help lists them all')
    special = [word for word in words if RANDOM.fullmatch(word) or word == EACH]
    if special and len(words) > 1:
        raise UserError(f"{special[0]} is a plan of its own: leave out {' '.join(w for w in words if w != special[0])}")
    if special == [EACH]:
        return [[kind.usual(scene)] for kind in possible(scene)]
    if special and (found := RANDOM.fullmatch(special[0])):
        return [plan_by_chance(int(found[1]), seed, scene, possible(scene)) for seed in seeds]
    plan = [parse(word) for word in words]
    for fault in plan:
        if reason := fault.refusal(scene) or fault.lacking():
            raise UserError(f"{fault.name} cannot happen to this run: {reason}")
    return [plan]


def help_text() -> str:
    """All faults with their parameters, for `--help`."""
    lines = ["Faults (name@parameter=value,...; a name alone takes what is in brackets):", ""]
    for name, kind in FAULTS.items():
        first = " ".join((kind.__doc__ or "").split())
        lines += [f"  {name}", *_wrapped(first, 6)]
        for key, field in kind.parameters().items():
            about: Kind = field.metadata["kind"]
            text = f"{key} [{about.show(field.default)}]: {field.metadata['meaning']}; {about.says}"
            lines += _wrapped(text, 6, 10)
        lines += [f"      for example: {kind.example}", ""]
    lines += [
        f"  {EACH}",
        *_wrapped("each fault that can happen to this recipe here, each in a run of its own", 6),
        "  random:5",
        *_wrapped("a plan of five faults that SEED chooses; it is printed, so that it can be repeated", 6),
    ]
    return "\n".join(lines)


def _wrapped(text: str, indent: int, more: int | None = None) -> list[str]:
    after = " " * (indent if more is None else more)
    return textwrap.wrap(text, 100, initial_indent=" " * indent, subsequent_indent=after)
