"""One virtual environment per recipe, made from its lock and used again as long as nothing that went into it changes.

As a program it makes them: python -m cookbook.prepare.environments [recipe ...]
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cookbook import ROOT, UserError, recipes, require_recipe
from cookbook.bootstrap import complete, interpreter, mark_as_used, point, uv_environment
from cookbook.certificates import way_to_index
from cookbook.prepare.locks import lock_of, overrides_of, variants_of
from cookbook.prepare.tools import PYTHON, uv
from cookbook.processes import run_tool, stop
from cookbook.programs import run_program
from cookbook.report.console import Progress, Stage

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a disk of a network that knows no locks (NFS, Lustre)
UNUSED_DAYS = 30  # an environment that was not used for so long is removed when another one is made


def environment_name(recipe: str, variant: str | None = None) -> str:
    """Its name in .venvs/: the recipe's, with -<variant> where the variant has a lock of its own."""
    return recipe + lock_of(recipe, variant).stem.removeprefix("requirements")


def fingerprint(recipe: str, variant: str | None = None, root: Path | None = None) -> str:
    """A hash of all that goes into the environment: lock, interpreter, run record, where wheels come from.

    `root`: the checkout that the environment is for, if it is another one.
    """
    root = root or ROOT
    sources = [
        lock_of(recipe, variant, root),
        *map(Path, overrides_of(recipe, root)[1:]),
        *sorted((root / "runrecord").glob("*.py")),
        root / "runrecord/pyproject.toml",
    ]
    build = root / "recipes" / recipe / "build_wheels.py"
    horovods = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_")}
    switches = horovods if build.exists() else {}
    told = [(name, value) for name, value in sorted(uv_environment().items()) if name not in way_to_index()]
    content = [interpreter(sys.executable).encode(), repr([told, sorted(switches.items())]).encode()]
    content += [path.read_bytes() for path in [*sources, *([build] if build.exists() else [])]]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def ensure(
    recipe: str, cache_dir: str | Path, stage: Progress, run_id: str, variant: str | None = None
) -> tuple[Path, bool]:
    """Makes the recipe's environment unless this machine has it already; returns (its Python, whether it was made now).

    It lies in the user's cache under the hash of all that goes into it, so that every checkout shares it. `.venvs/`
    has links. The mark `.complete` is written last, so an environment that was cut off is not taken for a whole one.
    A lock file makes a second run wait.
    """
    name = environment_name(recipe, variant)
    folder = Path(cache_dir).absolute() / "environments" / f"{name}-{fingerprint(recipe, variant)[:12]}"
    python, made = folder / "bin/python", False
    try:
        if not complete(folder).exists() or not python.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not complete(folder).exists() or not python.exists():
                    _make(recipe, folder, Path(cache_dir), stage, run_id, variant)
                    made = True
    except OSError as error:
        cache, found = Path(cache_dir).absolute(), Path(str(error.filename))
        if cache not in (found, *found.parents) and found not in cache.parents and error.errno not in NO_LOCKS:
            raise  # no fault of the cache: the terminal is gone, for example
        raise UserError(
            f"the cache folder {cache_dir} cannot be used ({error.strerror}), and has no environment of {name} for "
            "this user: set cache_dir=... or COOKBOOK_CACHE to a folder of your own"
        ) from None
    if made:
        remove_unused(folder.parent)
    mark_as_used(folder)
    with contextlib.suppress(OSError):  # a checkout that cannot have links works all the same: they are for people
        (ROOT / ".venvs").mkdir(exist_ok=True)
        point(ROOT / ".venvs" / name, folder)
    return python, made


def _make(recipe: str, folder: Path, cache_dir: Path, stage: Progress, run_id: str, variant: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    # Bytecode is left to the first import. A run imports few of the modules: that takes 3 s in PyTorch's environment,
    # and compiling all of them 13 s.
    tools = {**uv_environment(), "UV_NO_PROGRESS": "1"}

    def step(text: str, *argv: str | Path) -> None:
        stage.update(text)
        run_tool(argv, stage, log, f"{recipe}: {text} failed; the whole output is in {log}", run_id, tools)

    step("making the environment", uv(), "venv", "--python", PYTHON, folder)
    install: list[str | Path] = [uv(), "pip", "install", "--python", folder / "bin/python"]
    step("installing the lock", *install, "-r", lock_of(recipe, variant), *overrides_of(recipe))
    step("installing runrecord", *install, "--no-deps", "--refresh-package", "runrecord", ROOT / "runrecord")
    build = ROOT / "recipes" / recipe / "build_wheels.py"
    if build.exists():
        step("compiling what has no wheel (minutes, once)", folder / "bin/python", build, cache_dir / "wheels")
    complete(folder).touch()


def remove_unused(parent: Path, days: float = UNUSED_DAYS) -> None:
    """Removes the environments that were not used for so many days, and that no living process runs in."""
    limit = time.time() - days * 86_400
    running = " ".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
        # One that is not complete is being made, or was interrupted. Then the time of its folder counts.
        state = complete(folder) if complete(folder).exists() else folder
        if state.stat().st_mtime < limit and f"{folder}/" not in running:
            with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_suffix(".log").unlink(missing_ok=True)


class _Part:
    """The progress of one of several environments, which have one stage together."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage, self.name, self.started = stage, name, time.monotonic()

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        self.stage.update(f"{self.name}: {text}", done, total)

    def line(self, text: str) -> None:
        self.stage.line(f".venvs/{self.name} {text}")

    def done(self, text: str) -> None:
        self.line(f"{text}  [{time.monotonic() - self.started:.1f} s]")


def make_all(recipes: Iterable[str]) -> None:
    """Makes all environments of these recipes, and says what it does.

    Two at a time: what is downloaded for one leaves the processors to the other, and so does the slowest file of a
    compilation.
    """
    from cookbook.settings import compose_recipe

    wanted = [(recipe, variant) for recipe in recipes for variant in variants_of(recipe)]
    cache_dirs = {recipe: compose_recipe(recipe)[0]["cache_dir"] for recipe, _ in wanted}
    run_ids = {pair: f"make-{os.getpid()}-{environment_name(*pair)}" for pair in wanted}

    def make_one(recipe: str, variant: str | None) -> None:
        part = _Part(stage, environment_name(recipe, variant))
        _, made = ensure(recipe, cache_dirs[recipe], part, run_ids[recipe, variant], variant)
        part.done("made") if made else part.line("is up to date")

    with Stage("environment") as stage, ThreadPoolExecutor(2) as pool:
        try:
            for future in as_completed([pool.submit(make_one, *pair) for pair in wanted]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for run_id in run_ids.values():
                stop(run_id, 5)
            raise


def main(argv: Sequence[str]) -> None:
    """Makes the environments of these recipes; without any, of all."""
    for name in argv:
        require_recipe(name)
    make_all(argv or recipes())


if __name__ == "__main__":
    run_program(main)
