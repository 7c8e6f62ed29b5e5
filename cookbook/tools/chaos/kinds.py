"""What the parameters of faults may be: how each kind is read from what one types, and shown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A moment of a run: a number of steps, or a share of those that the undisturbed run takes."""

    text: str

    def of(self, num_steps: int) -> int:
        """The number of steps, from 1; `num_steps`: of the undisturbed run."""
        if self.text.endswith("%"):
            return max(1, math.ceil(num_steps * float(self.text[:-1]) / 100))
        return int(self.text)


@dataclass(frozen=True)
class Kind:
    """What a parameter may be."""

    says: str
    read: Callable[[str], Any]  # raises ValueError for a text that is none
    show: Callable[[Any], str] = str


def _step(text: str) -> Step:
    if re.fullmatch(r"\d{1,2}(\.\d+)?%", text) and float(text[:-1]) > 0:
        return Step(text)
    if re.fullmatch(r"[1-9]\d*", text):
        return Step(text)
    raise ValueError(text)


def _number(least: float, most: float, convert: Callable[[str], T]) -> Callable[[str], T]:
    def read(text: str) -> T:
        value = convert(text)
        if not least <= float(text) <= most:
            raise ValueError(text)
        return value

    return read


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|)", text)
        if not found:
            raise ValueError(text)
        value = float(found[1]) / (1000 if found[2] == "ms" else 1)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return read


def show_seconds(value: float) -> str:
    return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:g}"


def choice(*names: str) -> Kind:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return Kind(" or ".join(names), read)


STEP = Kind("a number of steps from 1, or a share of the undisturbed run's steps such as 40%", _step, lambda s: s.text)


def whole(least: int, most: int) -> Kind:
    return Kind(f"a whole number from {least:,} to {most:,}", _number(least, most, int))


def seconds(least: float, most: float) -> Kind:
    says = f"seconds from {show_seconds(least)} to {show_seconds(most)}, such as 20, 1.5 or 100ms"
    return Kind(says, _seconds(least, most), show_seconds)


def parameter(default: object, kind: Kind, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "meaning": meaning})
