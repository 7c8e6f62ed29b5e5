"""The Python standard library's own source, as bytes: real text that every machine with Python has.

Windows of `context_length` + 1 bytes, cut one after the other from whole files; test windows come from files that no
training window comes from. The selection follows from the interpreter's version and the seed only.
Source:  the running interpreter's standard library, without tests, site-packages and what an installation may lack.
Licence: PSF-2.0.
"""

import platform
import sysconfig
from pathlib import Path

import numpy as np
from _common import DatasetError, run_builder

# Optional parts of an installation, machine-dependent files, and generated tables that are not like written code.
LEFT_OUT = (
    "test tests idle_test site-packages dist-packages idlelib tkinter turtledemo "
    "ensurepip lib2to3 encodings pydoc_data distutils __pycache__"
)


def build(folder, num_train_rows, num_test_rows, context_length, seed):
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not set(path.relative_to(root).parts[:-1]) & set(LEFT_OUT.split())
        and not path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
    ]
    order = np.random.default_rng(seed).permutation(len(files))
    # A file in ten is held out, whatever the number of rows: more rows never turn a test file into a training file.
    parts = {"test": [files[n] for n in order[::10]], "train": [files[n] for k, n in enumerate(order) if k % 10]}
    used = {}
    for split, wanted in (("train", num_train_rows), ("test", num_test_rows)):
        rows, used[split] = cut(parts[split], wanted, context_length + 1)
        if len(rows) < wanted:
            raise DatasetError(
                f"num_{split}_rows={wanted} is more than the standard library has: {len(rows)} rows of "
                f"{context_length + 1} bytes; ask for no more than that, or shorten context_length={context_length}"
            )
        np.save(folder / f"{split}_rows.npy", rows)
    return {
        "name": "python_source",
        "version": f"Python {platform.python_version()}",
        "source": "the Python standard library",
        "licence": "PSF-2.0",
        "rows": {"train": num_train_rows, "test": num_test_rows},
        "schema": {"rows": {"dtype": "uint8", "shape": ["rows", context_length + 1]}},
        "selection": {split: [str(path.relative_to(root)) for path in paths] for split, paths in used.items()},
    }


def cut(paths, wanted, length):
    """The first `wanted` whole windows, uint8 (rows, length), of these files one after the other; and
    the files they are from."""
    rows, used = [], []
    for path in paths:
        if sum(map(len, rows)) >= wanted:
            break
        text = np.frombuffer(path.read_bytes(), np.uint8)
        rows.append(text[: len(text) // length * length].reshape(-1, length))
        used.append(path)
    return np.concatenate(rows)[:wanted] if rows else np.empty((0, length), np.uint8), used


if __name__ == "__main__":
    run_builder(build)
