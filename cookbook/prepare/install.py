"""Installs what the recipes need and this machine lacks. Run: make tools [RECIPE=horovod] [USE=tests] [YES=1]

It shows the one line that installs all of it, and asks first; YES=1 answers in a script. `make recipe-<name>` calls
`before` ahead of any other work: on a terminal that makes the same offer and goes on, elsewhere it stops and shows the
line. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

from cookbook import UserError, recipes
from cookbook.prepare import doctor, remedies
from cookbook.prepare.tools import EVERY_RECIPE, MAKE_HELP, TOOLS
from cookbook.programs import run_program


def install(findings: Iterable[doctor.Finding]) -> None:
    """Runs the line that installs these tools. Raises UserError when there is none, or when it fails."""
    tools = [finding.tool for finding in findings]
    name = remedies.manager()
    line, without = remedies.install_line(tools, name) if name else ("", tools)
    if not line:
        raise UserError(f"{', '.join(tool.name for tool in tools)}: {remedies.remedy(tools)}")
    if line.startswith("sudo ") and not shutil.which("sudo"):
        raise UserError(
            f"you are not root and there is no sudo: ask somebody who is to run\n  {line.replace('sudo ', '')}"
        )
    environment = {**os.environ, **({"DEBIAN_FRONTEND": "noninteractive"} if name == "apt" else {})}
    if subprocess.run(["sh", "-c", line], env=environment).returncode:
        raise UserError(f"the package manager failed (its words are above): {line}")
    for tool in without:
        print(f"{tool.name} has to come from elsewhere: {tool.elsewhere or 'your system'}", flush=True)


def agreed(question: str) -> bool:
    """Whether the user wants it. YES=1 says so beforehand; without a terminal there is nobody to ask."""
    if os.environ.get("YES") == "1":
        return True
    if not all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout)):  # None: it is closed
        return False
    try:
        return input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
    except EOFError:
        return False


def before(recipe: str, words: Iterable[str]) -> None:
    """What `make recipe-<name>` does first. Raises UserError when something is missing, and stays missing."""
    if recipe not in recipes():
        return  # the driver will say so, and name the nearest recipe
    uses = [EVERY_RECIPE, *(word.partition("=")[2] for word in words if word.startswith("cluster="))]
    made = doctor.is_made(recipe)
    findings = doctor.missing_for(doctor.tools_of(recipe), uses, made)
    if findings:
        if not agreed_to(findings):
            raise UserError(doctor.complaint(recipe, findings))
        install(findings)
        if findings := doctor.missing_for(doctor.tools_of(recipe), uses, made):
            raise UserError(doctor.complaint(recipe, findings))
    short = doctor.lack_of_space([recipe])
    if "disk" in short:
        raise UserError(short["disk"])
    if "memory" in short:
        print(f"warning: {short['memory']}", flush=True)


def agreed_to(findings: Sequence[doctor.Finding]) -> bool:
    """Shows what is missing and the line, and asks; returns the answer."""
    line = remedies.remedy([finding.tool for finding in findings])
    for finding in findings:
        print(f"missing      {finding.tool.name}: {finding.problem} (for: {finding.tool.why})", flush=True)
    print(f"this installs it:\n  {line}", flush=True)
    return agreed("Install it now?")


def main(argv: Sequence[str]) -> None:
    command, *words = argv or ["install"]
    if command == "before":
        before(words[0], words[1:])
        return
    names = [word for word in words if word in recipes()]
    uses = [word for word in words if word not in names]
    known = sorted({use for tool in TOOLS for use in tool.used_by} - {EVERY_RECIPE, MAKE_HELP})
    if unknown := [use for use in uses if use not in known]:
        raise UserError(
            f"{', '.join(unknown)} is unknown; RECIPE= takes one of {', '.join(recipes())}; "
            f"USE= takes {', '.join(known)}"
        )
    tools = [tool for name in names or recipes() for tool in doctor.tools_of(name)]
    findings = doctor.missing_for(tools, [EVERY_RECIPE, MAKE_HELP, *uses])
    if not findings:
        print("nothing is missing")
        return
    if not agreed_to(findings):
        raise UserError("nothing was installed; YES=1 make tools answers the question in a script")
    install(findings)
    if still := doctor.missing_for(tools, [EVERY_RECIPE, MAKE_HELP, *uses]):
        lines = [f"{finding.tool.name}: {finding.problem}" for finding in still]
        raise UserError(f"still missing: {'; '.join(lines)}")
    print("nothing is missing any more")


if __name__ == "__main__":
    run_program(main)
