"""Run folders: outputs/<recipe>/<time>/ with run.json.

A run that was cut off after a checkpoint is taken up in its folder when the same command is started again.
"""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cookbook import UserError
from cookbook.files import read_json, write_whole
from cookbook.job import Settings

# In a run folder: says where the pods' checkpoints are. There is none where no pod has written any.
IN_CLUSTER = "checkpoints/in-the-cluster.txt"


class RunFolder:
    """A run folder that no other driver may use: this one holds the lock in it until it ends, however it ends."""

    def __init__(self, path: Path, lock: FileLock, resumed_from: str | None = None) -> None:
        """`resumed_from`: why an earlier try of this run stopped."""
        self.path, self._lock, self.resumed_from = path, lock, resumed_from
        (path / "logs").mkdir(exist_ok=True)

    def write(self, content: Mapping[str, Any]) -> None:
        """Writes run.json, a Result's content."""
        write_whole(self.path / "run.json", json.dumps(content, indent=2) + "\n")

    def close(self) -> None:
        self._lock.release()


def identity(recipe: str, config: Settings) -> str:
    """Equal for two starts of the same command: same recipe and settings, wherever the metrics are sent."""
    kept = {key: config[key] for key in ("recipe", "data", "cluster", "scale", "seed")}
    return hashlib.sha256(json.dumps([recipe, kept], sort_keys=True).encode()).hexdigest()[:16]


def storage_of(recipe: str, config: Settings, folder: Path, run_id: str, before: Mapping[str, Any]) -> str:
    """The run's own address in the object store of `cluster.storage`; empty without one.

    `before`: the run.json of an earlier try. A run that goes on with one keeps the address from there.
    """
    store = config["cluster"]["storage"]
    if before or not store:
        return str(before.get("storage", ""))
    # Others may use the same store, and their runs may begin in the same second.
    return f"{store.rstrip('/')}/runs/{recipe}/{folder.name}-{run_id[:8]}"


def open_run(root: str | Path, recipe: str, run_identity: str, resume: str) -> RunFolder:
    """Makes a run folder, or takes up the last one of the same command if that was cut off after a checkpoint.

    `resume`: auto, never, or a run folder to go on with although the settings are others (another number of workers).
    Raises UserError when that folder cannot be resumed, and OSError when `root` cannot be used.
    """
    parent = Path(root).absolute() / recipe
    parent.mkdir(parents=True, exist_ok=True)
    if resume not in ("auto", "never"):
        return _chosen(Path(resume).resolve(), recipe)
    if resume == "auto" and (run := _interrupted(parent, run_identity)):
        return run
    time, number = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = parent / (time if number == 1 else f"{time}.{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
        number += 1
    try:
        lock = FileLock(folder / ".driver.lock")
        lock.acquire(timeout=0)
        run = RunFolder(folder, lock)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a run in it would only puzzle
        raise
    _point_latest(parent, folder)
    return run


def _chosen(folder: Path, recipe: str) -> RunFolder:
    content = load(folder)
    if content.get("recipe") != recipe or not _may_have_checkpoints(folder, content):
        raise UserError(
            f"resume={folder}: expected auto, never, or the folder of a run of {recipe} that has checkpoints"
        )
    lock = FileLock(folder / ".driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"resume={folder}: that run is going on at this moment; wait for its end, or stop it") from None
    return RunFolder(folder.absolute(), lock, resumed_from=content.get("reason") or "its driver was killed")


def _interrupted(parent: Path, run_identity: str) -> RunFolder | None:
    folders = [path.parent for path in parent.glob("*/run.json")]
    for folder in sorted(folders, key=_age, reverse=True):
        if folder.is_symlink() or load(folder).get("identity") != run_identity:
            continue
        # The newest run of this command decides.
        lock = FileLock(folder / ".driver.lock")
        try:
            lock.acquire(timeout=0)
        except OSError:  # a Timeout, too
            return None  # it is running at this moment, or another user's
        content = load(folder)
        if not content.get("resumable") or not _may_have_checkpoints(folder, content):
            lock.release()
            return None
        _point_latest(parent, folder)
        reason = content.get("reason") or "its driver was killed"
        return RunFolder(folder, lock, resumed_from=reason)
    return None


def _may_have_checkpoints(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether there are checkpoints. Only the workers look into an object store: they begin anew where it has none."""
    return bool(content.get("storage")) or any(folder.glob("checkpoints/*"))


def _point_latest(parent: Path, folder: Path) -> None:
    """Makes `latest` a link to the newest run.

    There is no such link on a disk that has none (a Windows share, some mounts of containers).
    """
    link = parent / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        try:
            link.replace(parent / "latest")
        finally:
            link.unlink(missing_ok=True)  # still there where `latest` is a real folder (a copy that followed the link)


def newest(root: str | Path, recipe: str) -> Path | None:
    """The folder of a recipe's newest run, whether or not there is a link to it; None without any."""
    folders = [path.parent for path in (Path(root) / recipe).glob("*/run.json") if not path.parent.is_symlink()]
    return max(folders, key=_age, default=None)


def _age(folder: Path) -> tuple[float, str]:
    """What orders runs by time. A folder's name is local time, which another zone and winter time set back."""
    return load(folder).get("started", 0.0), folder.name


def load(folder: str | Path) -> dict[str, Any]:
    """The content of a run.json; {} if there is none that can be read."""
    return read_json(Path(folder) / "run.json")


def no_run(name: str, folder: str | Path) -> str:
    """What to say of a folder that is no run's: `name` is the setting that has it."""
    path, text = Path(folder), f"{name}={folder}: expected the folder of a run"
    if path.is_symlink() and not path.exists():
        return f"{text}, and this link leads to {path.readlink()}, which is not there any more: name another run"
    inside = [one.parent for one in path.glob("*/run.json") if not one.parent.is_symlink()] if folder else []
    return f"{text}, such as {max(inside) if inside else 'outputs/pytorch/latest'}"


def load_all(root: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """[(folder, content)] of all runs below `root`, oldest first."""
    folders = {path.parent.resolve() for path in Path(root).glob("*/*/run.json")}
    return [(folder, content) for folder in sorted(folders, key=_age) if (content := load(folder))]
