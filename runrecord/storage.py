"""Folders on a disk or in an object store (s3://bucket/prefix, gs://...), and checkpoints that are whole or not there.

A folder on a disk needs the standard library only. An object store needs fsspec and its driver (s3fs, gcsfs). Keys,
region and endpoint come from where these look for them: AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS
and so on; they are never arguments.

As a program:

    python -m storage list ADDRESS [FILE]     a line of JSON for each file, into FILE: name, size, tag
    python -m storage get ADDRESS FOLDER      every file; FOLDER appears whole or not at all

where ADDRESS may be a prefix, one object, or a pattern (s3://bucket/logs/*.gz); and

    python -m storage put FOLDER ADDRESS      every file, manifest.json last
    python -m storage send FOLDER ADDRESS     a checkpoint that could not be sent, as an error names it
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import random
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

MARKER = "checkpoint.json"  # written last: a checkpoint without it is not there
DRIVERS = {"s3": "s3fs", "gs": "gcsfs"}  # scheme -> the package that fsspec needs for it
CONNECT_SECONDS, READ_SECONDS = 10, 60
NUM_STREAMS = 16  # files that are copied at the same time
# No other try would help: a full or read-only disk of this machine.
LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
T = TypeVar("T")


class StorageError(Exception):
    """The storage cannot be used, or what it holds is damaged; the text says what to do next."""


def is_address(place: str | Path) -> bool:
    """Whether a place is in an object store, and no folder of this machine."""
    return "://" in str(place)


@dataclass(frozen=True)
class Retries:
    """How often something is tried. The pauses double from `first_seconds` up to `longest_seconds`."""

    attempts: int = 8
    first_seconds: float = 0.5
    longest_seconds: float = 20.0

    def call(self, what: str, work: Callable[[], T]) -> T:
        """Returns work(). Raises StorageError at once where another try cannot help, and after `attempts` tries."""
        began, pause = time.monotonic(), self.first_seconds
        for number in range(1, self.attempts + 1):
            try:
                return work()
            except Exception as error:
                if reason := _hopeless(error):
                    raise StorageError(f"{what}: {reason}") from error
                if not _temporary(error):
                    raise
                last = error
            if number < self.attempts:
                # Not all workers at the same moment: a store that throttles them would throttle them again.
                time.sleep(min(pause, self.longest_seconds) * random.uniform(0.75, 1.25))
                pause *= 2
        raise StorageError(
            f"{what}: given up after {self.attempts} tries in {time.monotonic() - began:.0f} s: {_said(last)}"
        ) from last


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _hopeless(error: Exception) -> str | None:
    """Why another try cannot help, and what to do; None where it may help."""
    if isinstance(error, OSError) and error.errno in LOCAL_TROUBLE:
        return f"{os.strerror(error.errno)} on {socket.gethostname()}: make room there"
    if isinstance(error, PermissionError):
        return f"the storage denies it ({_said(error)}); use keys that may do this (AWS_PROFILE, ...)"
    if type(error).__name__ in NO_ACCESS:
        return f"no keys were found ({_said(error)}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, FileNotFoundError):
        return f"it is not there ({_said(error)}); look at the bucket's name, or make the bucket"
    return None


def _temporary(error: Exception) -> bool:
    """Whether an error is the network's or the store's, and no bug."""
    ours = isinstance(error, (OSError, TimeoutError, EOFError))
    package = type(error).__module__.partition(".")[0]
    return ours or package in ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "requests", "urllib3")


@dataclass(frozen=True)
class File:
    """A file of a folder."""

    size: int  # bytes
    tag: str  # changes when the content does: an object's ETag, a file's time


class Folder(Protocol):
    """What a folder on a disk and one in an object store have in common. Names are relative, with slashes."""

    address: str

    def files(self, below: str = "") -> dict[str, File]:
        """All files, in subfolders too; {} for a folder that does not exist. `below`: only those of a subfolder."""

    def put(self, path: Path, name: str) -> None:
        """Brings a local file there; on a disk it is moved. The file is there whole or not at all."""

    def get(self, name: str, path: Path) -> None:
        """Copies a file from there to a local path."""

    def write(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes: ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, in this order."""


class DiskFolder:
    """A folder of this machine, or of a disk that many machines see."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.address = str(path)

    def files(self, below: str = "") -> dict[str, File]:
        found = {}
        for path in sorted((self.path / below).rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # another worker may remove it meanwhile
                if path.is_file():
                    state = path.stat()
                    found[path.relative_to(self.path).as_posix()] = File(state.st_size, str(state.st_mtime_ns))
        return found

    def put(self, path: Path, name: str) -> None:
        target = self.path / name
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        self._sync(target.parent)

    def get(self, name: str, path: Path) -> None:
        shutil.copyfile(self.path / name, path)

    def write(self, name: str, content: bytes) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(content)
        self.put(partial, name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def remove(self, names: Iterable[str]) -> None:
        # Only of files that were there: other writers may have just made the folder of one that was not.
        parents = set()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
                parents.add((self.path / name).parent)
        for parent in sorted(parents - {self.path}, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # something else is in it
                parent.rmdir()

    def _sync(self, folder: Path) -> None:
        """Brings a folder's list of names to the disk, so that they survive a power cut."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class BucketFolder:
    """A prefix of an object store. Each call is tried again when the store or the network fails for a while."""

    def __init__(self, address: str, retries: Retries | None = None) -> None:
        scheme, _, rest = address.partition("://")
        self.address, self.root, self.retries = address.rstrip("/"), rest.strip("/"), retries or Retries()
        bucket = self.root.partition("/")[0]
        if scheme not in DRIVERS or not bucket or "@" in bucket or ":" in bucket:
            raise StorageError(
                f"{address.split('@')[-1]!r} is no address of an object store; expected s3://bucket/prefix or "
                "gs://bucket/prefix (keys and endpoint come from the environment: AWS_PROFILE, AWS_ENDPOINT_URL)"
            )
        self.system = _file_system(scheme)

    def files(self, below: str = "") -> dict[str, File]:
        root = f"{self.root}/{below}".rstrip("/")

        def find() -> dict[str, dict[str, Any]]:
            try:
                found: dict[str, dict[str, Any]] = self.system.find(root, detail=True)
            except FileNotFoundError:
                bucket = self.root.partition("/")[0]
                if not self.system.exists(bucket):  # an empty prefix is no error, a bucket that is not there is
                    raise FileNotFoundError(f"bucket {bucket}") from None
                return {}
            return found

        return self._files_of(self.retries.call(f"listing {self.address}", find))

    def matching(self, pattern: str) -> dict[str, File]:
        """The files whose names fit a pattern."""
        found = self.retries.call(
            f"listing {self.address}/{pattern}", lambda: self.system.glob(f"{self.root}/{pattern}", detail=True)
        )
        return self._files_of(found)

    def _files_of(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, File]:
        return {
            name[len(self.root) + 1 :]: File(int(facts["size"]), _tag_of(facts))
            for name, facts in sorted(found.items())
            if facts.get("type") == "file" and name != self.root and not name.endswith("/")
        }

    def put(self, path: Path, name: str) -> None:
        what = f"sending {path} to {self.address}/{name}"
        self.retries.call(what, lambda: self.system.put_file(str(path), f"{self.root}/{name}"))

    def get(self, name: str, path: Path) -> None:
        what = f"reading {self.address}/{name}"
        self.retries.call(what, lambda: self.system.get_file(f"{self.root}/{name}", str(path)))

    def write(self, name: str, content: bytes) -> None:
        what = f"writing {self.address}/{name}"
        self.retries.call(what, lambda: self.system.pipe_file(f"{self.root}/{name}", content))

    def read(self, name: str) -> bytes:
        content: bytes = self.retries.call(
            f"reading {self.address}/{name}", lambda: self.system.cat_file(f"{self.root}/{name}")
        )
        return content

    def remove(self, names: Iterable[str]) -> None:
        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.system.rm_file(path)

        for name in names:
            self.retries.call(f"removing {self.address}/{name}", functools.partial(remove, f"{self.root}/{name}"))


def _tag_of(facts: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "LastModified", "updated"):
        if facts.get(key):
            return str(facts[key]).strip('"')
    raise StorageError(f"{facts.get('name')}: the store names no ETag, hash or time of it")


def _file_system(scheme: str, attempts: int = 1) -> Any:
    """fsspec's file system for a scheme, whose requests are tried so often.

    Raises StorageError, with the line that installs it, where its package is missing.
    """
    package = DRIVERS[scheme]
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise StorageError(
            f"{scheme}:// needs {package}, which this Python lacks ({error}): uv pip install --python "
            f"{sys.executable} {package}"
        ) from None
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        # Not more tries than asked for: s3fs and botocore would each multiply them.
        waiting = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        options["config_kwargs"] = {**waiting, "retries": {"total_max_attempts": attempts, "mode": "standard"}}
    made = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        made.retries = 1
    return made


def open_folder(place: str | Path, retries: Retries | None = None) -> DiskFolder | BucketFolder:
    """The folder at a path or an address. Raises StorageError for an address that cannot be one."""
    return BucketFolder(str(place), retries) if is_address(place) else DiskFolder(place)


def shared_dir(output_dir: str, checkpoint_dir: str) -> str:
    """Where a program puts files that workers on other machines read: beside its checkpoints in an object store.

    Without an object store: `output_dir`, which all machines must see.
    """
    return checkpoint_dir.rpartition("/")[0] if is_address(checkpoint_dir) else output_dir


def for_arrow(place: str) -> tuple[str, Any]:
    """(path, file system) as pyarrow and Ray want them; for a folder of this machine: (its path, None)."""
    if not is_address(place):
        return place, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    scheme, _, path = place.partition("://")
    return path, PyFileSystem(FSSpecHandler(_file_system(scheme, attempts=Retries.attempts)))


def find(place: str, retries: Retries | None = None) -> tuple[BucketFolder, dict[str, File]]:
    """The files that an address means: all below a prefix, one object, or what a pattern (*, ?, [], **) fits.

    Returns (the folder in which they are, {name: file}). Raises StorageError where there is nothing.
    """
    folder = BucketFolder(place, retries)
    if not (found := folder.files()):
        scheme, _, path = place.rstrip("/").partition("://")
        parts = path.split("/")
        first = next((number for number, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
        if first:  # the bucket itself is no pattern
            folder = BucketFolder(f"{scheme}://{'/'.join(parts[:first])}", retries)
            found = folder.matching("/".join(parts[first:]))
    if not found:
        raise StorageError(f"{place}: there is nothing; look at the address (python -m storage list ...)")
    return folder, found


def copy_from(place: str, target: Path, retries: Retries | None = None) -> dict[str, File]:
    """Copies the files that an address means to a local folder, which appears whole or not at all.

    Returns {name: file}. Raises StorageError where there is nothing, or where a name would lead out of the folder.
    """
    folder, found = find(place, retries)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)

        def fetch(name: str) -> None:
            path, file = partial / name, found[name]
            if not path.resolve().is_relative_to(partial.resolve()):
                raise StorageError(f"{place}: the name {name!r} leads out of the folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.get(name, path)
            if (size := path.stat().st_size) != file.size:
                raise StorageError(f"{place}/{name}: {size:,} bytes have come, expected {file.size:,}; try again")

        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            for number, _ in enumerate(pool.map(fetch, found), 1):
                if number % 100 == 0:
                    print(f"{number:,} of {len(found):,} files of {place}", flush=True)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process of this host was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def copy_to(source: Path, place: str, last: str = "manifest.json", retries: Retries | None = None) -> None:
    """Copies every file of a local folder to an object store, `last` at the end: who finds it finds all.

    What is there with the same size already stays: the folder's name must tell one content from another.
    """
    folder = BucketFolder(place, retries)
    there = {name: file.size for name, file in folder.files().items()}
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    names = sorted(name for name, size in sizes.items() if there.get(name) != size)
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        list(pool.map(lambda name: folder.put(source / name, name), [name for name in names if name != last]))
    if last in names:
        folder.put(source / last, last)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sums_of(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: {bytes, sha256}} of all files below a local folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
    }


def seal(folder: str | Path) -> None:
    """Writes the marker of a checkpoint into its local folder: for what a framework of its own stores (Ray Train)."""
    (Path(folder) / MARKER).write_text(json.dumps({"format": 1, "parts": sums_of(Path(folder))}, indent=1) + "\n")


def check_seal(folder: str | Path) -> None:
    """Raises Damaged when a local folder's files are not what its marker says."""
    Checkpoints(Path(folder).parent, folder).fetch(Path(folder).name)


class Noter(Protocol):
    """What is told of a checkpoint when it is whole: a RunRecord."""

    def checkpoint(self, path: str | Path, epoch: int, step: int) -> None: ...


class Checkpoints:
    """Checkpoints of a training, by position, in a folder or in an object store.

    They are called `epoch-00003-step-00000020`: the order of the names is that of the training.

    A checkpoint is a folder of files. It is whole or not there: its files come first, and last a marker with their
    sizes and SHA-256. Readers ask for the marker. A file that is not what the marker says makes it a damaged one: it
    is named, and the one before is taken. The newest `keep` stay.

    In an object store a checkpoint is sent by a thread beside the training. At most one is on its way: the next `save`
    waits for it. What went wrong is raised by that `save`, or by `close`. The local copy stays then.

    Several processes may write one checkpoint together, each its own files (`rank` of `num_writers`). Rank 0 writes
    the marker when all have written theirs. `token` is equal for all of them, and another one in each start.
    """

    def __init__(
        self,
        place: str | Path,
        local: str | Path,
        run: Noter | None = None,
        rank: int = 0,
        num_writers: int = 1,
        token: str = "",
        keep: int = 2,
        retries: Retries | None = None,
        others_seconds: float = 600.0,
        exchange: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
    ) -> None:
        """`place`: folder or address. `local`: a folder of this machine for what is on its way (object stores).

        `others_seconds`: how long rank 0 waits for the other writers. It looks for their notes in the folder; or
        `exchange`, called by all of them in `save`, gives each what all have: then their disks may be different ones.
        """
        self.folder, self.local, self.run = open_folder(place, retries), Path(local) / "storage", run
        self.rank, self.num_writers, self.token, self.keep = rank, num_writers, token, keep
        self.beside = is_address(place)
        self.others_seconds, self.exchange = others_seconds, exchange
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._fetched: list[Path] = []

    @property
    def _above(self) -> Path:
        """Where checkpoints are written first."""
        return self.local if self.beside else Path(self.folder.address)

    @contextlib.contextmanager
    def save(self, epoch: int, step: int) -> Iterator[Path]:
        """Gives an empty folder for the checkpoint's files; behind the block they are brought to their place.

        `step` counts within the epoch, and is 0 when `epoch` epochs are done. Raises StorageError when the checkpoint
        before this one could not be sent.
        """
        self.wait()
        name = f"epoch-{epoch:05d}-step-{step:08d}"
        partial = self._above / f".{name}.rank{self.rank}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if self.beside:
            self._thread = threading.Thread(target=self._send_beside, args=(partial, name, epoch, step), daemon=True)
            self._thread.start()
        else:
            self._bring(partial, name, epoch, step)

    def wait(self) -> None:
        """Returns when nothing is on its way. Raises StorageError when the last checkpoint could not be sent."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            raise error

    def last(self) -> Path | None:
        """A local folder with the files of the newest whole checkpoint; None without any.

        It is called before the training begins, by one process (others `fetch` what it has found) or by all. Damaged
        checkpoints are named on the terminal, and lose their marker when there is a whole one before them. Raises
        StorageError when there are only damaged ones.
        """
        for left in self.local.glob(f"fetched-{socket.gethostname()}-*") if self.beside else ():
            if not _is_alive(int(left.name.rpartition("-")[2])):  # of an earlier try that was killed
                shutil.rmtree(left, ignore_errors=True)
        damaged: dict[str, str] = {}
        for name in reversed(self.names()):
            try:
                found = self.fetch(name)
            except Damaged as error:
                print(
                    f"checkpoint {self.folder.address}/{name} is damaged: {error}; the one before is taken", flush=True
                )
                damaged[name] = str(error)
                continue
            for other, reason in damaged.items():  # the training is about to write checkpoints of these names anew
                self.folder.write(f"{other}/damaged.txt", f"{reason}\n".encode())
                self.folder.remove([f"{other}/{MARKER}"])
            return found
        if damaged:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in damaged.items())
            raise StorageError(
                f"every checkpoint in {self.folder.address} is damaged ({reasons}): bring back a whole one, or remove "
                "them all to begin afresh"
            )
        return None

    def names(self) -> list[str]:
        """The checkpoints that have their marker, oldest first."""
        return sorted(name.rpartition("/")[0] for name in self.folder.files() if name.endswith(f"/{MARKER}"))

    def fetch(self, name: str) -> Path:
        """A local folder with the files of one checkpoint. Raises Damaged when they are not what the marker says."""
        try:
            parts = json.loads(self.folder.read(f"{name}/{MARKER}"))["parts"]
            sizes = {part: (facts["bytes"], facts["sha256"]) for part, facts in parts.items()}
        except FileNotFoundError:
            raise Damaged(f"{self.folder.address}/{name}/{MARKER} is not on {socket.gethostname()}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{MARKER} cannot be read ({type(error).__name__}: {error})") from None
        target = Path(self.folder.address) / name
        if self.beside:
            target = self.local / f"fetched-{socket.gethostname()}-{os.getpid()}" / name
            self._fetched.append(target.parent)
            target.mkdir(parents=True, exist_ok=True)
        there = self.folder.files(name)
        for part, (size, sha256) in sizes.items():
            file, path = there.get(f"{name}/{part}"), target / part
            if file is None:
                raise Damaged(f"{part} is missing")
            if file.size != size:
                raise Damaged(f"{part} has {file.size:,} bytes, expected {size:,}")
            if self.beside:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.folder.get(f"{name}/{part}", path)
            if sha256_of(path) != sha256:
                raise Damaged(f"{part} has other content than when it was written")
        return target

    def _send_beside(self, partial: Path, name: str, epoch: int, step: int) -> None:
        try:
            self._bring(partial, name, epoch, step)
        except Exception as error:
            text = (
                f"checkpoint {name} could not be sent: {error}. It is not lost: it lies on {socket.gethostname()} in "
            )
            text += f"{partial}"
            if self.num_writers == 1:
                text += f"; to send it: {sys.executable} -m storage send {partial} {self.folder.address}/{name}"
            self._error = StorageError(text)
            self._error.__cause__ = error

    def _bring(self, partial: Path, name: str, epoch: int, step: int) -> None:
        """Parts first, the marker last; then the old ones go."""
        parts = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
        facts = sums_of(partial)
        if self.rank == 0:
            self.folder.remove([f"{name}/{MARKER}"])  # of a damaged checkpoint of this name
        for part, path in parts.items():
            self.folder.put(path, f"{name}/{part}")
        if self.num_writers > 1:
            facts = self._facts_of_all(name, facts)
        if self.rank == 0:
            marker = {"format": 1, "parts": facts}
            self.folder.write(f"{name}/{MARKER}", json.dumps(marker, indent=1).encode() + b"\n")
            if self.run:
                self.run.checkpoint(f"{self.folder.address}/{name}", epoch, step)
            self.remove_old(name)
        shutil.rmtree(partial, ignore_errors=True)

    def _facts_of_all(self, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What all writers have brought; of ranks other than 0 perhaps only their own.

        Raises StorageError when one of them does not come to its end.
        """
        if self.exchange and not self.beside:
            return {part: fact for each in self.exchange(dict(facts)) for part, fact in each.items()}
        notes = [f"{name}/.rank{rank}-{self.token}.json" for rank in range(self.num_writers)]
        self.folder.write(notes[self.rank], json.dumps(facts).encode())
        deadline, pause = time.monotonic() + self.others_seconds, 0.01
        while self.rank == 0 and (missing := sorted(set(notes) - set(self.folder.files(name)))):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{len(missing)} of {self.num_writers} writers have not brought their parts of {name} within "
                    f"{self.others_seconds:.0f} s: {missing[0]} is missing"
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        found: dict[str, Any] = {}
        for note in notes if self.rank == 0 else ():
            found |= json.loads(self.folder.read(note))
        return found

    def remove_old(self, newest: str | None = None) -> None:
        """Leaves `newest` (None: the last whole one) and the whole ones before it, `keep` in all.

        Later ones stay: other writers may be at them already. So do folders whose names are of another kind.
        """
        files = list(self.folder.files())
        whole = sorted(name.rpartition("/")[0] for name in files if name.endswith(f"/{MARKER}"))
        newest = newest or (whole[-1] if whole else "")
        kept = [name for name in whole if name <= newest][-self.keep :]
        older = {name.partition("/")[0] for name in files if "/" in name and name < newest} - set(kept)
        for name in sorted(name for name in older if _kind(name) == _kind(newest)):
            own = sorted((file for file in files if file.startswith(f"{name}/")), key=lambda file: MARKER not in file)
            self.folder.remove(own)
        for left in self._above.glob(f".*.rank{self.rank}.partial"):
            if left.name < f".{newest}.":  # of an earlier try that was cut off; a newer one is safe now
                shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Waits for what is on its way. Raises StorageError when it could not be sent."""
        try:
            self.wait()
        finally:
            for folder in self._fetched:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # something could not be sent: it stays
                self.local.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError as own:
            if error is None:
                raise
            print(own, file=sys.stderr, flush=True)  # the error that ends the training is the one to be raised


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _kind(name: str) -> str:
    """A checkpoint's name without its numbers."""
    return re.sub(r"\d+", "", name)


class Damaged(StorageError):
    """A checkpoint is not what its marker says."""


def send(folder: Path, address: str, retries: Retries | None = None) -> None:
    """Sends a checkpoint that lies in a local folder, its marker last."""
    place, _, name = address.rstrip("/").rpartition("/")
    copy = folder.with_name(f"{folder.name}.sent")
    shutil.copytree(folder, copy)  # the folder itself stays
    Checkpoints(place, folder.parent, retries=retries)._bring(copy, name, 0, 0)


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[0] not in ("list", "get", "put", "send"):
        raise SystemExit(__doc__)
    command, source, *rest = argv
    try:
        if command == "list":
            lines = [
                json.dumps({"name": name, "size": file.size, "tag": file.tag}) for name, file in find(source)[1].items()
            ]
            Path(rest[0] if rest else "/dev/stdout").write_text("".join(f"{line}\n" for line in lines))
        elif command == "get":
            if not Path(rest[0]).exists():  # it is whole where it is there
                copy_from(source, Path(rest[0]))
        elif command == "put":
            copy_to(Path(source), rest[0])
        else:
            send(Path(source), rest[0])
    except StorageError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
