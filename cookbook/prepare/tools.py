"""The tools that the recipes need from the machine: tools.ini as Python. Standard library only."""

from __future__ import annotations

import configparser
import platform
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cookbook import bootstrap

PYTHON = bootstrap.PYTHON
EVERY_RECIPE = "every recipe"
MAKE_HELP = "make help"
PROGRAM_SECONDS = 60  # that a program may take to print its version


def uv() -> str:
    """The uv program of the driver's environment."""
    import uv as package

    program: str = package.find_uv_bin()
    return program


@dataclass(frozen=True)
class Tool:
    name: str
    why: str  # what it is for
    programs: tuple[str, ...] = ()  # the first one that is on PATH counts
    version: tuple[str, ...] = ()  # arguments that make it print its version; none: not asked
    minimum: str = ""  # lowest version that will do
    maximum: str = ""  # the first number of the highest one; none: any
    packages: dict[str, str] = field(default_factory=dict)  # package manager -> packages
    elsewhere: str = ""  # where to get it when no package manager has it
    used_by: tuple[str, ...] = ()  # besides the recipes whose `driver.tools` name it
    system: str = ""  # the only system that has it; none: all
    only_for_environment: bool = False  # not needed any more once the recipe's environment is made


def read_tools() -> list[Tool]:
    """The tools in tools.ini, in its order."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(Path(__file__).with_name("tools.ini"), encoding="utf-8")

    def words(section: configparser.SectionProxy, key: str) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, section.get(key, "").split(","))))

    return [
        Tool(
            name,
            section["why"],
            words(section, "programs"),
            words(section, "version"),
            section.get("minimum", ""),
            section.get("maximum", ""),
            {manager: section[manager] for manager in MANAGERS if manager in section},
            section.get("elsewhere", ""),
            words(section, "used_by"),
            section.get("system", ""),
            section.get("only_for") == "environment",
        )
        for name, section in ((name, parser[name]) for name in parser.sections())
    ]


MANAGERS = ("apt", "dnf", "brew", "conda")
TOOLS = read_tools()


def tools_for(names: Collection[str] = (), uses: Collection[str] = ()) -> list[Tool]:
    """The tools that these names stand for, and those that these uses need; of this system, in the order of TOOLS."""
    here = [tool for tool in TOOLS if tool.system in ("", platform.system())]
    return [tool for tool in here if tool.name in names or set(tool.used_by) & set(uses)]


def output_of(argv: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str] | None:
    """The finished process, which has read `text`, or None when it cannot be started or hangs."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, input=text, timeout=PROGRAM_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
