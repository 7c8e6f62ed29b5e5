"""Makes the driver's own environment, once per machine. Run: make setup (any Python 3.11; standard library only)

The environment lies in the user's cache, under the hash of what went into it. `.venv` is a link to it, so the next
checkout on this machine needs no environment of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cookbook import UserError, certificates

PYTHON = "3.11"  # of every environment
ROOT = Path(__file__).resolve().parent.parent
# What makes pip and uv install somewhere else, or something else than a lock says; companies, NVIDIA's containers and
# other projects export it.
OTHER_INSTALLS = (
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_NO_DEPS", "PIP_DRY_RUN"),
    *("PIP_REQUIRE_HASHES", "UV_SYSTEM_PYTHON", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_TARGET", "UV_PREFIX"),
    *("UV_REQUIRE_HASHES", "UV_DRY_RUN", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIREMENT", "PIP_NO_BINARY"),
    *("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_EXCLUDE_NEWER", "UV_NO_BINARY"),
    *("UV_MANAGED_PYTHON", "UV_NO_MANAGED_PYTHON", "UV_PYTHON_PREFERENCE"),
)
OWN_CACHE = "choose a folder of yours: COOKBOOK_CACHE=/its/name make ..."


def cache_dir() -> Path:
    """The folder for what all checkouts of this user share: datasets, compiled wheels, environments.

    Raises UserError for a user without a home.
    """
    if own := os.environ.get("COOKBOOK_CACHE"):
        return Path(own).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "distributed-ml-cookbook"
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise UserError(f"user {os.getuid()} has no home for the cache folder; {OWN_CACHE}") from None
    return Path(home) / ".cache/distributed-ml-cookbook"


def usable(cache: Path) -> Path:
    """The cache folder. Raises UserError where it, or this checkout, has a name that no environment can have."""
    if os.pathsep in str(ROOT):
        raise UserError(f"this checkout is in {ROOT}, and {os.pathsep!r} divides PATH: move it to another folder")
    if os.pathsep in str(cache):
        raise UserError(f"the cache folder {cache} has {os.pathsep!r} in its name, which divides PATH; {OWN_CACHE}")
    return cache


def interpreter(python: str) -> str:
    """What tells one interpreter from another: its version and where it is installed."""
    script = "import sys; print(sys.version, sys.base_prefix)"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout


def point(link: Path, folder: Path) -> None:
    """Makes `link` lead to `folder`. A real folder in its place (an environment of earlier versions) is removed.

    Raises UserError for a folder that is somebody's own: editors and other tools make a .venv, too.
    """
    if link.is_symlink() and link.readlink() == folder:
        return
    if link.is_dir() and not link.is_symlink():
        if not (complete(link).exists() or (link / "bin/.stamp").exists()):
            raise UserError(f"{link} is a folder that `make` has not made, and a link of that name is needed: move it")
        shutil.rmtree(link)
    partial = link.with_name(f"{link.name}.{os.getpid()}")
    partial.symlink_to(folder)
    partial.replace(link)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time into the block; the others wait."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def complete(folder: Path) -> Path:
    """The file that an environment has once it is whole; its time is when the environment was last used."""
    return folder / ".complete"


def mark_as_used(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        complete(folder).touch()


def uv_environment() -> dict[str, str]:
    """What uv is told because it does not read pip's settings.

    That is: which certificates to trust, where wheels lie (a local CPU build of torch, say), and the way to the index.
    """
    links = None if "UV_FIND_LINKS" in os.environ else certificates.pip_setting("find-links")
    found = {"UV_FIND_LINKS": ",".join(links.split())} if links else {}
    return {**certificates.certificates(), **certificates.way_to_index(), **found}


def install_environment() -> dict[str, str]:
    """The variables under which pip and uv install into the environment that they are told, and all of the lock.

    `PIP_USER` is said because pip's settings file may have it too.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OTHER_INSTALLS}
    return {**kept, **uv_environment(), "PIP_USER": "0", "UV_NO_PROGRESS": "1"}


def make(folder: Path) -> None:
    """Makes the driver's environment. Raises CalledProcessError when a step fails."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = ROOT / "requirements.txt"
    python = str(folder / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (uv,) = re.findall(r"^uv==\S+$", lock.read_text(), re.MULTILINE)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    environment = install_environment()
    subprocess.run([*pip, uv], check=True, env=environment)
    install = [str(folder / "bin/uv"), "pip", "install", "-q", "--python", python, "-r", str(lock)]
    subprocess.run(install, check=True, env=environment)
    complete(folder).touch()


def main() -> None:
    if (found := "{}.{}".format(*sys.version_info)) != PYTHON:
        raise SystemExit(
            f"error: {sys.executable} is Python {found}, and every environment is made with {PYTHON}: `make tools` "
            f"installs it; where it is not on PATH: PYTHON=/path/to/python{PYTHON} make ..."
        )
    content = [(ROOT / "requirements.txt").read_bytes(), interpreter(sys.executable).encode()]
    name = f"driver-{hashlib.sha256(b'-'.join(content)).hexdigest()[:12]}"
    try:
        folder = usable(cache_dir()) / "environments" / name
        if not complete(folder).exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")):
                if not complete(folder).exists():
                    print(f"setup        the driver's environment ({folder})", flush=True)
                    make(folder)
        try:
            point(ROOT / ".venv", folder)
        except OSError as error:
            raise UserError(
                f"{ROOT} cannot be written ({error.strerror}), and it needs the link .venv: have its owner run "
                "`make setup`, or copy the checkout to a folder of yours"
            ) from None
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: the driver's environment cannot be made: {error}") from None
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror}"
        raise SystemExit(f"error: the driver's environment cannot be made: {what}; {OWN_CACHE}") from None
    mark_as_used(folder)


if __name__ == "__main__":
    main()
