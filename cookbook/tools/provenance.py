"""Which code and which kind of machine a figure comes from."""

import os
import re
import subprocess
from pathlib import Path

from cookbook import ROOT

OTHER_REPOSITORY = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_PREFIX", "GIT_CEILING_DIRECTORIES"),
)


def machine_class(machine: str) -> str:
    """The part of a run's machine that its speed depends on: without the versions of kernel and Python."""
    return re.sub(r", [^,]+, Python [^,]+$", "", machine)


def git(*arguments: str, root: str | Path = ROOT) -> str | None:
    """What a git command prints; None when it fails, or where there is no git.

    A hook of another repository has variables that name that one.
    """
    own = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, env=own)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit_of(root: str | Path = ROOT) -> str:
    """The commit, with + behind it where the tree has changes; unknown outside git."""
    commit = git("rev-parse", "HEAD", root=root)
    if not commit:
        return "unknown"
    return commit + ("+" if git("status", "--porcelain", root=root) else "")


def lock_age(lock: str | Path, now: float, root: str | Path = ROOT) -> float | None:
    """Days since the lock's last commit; None where git cannot know.

    In a shallow clone it cannot: all files seem as old as the last commit.
    """
    if git("rev-parse", "--is-shallow-repository", root=root) != "false":
        return None
    last = git("log", "-1", "--format=%ct", "--", str(lock), root=root)
    return round((now - int(last)) / 86400, 1) if last else None
