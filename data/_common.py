"""What the dataset builders share: a folder that appears whole or not at all, and downloads that can be trusted.

A builder is `python data/NAME.py OUT [key=value ...]` (values as JSON where they are not plain text).
It needs NumPy and what its own module names, and nothing else, so that it can be copied with a recipe.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np


def run_builder(build, argv=None):
    """Parses `OUT [key=value ...]`, calls `build(folder, **settings)` for the folder's content
    and lets it appear as OUT.

    `build` writes its files into the folder and returns the manifest's own part (name, version, source, licence, ...);
    sizes and SHA-256 of the files are added here. Errors that the user can do something about end as one line.
    """
    out, *pairs = sys.argv[1:] if argv is None else argv
    settings = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the partial folder is removed
    out = Path(out).absolute()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an earlier try that was cut off
    try:
        partial.mkdir(parents=True)
        manifest = build(partial, **settings)
        if empty := [part for part, number in manifest["rows"].items() if not number]:
            raise DatasetError(f"there are no rows in: {', '.join(empty)}; choose other files or settings (data.*)")
        manifest["files"] = {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": checksum(path, "sha256")}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        partial.rename(out)
    except (OSError, DatasetError) as error:
        # NumPy reports a full disk as a short write, without the errno.
        if isinstance(error, OSError) and out.parent.exists() and shutil.disk_usage(out.parent).free < 1 << 20:
            error = f"No space left on device: {out.parent} is full; make room there, or choose another place"
        raise SystemExit(f"dataset {out.name}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class DatasetError(Exception):
    """Something is wrong with the data or its source; the text says what to do next."""


def save_images(folder, split, images, labels):
    """Writes one split: images uint8 (n, height, width, channels) and labels int64 (n,)."""
    np.save(folder / f"{split}_images.npy", np.ascontiguousarray(images, dtype=np.uint8))
    np.save(folder / f"{split}_labels.npy", np.asarray(labels, dtype=np.int64))


def image_manifest(folder, classes, max_value, **facts):
    """The manifest of an image dataset, its shapes read back from the files that were written."""
    images = {split: np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in ("train", "test")}
    _, height, width, channels = images["train"].shape
    return {
        **facts,
        "classes": list(classes),
        "rows": {split: len(array) for split, array in images.items()},
        "schema": {
            "images": {"dtype": "uint8", "shape": ["rows", height, width, channels], "max_value": max_value},
            "labels": {"dtype": "int64", "shape": ["rows"], "range": [0, len(classes) - 1]},
        },
    }


def stratified_split(labels, test_fraction, seed):
    """Returns row numbers (train, test): the same share of each class, in an order fixed by the seed.

    A class with a single row stays in the training part; the caller says so.
    """
    random = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        num_test = min(max(1, round(len(rows) * test_fraction)), len(rows) - 1)
        test.append(rows[:num_test])
        train.append(rows[num_test:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata/*.metadata.json": "Iceberg"}


def refuse_tables(folder):
    """Raises DatasetError where the folder (or file), one below it or one that it lies in,
    is a table whose files hold rows that it has deleted or written anew."""
    folder = Path(folder).absolute()
    for pattern, name in TABLES.items():
        above = (found for parent in folder.parents for found in parent.glob(pattern))
        for found in itertools.chain(folder.rglob(pattern) if folder.is_dir() else (), above):
            top = found.parent.parent if "/" in pattern else found.parent
            raise DatasetError(
                f"{printable(top)} is a table of {name}: its files also hold rows that it has deleted or written anew; "
                "export it to plain Parquet files, and name those"
            )


def pointer_of(path):
    """What to say of a file that Git LFS has left in place of the real one, or None."""
    with contextlib.suppress(OSError), open(path, "rb") as content:
        if content.read(40).startswith(b"version https://git-lfs.github.com/spec"):
            return "it is a pointer of Git LFS, not the file itself: git lfs pull"
    return None


def same_file(path):
    """What two names of one file (links, hard links) have in common."""
    with contextlib.suppress(OSError):  # a link to nothing is only itself
        state = os.stat(path)
        if state.st_ino:
            return state.st_dev, state.st_ino
    return os.path.realpath(path)


def same_bytes(files):
    """{file: the one that has the same bytes}; of a file and its copy, `f.csv` and `f (1).csv`, the shorter path stays.

    Whole files are read only where sizes, beginnings and ends are the same. One that is empty, or that cannot be read,
    is left to whoever opens it.
    """
    alike, found = {}, {}
    for file in sorted(files, key=lambda file: (len(os.fsencode(file)), file)):
        with contextlib.suppress(OSError), open(file, "rb") as content:
            size, begin = os.stat(file).st_size, content.read(4096)
            content.seek(max(0, size - 4096))
            if size:
                alike.setdefault((size, begin, content.read()), []).append(file)
    for group in alike.values():
        first = {}
        for file in group if len(group) > 1 else ():
            with contextlib.suppress(OSError):
                one = first.setdefault(checksum(file, "sha256"), file)
                found |= {file: one} if one != file else {}
    return found


def every_file(folder, above=()):
    """Yields (path, problem) of all that lies below `folder`, sorted by name; links are followed.

    `problem` is None for a file that can be opened as one; else it says why not: a link to nothing,
    a folder that may not be looked into or that leads back to a folder above it, a pipe.
    """
    try:
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in above:
            yield Path(folder), "folder link that leads back to a folder above it"
            return
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Path(folder), error.strerror
        return
    for name in names:
        path = Path(folder, name)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            yield path, "link to nothing"
            continue
        except OSError as error:
            yield path, error.strerror
            continue
        if stat.S_ISDIR(mode):
            yield from every_file(path, (*above, (state.st_dev, state.st_ino)))
        else:
            yield path, None if stat.S_ISREG(mode) else "no regular file (a pipe, a socket or a device)"


def printable(name):
    """The name of a file as text that can be written anywhere, also when its bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def checksum(path, algorithm):
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(mirrors, name, md5, folder, attempts=4, timeout_seconds=30):
    """Fetches `name` from the first mirror that has it, into `folder`; returns its path.

    A cut connection is resumed with a Range request where it broke off, also by the next run. The file gets its name
    only when its MD5 is the published one; a corrupt one is fetched once more from the start, then it is an error.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / name, folder / f"{name}.part"
    if path.exists() and checksum(path, "md5") == md5:
        return path
    reasons = []
    for mirror in mirrors:
        url = urllib.parse.urljoin(mirror if mirror.endswith("/") else mirror + "/", name)
        shown = re.sub(r"//[^/@]*@", "//", url)  # without a password
        for attempt in range(attempts):
            try:
                _fetch(url, part, timeout_seconds)
            except urllib.error.HTTPError as error:
                reasons.append(f"{shown}: HTTP {error.code}")
                if error.code == 416:  # the part is longer than the file: it is not this file's beginning
                    part.unlink(missing_ok=True)
                    continue
                break
            except (OSError, ValueError, http.client.HTTPException, _CutError) as error:
                if getattr(error, "errno", None) == 28:  # no space left: no use in trying again
                    raise
                reasons.append(f"{shown}: {getattr(error, 'reason', error)}")
                time.sleep(0.2 * 2**attempt)
                continue
            got = checksum(part, "md5")
            if got == md5:
                part.replace(path)
                return path
            part.unlink()
            reasons.append(f"{shown}: MD5 is {got}, expected {md5}")
    raise DatasetError(
        f"{name} could not be fetched:\n  " + "\n  ".join(dict.fromkeys(reasons)) + "\n"
        f"Without network: put the file at {path} by hand and run again, or set a mirror "
        "(data.parameters.mirrors=[http://...])."
    )


class _CutError(Exception):
    """The connection ended before all announced bytes had come."""


def _fetch(url, part, timeout_seconds):
    """Appends to `part` what is still missing of `url`; prints progress every five seconds."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.closing(urllib.request.urlopen(request, timeout=timeout_seconds)) as answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file, whatever was asked for
        total = have + int(answer.headers.get("Content-Length", 0))
        shown = time.monotonic()
        with open(part, "ab" if have else "wb") as file:
            while block := answer.read(1 << 16):
                file.write(block)
                have += len(block)
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    print(f"{part.stem}: {have / 1e6:.1f} of {total / 1e6:.1f} MB", flush=True)
            file.flush()
            os.fsync(file.fileno())
    if have < total:
        raise _CutError(f"cut after {have} of {total} bytes")
