"""How to get a tool: this machine's package manager, and the line that installs. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cookbook.prepare.tools import PYTHON, Tool, output_of

# Newer releases of Debian and Ubuntu may have no such package; this one leads to the Java that they have.
INSTEAD = {"openjdk-17-jre-headless": "default-jre-headless"}


def manager() -> str | None:
    """The package manager of this machine: conda where one of its environments is active; None where there is none."""
    names = ["apt-get", "dnf", "brew", "conda"]
    if os.environ.get("CONDA_PREFIX") and shutil.which("conda"):
        return "conda"
    found = next((name for name in names if shutil.which(name)), None)
    if found in ("apt-get", "dnf") and not is_root() and not shutil.which("sudo") and shutil.which("conda"):
        return "conda"  # the system's packages are out of reach
    return "apt" if found == "apt-get" else found


def is_root() -> bool:
    return os.geteuid() == 0


def _candidate(package: str) -> str:
    """The version that apt would install, or an empty text."""
    done = output_of(["apt-cache", "policy", package])
    found = re.search(r"Candidate: (?:\d+:)?(\S+)", done.stdout) if done else None
    return "" if not found or found[1] == "(none)" else found[1]


def packages_of(tools: Iterable[Tool], manager_name: str) -> tuple[list[str], list[Tool]]:
    """Names of packages, each once, in the order of the tools; and the tools that this package manager lacks."""
    words: list[str] = []
    without: list[Tool] = []
    for tool in tools:
        found = tool.packages.get(manager_name, "").split()
        if not found:
            without.append(tool)
        words += [word for word in found if word not in words]
    return words, without


def install_line(tools: Sequence[Tool], manager_name: str) -> tuple[str, list[Tool]]:
    """The shell command that installs these tools, or an empty text; and the tools that must come from elsewhere."""
    words, without = packages_of(tools, manager_name)
    first: list[str] = []
    if manager_name == "apt":
        gone = {old: new for old, new in INSTEAD.items() if old in words and not _candidate(old) and _candidate(new)}
        words = [gone.get(word, word) for word in words]
    if manager_name == "apt" and any(word.startswith("python3") for word in words):
        default = _candidate("python3")
        if default and not default.startswith(PYTHON):
            words = [re.sub(r"^python3(?!\.)", f"python{PYTHON}", word) for word in words]
            if not _candidate(f"python{PYTHON}"):
                if "ubuntu" in _release():
                    first = [
                        "apt-get install -y software-properties-common",
                        "add-apt-repository -y ppa:deadsnakes/ppa",
                    ]
                else:
                    words = [word for word in words if not word.startswith(f"python{PYTHON}")]
                    without = [*without, *(tool for tool in tools if tool.name == "python")]
    if not words:
        return "", without
    commands = {
        "apt": ["apt-get update", *first, f"apt-get install -y {' '.join(words)}"],
        "dnf": [f"dnf install -y {' '.join(words)}"],
        "brew": [f"brew install {' '.join(words)}"],
        "conda": [f"conda install -y -c conda-forge {' '.join(words)}"],
    }[manager_name]
    root = "sudo " if manager_name in ("apt", "dnf") and not is_root() else ""
    return " && ".join(root + command for command in commands), without


def _release() -> str:
    path = Path("/etc/os-release")
    return path.read_text(encoding="utf-8").lower() if path.exists() else ""


def remedy(tools: Sequence[Tool]) -> str:
    """The command that installs these tools on this machine, as one line for the user."""
    name = manager()
    if name is None:
        words, without = packages_of(tools, "apt")
        line = "no package manager of apt-get, dnf, brew, conda was found"
        line += f"; Debian's names are: {' '.join(words)}" if words else ""
    else:
        line, without = install_line(tools, name)
    places = [f"{tool.name} comes from {tool.elsewhere or 'your system'}" for tool in without]
    return "   and ".join(filter(None, [line, *places]))
