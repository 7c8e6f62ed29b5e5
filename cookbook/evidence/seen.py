"""Processes as their machines show them: what probe.py has answered, as types."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = re.compile(r"/site-packages/|/dist-packages/|/lib/python3[^/]*/|^<")


@dataclass(frozen=True)
class Frame:
    function: str
    file: str
    line: int

    @property
    def where(self) -> str:
        """`main.py:112 in train_step`; of a library's file with its folder."""
        shown = Path(self.file).name if not LIBRARY.search(self.file) else "/".join(Path(self.file).parts[-3:])
        return f"{shown}:{self.line} in {self.function}"

    @property
    def source(self) -> str:
        """The line itself, where this machine has that file; else empty."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True)
class Thread:
    name: str
    active: bool  # running on a core at that moment
    frames: tuple[Frame, ...]  # innermost first


@dataclass(frozen=True)
class Exchange:
    """One exchange as a rank's Flight Recorder has it."""

    number: int
    name: str
    sizes: str
    done: bool

    @property
    def text(self) -> str:
        return f"number {self.number}, {self.name} of {self.sizes}{'' if self.done else ', not over'}"


@dataclass(frozen=True)
class Seen:
    """A process as its machine shows it."""

    host: str
    pid: int
    ppid: int
    name: str
    words: str  # the begin of its command line
    state: str  # a letter, as ps has it
    cpu_share: float  # of one core while it was watched
    cpu_seconds: float
    waits_in: str  # the kernel's function in which it sleeps
    rank: int | None  # as its launcher told it
    threads: tuple[Thread, ...]
    how: str  # py-spy, faulthandler, thread dump (Java), or empty: no stacks
    why: str  # there are none
    samples: tuple[tuple[Thread, ...], ...]
    exchanges: tuple[Exchange, ...]


def seen_of(host: str, one: Mapping[str, Any]) -> Seen:
    """A process from probe.py's answer."""
    stacks, dump = one["stacks"], _threads(one.get("dump", ()))
    threads = dump or (_threads(stacks) if stacks is not None else parse_faulthandler(one["written"]))
    exchanges = (one["exchanges"] or {}).get("last", [])
    return Seen(
        host=host,
        pid=one["pid"],
        ppid=one["ppid"],
        name=one["name"],
        words=one["words"].strip(),
        state=one["state"],
        cpu_share=one["cpu_share"],
        cpu_seconds=one["cpu_seconds"],
        waits_in=one["waits_in"],
        rank=int(one["rank"]) if str(one["rank"]).isdigit() else None,
        threads=threads,
        how="thread dump" if dump else "" if not threads else "py-spy" if stacks is not None else "faulthandler",
        why=one["why"],
        samples=tuple(_threads(sample) for sample in one["samples"]),
        exchanges=tuple(Exchange(each["number"], each["name"], str(each["sizes"]), each["done"]) for each in exchanges),
    )


def _threads(stacks: Iterable[Mapping[str, Any]]) -> tuple[Thread, ...]:
    return tuple(Thread(one["name"], one["active"], tuple(Frame(*frame) for frame in one["frames"])) for one in stacks)


def parse_faulthandler(text: str) -> tuple[Thread, ...]:
    """The threads in what Python's faulthandler writes. It does not say which of them run."""
    threads: list[Thread] = []
    for part in re.split(r"^(?=(?:Current thread|Thread) 0x)", text, flags=re.MULTILINE):
        head = re.match(r"(Current thread|Thread) (0x[0-9a-f]+)(?: \[(.*?)\])?", part)
        if head:
            found = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', part, re.MULTILINE)
            frames = tuple(Frame(function, file, int(line)) for file, line, function in found)
            # A signal reaches the main thread: it is the one that writes.
            name = "MainThread" if head[1].startswith("Current") else head[3] or head[2]
            threads.append(Thread(name, False, frames))
    return tuple(threads)
