"""The user's files in an object store (s3://, gs://): listed, and copied into the cache where a builder reads files.

Spark reads a store itself where it has the jars for it: see `reads_stores`.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from cookbook.job import Settings
from cookbook.processes import run_tool
from cookbook.report.console import Progress

BROUGHT = ("s3", "gs")  # schemes of addresses whose files are brought here first


def reads_stores(config: Settings) -> bool:
    """Whether the workers read object stores themselves: a Spark with the jars for it, or one that runs already."""
    conf = config["recipe"].get("spark_conf", {})
    return bool(config["cluster"]["spark_master"]) or any(name.startswith("spark.jars") for name in conf)


@dataclass(frozen=True)
class Tool:
    """How a program is run in the recipe's environment; see `run_tool`."""

    python: str | Path
    stage: Progress
    log: Path
    run_id: str

    def run(self, failure: str, *arguments: str | Path) -> None:
        run_tool([self.python, *arguments], self.stage, self.log, failure, self.run_id)


def list_store(address: str, tool: Tool) -> str:
    """A line for each file that an address in an object store means: its name, size and tag.

    Raises UserError, with what the store said, where there is none, or where the store cannot be read.
    """
    tool.stage.update(f"listing {address}")
    with tempfile.NamedTemporaryFile() as file:
        tool.run(f"data.path={address} cannot be listed", "-m", "storage", "list", address, file.name)
        return Path(file.name).read_text()


def put(folder: Path, store: str, tool: Tool) -> str:
    """Puts a dataset into an object store, unless it is there; returns its address there."""
    address = f"{store.rstrip('/')}/datasets/{folder.name}"
    tool.stage.update(f"bringing {folder.name} to {address}")
    tool.run(f"{folder} could not be brought to {address}", "-m", "storage", "put", folder, address)
    return address


def bring(address: str, listing: str, cache_dir: Path, tool: Tool) -> Path:
    """The files of an address in an object store, in the cache: one file, or a folder that has all of them.

    The folder's name has a hash of address and listing. It appears whole or not at all.
    """
    names = [json.loads(line)["name"] for line in listing.splitlines()]
    folder = cache_dir / f"bucket-{hashlib.sha256(f'{address} {listing}'.encode()).hexdigest()[:12]}"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            tool.stage.line(f"{address}: {len(names):,} files are copied to {folder}")
            tool.run(f"data.path={address} cannot be copied", "-m", "storage", "get", address, folder)
    return folder / names[0] if address.rstrip("/").endswith(f"/{names[0]}") else folder
