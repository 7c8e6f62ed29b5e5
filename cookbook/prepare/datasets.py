"""Datasets in the cache.

data/<builder>.py builds each of them once, in the recipe's environment. The folder's name has a hash of all that the
dataset depends on, so that the next run finds it again.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from cookbook import ROOT, UserError
from cookbook.prepare.stores import BROUGHT, Tool, bring, list_store
from cookbook.report.console import Progress

DATA = ROOT / "data"
PATHS = ("path", "test_path")  # parameters that name files of the user


def builder_files(builder: str) -> list[Path]:
    """The builder's module and the ones beside it that it imports, itself first."""
    files = [DATA / f"{builder}.py"]
    for file in files:
        for name in re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE):
            path = DATA / f"{name}.py"
            if path.exists() and path not in files:
                files.append(path)
    return files


def read_besides(builder: str) -> list[Path]:
    """Files of a recipe that the builder reads, as its line `# Reads: FILE FILE` says."""
    lines = re.findall(r"^# Reads: (.+)$", (DATA / f"{builder}.py").read_text(), re.MULTILINE)
    return [ROOT / name for line in lines for name in line.split()]


def fingerprint(builder: str, parameters: Mapping[str, Any], listing: str = "") -> str:
    """A hash of the builder's code, its parameters, and the user's files if a path is among the parameters.

    `listing`: the names, sizes and tags of those that are in an object store.
    """
    digest = hashlib.sha256()
    for file in [*builder_files(builder), *read_besides(builder)]:
        digest.update(file.read_bytes())
    kept = {key: value for key, value in parameters.items() if key not in ("download_dir", "mirrors")}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for key in PATHS:
        for line in sorted(states(parameters.get(key) or [])):
            digest.update(line)
    digest.update(listing.encode())
    return digest.hexdigest()[:12]


def states(text: str | list[str]) -> Iterator[bytes]:
    """Yields a line of bytes (name, size, time) for each file that `text` names: a file, a folder, a glob, or a list.

    Links to files and to folders are followed, because a change behind them changes the dataset. A name is only a
    glob if there is no file of that name; then {a,b} stands for both, as a builder may have it.
    """
    for name in text if isinstance(text, list) else [text]:
        there = os.path.lexists(name)
        found = [name] if there else [path for one in _braces(name) for path in glob.glob(one, recursive=True)]
        waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(path, ()) for path in found]
        while waiting:
            path, above = waiting.pop()
            try:
                state = os.stat(path)
                place = (state.st_dev, state.st_ino)
                if stat.S_ISDIR(state.st_mode):
                    if place not in above:  # a link may lead back up
                        waiting += [(os.path.join(path, inside), (*above, place)) for inside in os.listdir(path)]
                    continue
                facts = f"{state.st_size} {state.st_mtime_ns}"
            except OSError as error:  # a link to nothing, or not readable: the builder will say so
                facts = str(error.strerror)
            yield os.fsencode(path) + f" {facts}\n".encode()


def _braces(pattern: str) -> list[str]:
    """a{b,c} as ab and ac."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    begin, end = pattern[: found.start()], pattern[found.end() :]
    return [one for word in found[1].split(",") for one in _braces(begin + word + end)]


def ensure(
    data: Mapping[str, Any],
    cache_dir: str | Path,
    python: str | Path,
    stage: Progress,
    log: Path,
    run_id: str,
    schemes: Collection[str] = BROUGHT,
) -> tuple[Path, dict[str, Any]]:
    """Builds the dataset unless the cache has it; returns (its folder, its manifest).

    `data` is the composed config group: `builder` and `parameters`. `schemes`: of the object stores whose files are
    brought here first; a builder gets other addresses as they are. Raises UserError when the dataset cannot be built
    or is damaged.
    """
    parameters, tool = dict(data["parameters"]), Tool(python, stage, log, run_id)
    listings: dict[str, str] = {}
    for key in PATHS:
        given = parameters.get(key) or []
        paths = [
            path if "://" in path else str(Path(path).expanduser().absolute())
            for path in (given if isinstance(given, list) else [given])
        ]
        listings |= {path: list_store(path, tool) for path in paths if path.partition("://")[0] in schemes}
        if given:
            parameters[key] = paths if isinstance(given, list) else paths[0]
    listing = "".join(listings.values())
    folder = Path(cache_dir).absolute() / f"{data['builder']}-{fingerprint(data['builder'], parameters, listing)}"
    try:
        # A dataset appears whole or not at all. So reading one needs no lock, and a shared cache may be read-only.
        if folder.exists():
            return folder, check(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                here = {path: str(bring(path, text, folder.parent, tool)) for path, text in listings.items()}
                for key in PATHS if here else ():
                    if given := parameters.get(key):
                        local = [here.get(path, path) for path in (given if isinstance(given, list) else [given])]
                        parameters[key] = local if isinstance(given, list) else local[0]
                stage.update(f"building {folder.name}")
                program = DATA / f"{data['builder']}.py"
                try:
                    tool.run(f"data={data['builder']} could not be built", program, folder, *as_arguments(parameters))
                finally:  # a builder that had to be killed has not done this itself
                    shutil.rmtree(folder.with_name(f".{folder.name}.partial"), ignore_errors=True)
    except OSError as error:
        try:
            room = f" ({shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there)"
        except OSError:
            room = ""
        raise UserError(
            f"the cache folder {folder.parent} cannot be used: {error.strerror}{room}; "
            "set cache_dir=... or COOKBOOK_CACHE to a folder of yours with room"
        ) from None
    return folder, check(folder)


def as_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """`key=value` of each parameter, as a builder reads them: a text as it is, all else as JSON."""
    texts = {
        key: value if isinstance(value, str) and not _is_json(value) else json.dumps(value)
        for key, value in parameters.items()
    }
    return [f"{key}={text}" for key, text in texts.items()]


def _is_json(text: str) -> bool:
    """Whether a builder would not take the text for a text: the name of a column may be 1, or null."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def check(folder: Path) -> dict[str, Any]:
    """Returns the manifest.

    Raises UserError when the folder does not hold what the manifest says, and PermissionError when it may not be read:
    another user has built it for himself.
    """
    problems: list[str] = []
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, facts in manifest["files"].items():
            path = folder / name
            if not path.exists():
                problems.append(f"{name} is missing")
            elif (size := path.stat().st_size) != facts["bytes"]:
                problems.append(f"{name} has {size:,} bytes, expected {facts['bytes']:,}")
            elif hashlib.file_digest(path.open("rb"), "sha256").hexdigest() != facts["sha256"]:
                problems.append(f"{name} has other content than when it was built")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"manifest.json cannot be read ({type(error).__name__}: {error})")
    if problems:
        raise UserError(
            f"dataset folder {folder} is damaged: {'; '.join(problems)}. Have it built again: rm -r {folder}"
        )
    if empty := [part for part, number in manifest.get("rows", {}).items() if not number]:
        raise UserError(
            f"dataset folder {folder} has no rows in: {', '.join(empty)}; choose other files or settings (data.*)"
        )
    return manifest
