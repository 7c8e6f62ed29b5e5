"""Says what the recipes need from the machine, what is missing, and the line that installs it. Run: make doctor

This runs with the system's own Python, old or new, before anything is installed: only the standard library is used.
`make doctor RECIPE=horovod` looks at what one recipe needs. The exit status is 1 when a recipe lacks something.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cookbook import ROOT, UserError, bootstrap, recipes, require_recipe
from cookbook.machine import can_be_made, free_disk_mb, free_memory_mb, may_run_programs
from cookbook.prepare.remedies import remedy
from cookbook.prepare.tools import EVERY_RECIPE, MAKE_HELP, PYTHON, Tool, output_of, tools_for
from cookbook.programs import run_program

MORE_FOLDERS = ["/usr/local/sbin", "/usr/sbin", "/sbin"]  # an ordinary user's PATH may lack them; servers are there
LINK_TEST = "#include <string>\n#include <vector>\nint main() { std::vector<std::string> v(1); return v.size() - 1; }\n"


@dataclass(frozen=True)
class Finding:
    tool: Tool
    path: str | None  # where it is; None: missing
    version: str = ""
    failure: str = ""  # why it cannot be used although it is there

    @property
    def problem(self) -> str | None:
        """What is wrong with the tool, or None."""
        if self.path is None:
            return self.failure or "missing"
        if self.failure:
            return f"{self.path} {self.failure}"
        found, wanted = ([int(part) for part in re.findall(r"\d+", text)] for text in (self.version, self.tool.minimum))
        if found < wanted:
            return f"version {self.version} is too old, expected {self.tool.minimum} or newer ({self.path})"
        if self.tool.maximum and found[0] > int(self.tool.maximum):
            return (
                f"version {self.version} is too new, expected {self.tool.minimum} to {self.tool.maximum} "
                f"({self.path}); another one beside it: JAVA_HOME=/its/folder make ..."
            )
        return None


def interpreter() -> str | None:
    """The Python that the environments will have, or None. `make` chooses it: PYTHON=/path/to/python3.11."""
    wanted = tuple(map(int, PYTHON.split(".")))
    if sys.version_info[:2] == wanted:
        base: str | None = getattr(sys, "_base_executable", None)
        return base or sys.executable
    return shutil.which(f"python{PYTHON}")


def ask(python: str, code: str) -> str | None:
    """What Python code prints in an interpreter, or None when it fails."""
    done = output_of([python, "-c", code])
    return done.stdout.strip() if done and done.returncode == 0 else None


def _python(tool: Tool) -> Finding:
    python = interpreter()
    if python:
        version = ask(python, "import platform; print(platform.python_version())")
        return Finding(tool, python, version or "", "" if version else "does not start")
    other = f"there is Python {platform.python_version()} only; " if sys.version_info[0] == 3 else ""
    return Finding(
        tool, None, "", f"Python {PYTHON} is missing ({other}where it is not on PATH: PYTHON=/its/path make ...)"
    )


def _venv(tool: Tool) -> Finding:
    python = interpreter()
    if python and ask(python, "import ensurepip, venv") is None:
        return Finding(tool, None, "", f"{python} lacks the modules venv and ensurepip")
    return Finding(tool, python)


def _headers(tool: Tool) -> Finding:
    python = interpreter()
    folder = python and ask(python, "import sysconfig; print(sysconfig.get_path('include'))")
    if not folder or not (Path(folder) / "Python.h").exists():
        return Finding(tool, None, "", f"{folder}/Python.h is missing" if folder else "missing")
    return Finding(tool, str(Path(folder) / "Python.h"))


def compiler() -> list[str] | None:
    """The command of the C++ compiler: CXX, else the first one on PATH; None when there is none."""
    if os.environ.get("CXX"):
        argv = shlex.split(os.environ["CXX"])
        return argv if shutil.which(argv[0]) else None
    found = shutil.which("g++") or shutil.which("c++")
    return [found] if found else None


def _compiler(tool: Tool) -> Finding:
    argv = compiler()
    if argv is None:
        asked = os.environ.get("CXX")
        return Finding(tool, None, "", f"CXX={asked} is not there" if asked else "")
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        if not may_run_programs(folder):
            place = Path(folder).parent
            return Finding(
                tool, argv[0], "", f"cannot be tried: {place} is mounted noexec; set TMPDIR to another folder"
            )
        program = f"{folder}/program"
        done = output_of([*argv, "-x", "c++", "-std=gnu++17", "-", "-o", program], LINK_TEST)
        made = output_of([program]) if done and done.returncode == 0 else None
    if made is None or made.returncode:
        last = done.stderr.strip().splitlines()[-1:] if done else []
        return Finding(tool, argv[0], "", f"cannot make a small program: {(last or ['it does not start'])[0][:120]}")
    number = output_of([*argv, "-dumpfullversion", "-dumpversion"])
    return Finding(tool, argv[0], number.stdout.strip() if number else "")


SPECIAL = {"python": _python, "venv": _venv, "headers": _headers, "c++": _compiler}


def examine(tool: Tool) -> Finding:
    """Looks for one tool on this machine."""
    if tool.name in SPECIAL:
        return SPECIAL[tool.name](tool)
    programs = tool.programs
    if tool.programs == ("java",) and os.environ.get("JAVA_HOME"):
        programs = (str(Path(os.environ["JAVA_HOME"]) / "bin/java"),)  # Spark takes this one, whatever is on PATH
    folders = os.pathsep.join([os.environ.get("PATH", ""), *MORE_FOLDERS])
    path = next((found for program in programs if (found := shutil.which(program, path=folders))), None)
    if path is None:
        named = f"JAVA_HOME={os.environ['JAVA_HOME']} has no bin/java" if programs != tool.programs else ""
        return Finding(tool, None, "", named)
    if not tool.version:
        return Finding(tool, path)
    answer = output_of([path, *tool.version])
    text = answer.stdout + answer.stderr if answer else ""
    # Java first repeats what JAVA_TOOL_OPTIONS says, and that may have numbers in it.
    text = "\n".join(line for line in text.splitlines() if not line.startswith("Picked up "))
    number = re.search(r"\d+(?:\.\d+)+|(?<=version \")\d+", text)
    if tool.minimum and not number:
        return Finding(tool, path, "", f"does not tell its version: {text.strip()[:120] or 'it does not start'}")
    return Finding(tool, path, number[0] if number else "")


def _driver_line(recipe: str, key: str) -> str:
    """The value of a one-line entry of `driver` in a recipe's settings, as text (read without a YAML library)."""
    path = ROOT / f"conf/recipe/{recipe}.yaml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(rf"^  {key}: *[\[{{]([^\]}}]*)[\]}}]", text, re.M)
    return found[1] if found else ""


def tools_of(recipe: str) -> list[str]:
    """The names that the recipe's settings have under `driver.tools`."""
    return [word.strip() for word in _driver_line(recipe, "tools").split(",") if word.strip()]


def needs_of(recipe: str) -> dict[str, int]:
    """{disk_mb, memory_mb}: measured; see `driver.needs` in the recipe's settings. Empty where nobody has measured."""
    return {key: int(number) for key, number in re.findall(r"(\w+): *(\d+)", _driver_line(recipe, "needs"))}


def is_made(recipe: str) -> bool:
    """Whether the recipe's environment is there already."""
    return (ROOT / ".venvs" / recipe).exists()


def missing_for(names: Collection[str], uses: Collection[str] = (EVERY_RECIPE,), made: bool = False) -> list[Finding]:
    """Findings with a problem. `made`: the environment exists, so tools that only its making needs do not count."""
    wanted = [tool for tool in tools_for(names, uses) if not (made and tool.only_for_environment)]
    return [finding for finding in map(examine, wanted) if finding.problem]


def require(names: Collection[str], recipe: str) -> None:
    """Raises UserError when a tool that a recipe needs is missing or too old."""
    findings = missing_for(names, (), is_made(recipe))
    if findings:
        raise UserError(complaint(recipe, findings))


def complaint(recipe: str, findings: Iterable[Finding]) -> str:
    """What a recipe lacks, and the one line that installs all of it."""
    findings = list(findings)
    lines = [
        f"recipe {recipe} needs what this machine lacks:",
        *(f"  {finding.tool.name}: {finding.problem} (for: {finding.tool.why})" for finding in findings),
        "This installs it:",
        f"  {remedy([finding.tool for finding in findings])}",
        "(`make tools` does that too)",
    ]
    return "\n".join(lines)


def lack_of_space(names: Sequence[str]) -> dict[str, str]:
    """{what: sentence} of what is short for these recipes: disk (all together) and memory (the hungriest one)."""
    needs = [needs_of(name) for name in names]
    short: dict[str, str] = {}
    disk = sum(needs_of(name).get("disk_mb", 0) for name in names if not is_made(name))
    memory = max([need.get("memory_mb", 0) for need in needs], default=0)
    folder = bootstrap.cache_dir()
    free, rest = free_disk_mb(folder), free_memory_mb()
    if not can_be_made(folder):
        short["disk"] = f"{folder} cannot be written; {bootstrap.OWN_CACHE}"
    elif free < disk:
        short["disk"] = (
            f"{_gb(free)} are free where {folder} is, expected {_gb(disk)} for the environments and data of "
            f"{', '.join(names)}; free some, or choose another disk: COOKBOOK_CACHE=/its/folder make ..."
        )
    if rest is not None and rest < memory:
        short["memory"] = (
            f"{_gb(rest)} of memory are free, {_gb(memory)} were used when it was measured; "
            "end other programs, or set cluster.num_workers=1"
        )
    return short


def _gb(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB"


def main(argv: Sequence[str]) -> int:
    names = argv or recipes()
    for name in names:
        require_recipe(name)
    needed = tools_for([tool for name in names for tool in tools_of(name)], (EVERY_RECIPE, MAKE_HELP))
    groups = [("for the recipes", needed, "")]
    if not argv:
        more = [tool for tool in tools_for((), ("hosts", "infra", "tests")) if tool not in needed]
        groups.append(("only for other hosts, infra/ and the tests", more, " USE=tests"))
        groups.append(("only for the tests that build images", tools_for((), ("images",)), " USE=images"))
    findings = {tool.name: examine(tool) for _, tools, _ in groups for tool in tools}
    for title, tools, _ in groups:
        if tools:
            print(f"{title}:")
        for tool in tools:
            finding = findings[tool.name]
            state = finding.problem or "  ".join(filter(None, [finding.version, finding.path]))
            _print_line(tool.name, state, bad=bool(finding.problem))
            if finding.problem:
                print(f"    for: {tool.why}")
    short = lack_of_space(names)
    folder, memory = bootstrap.cache_dir(), free_memory_mb()
    print("space:")
    room = f"{_gb(free_disk_mb(folder))} free where {folder} is"
    _print_line("disk", short.get("disk", room), bad="disk" in short)
    if memory is not None:
        _print_line("memory", short.get("memory", f"{_gb(memory)} free"), bad="memory" in short)
    missing = [finding.tool for finding in findings.values() if finding.problem]
    count = f", {len(missing)} missing" if missing else ""
    print(f"{len(findings) - len(missing)} of {len(findings)} tools found{count}")
    for title, tools, word in groups:
        if lacking := [tool for tool in tools if tool in missing]:
            print(f"what is missing {title} (`make tools{word}` does it):\n  {remedy(lacking)}")
    return 1 if short.get("disk") or any(tool in missing for tool in needed) else 0


def _print_line(name: str, state: str, bad: bool) -> None:
    print(f"{'--' if bad else 'ok'}  {name:<10} {state}")


if __name__ == "__main__":
    run_program(main)
