"""One virtual environment per recipe, made from its lock and used again as long as nothing that went into it changes.

As a program it renews the locks or makes the environments:
python -m cookbook.prepare.environments lock|make [recipe ...]
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cookbook import ROOT, UserError, recipes, require_recipe
from cookbook.bootstrap import complete, interpreter, mark_as_used, point, uv_environment
from cookbook.prepare.tools import PYTHON
from cookbook.processes import run_tool, stop
from cookbook.report.console import Progress, Stage
from cookbook.words import run_program

UNUSED_DAYS = 30  # an environment that was not used for so long is removed when another one is made
# A CPU build of torch does not need these. On a machine with GPUs they are installed all the same, because torch's own
# metadata pins them exactly.
GPU_PACKAGES = re.compile(r"^(nvidia-|cuda-|triton)")


def uv() -> str:
    """The uv program of the driver's environment."""
    import uv as package

    program: str = package.find_uv_bin()
    return program


def lock_of(recipe: str, variant: str | None = None, root: Path | None = None) -> Path:
    """The lock of a recipe's environment: the variant's own where there is one (requirements-<variant>.txt)."""
    folder = (root or ROOT) / "recipes" / recipe
    own = folder / f"requirements-{variant}.txt"
    return own if own.exists() else folder / "requirements.txt"


def pins(lock: str) -> dict[str, str]:
    """{package: version} of a lock's text."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))


def overrides_of(recipe: str, root: Path | None = None) -> list[str]:
    """uv's option for a recipe whose packages contradict each other.

    overrides.txt, beside its requirements, has the requirements that win.
    """
    path = (root or ROOT) / "recipes" / recipe / "overrides.txt"
    return ["--override", str(path)] if path.exists() else []


def environment_name(recipe: str, variant: str | None = None) -> str:
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
    content = [
        interpreter(sys.executable).encode(),
        repr([sorted(uv_environment().items()), sorted(switches.items())]).encode(),
    ]
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
    if not complete(folder).exists() or not python.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not complete(folder).exists() or not python.exists():
                    _make(recipe, folder, Path(cache_dir), stage, run_id, variant)
                    made = True
        except OSError as error:
            cache, found = Path(cache_dir).absolute(), Path(str(error.filename))
            if cache not in (found, *found.parents) and found not in cache.parents:
                raise  # no fault of the cache: the terminal is gone, for example
            raise UserError(
                f"the cache folder {cache_dir} cannot be written ({error.strerror}), and it lacks the environment "
                f"of {name}: set cache_dir=... or COOKBOOK_CACHE to a folder of your own"
            ) from None
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


class NoSolution(UserError):
    """No versions of these packages fit together."""


def resolve(source: Path, *words: str, lock: str | None = None) -> str:
    """Returns the text of a lock for a requirements.in: every package pinned, no index addresses, no GPU packages.

    `lock` is the text of an earlier one: its versions stay unless `words` (uv's options) ask for others.
    Raises NoSolution with uv's reason where no versions fit together, UserError when uv cannot look (no network, say).
    """
    compile_ = [uv(), "pip", "compile", "-q", "--no-annotate", "--no-header", "--python-version", PYTHON]
    places = ("UV_FIND_LINKS", "UV_INDEX")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(places)}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        if lock:
            output.write_text(lock)
        argv = [*compile_, *words, source.name, "-o", str(output)]
        done = subprocess.run(argv, cwd=source.parent, env=environment, capture_output=True, text=True)
        if done.returncode:
            kind = NoSolution if "No solution found" in done.stderr else UserError
            raise kind(f"{source.name} cannot be locked:\n{done.stderr.strip()}")
        lines = output.read_text().splitlines()
    built = re.findall(r"^(\S+)==\S+\s+# not in the lock", source.read_text(), re.MULTILINE)
    return "".join(f"{line}\n" for line in lines if not GPU_PACKAGES.match(line) and line.split("==")[0] not in built)


def renew_lock(source: Path, *words: str) -> None:
    """Writes the lock beside a requirements.in (or pyproject.toml), with the newest versions that it allows."""
    target = source.with_suffix(".txt") if source.suffix == ".in" else source.with_name("requirements.txt")
    text = resolve(source, "--upgrade", *words)
    target.write_text(f"# Made by `make lock` from {source.name}; do not edit.\n{text}")
    print(f"{target.relative_to(ROOT)}: {len(text.splitlines())} packages")


def variants_of(recipe: str) -> list[str | None]:
    """The recipe's variants that have a lock of their own, and None for the plain one."""
    locks = (ROOT / "recipes" / recipe).glob("requirements-*.txt")
    return [None, *sorted(path.stem.removeprefix("requirements-") for path in locks)]


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
    command, *wanted = argv or [""]
    sources = sorted(ROOT.glob("recipes/*/requirements*.in"))
    if command not in ("lock", "make"):
        raise SystemExit("usage: python -m cookbook.prepare.environments lock|make [recipe ...]")
    for name in wanted:
        require_recipe(name)
    if command == "make":
        make_all(wanted or recipes())
        return
    if not wanted:
        renew_lock(ROOT / "pyproject.toml", "--all-extras")
        renew_lock(ROOT / "docs/requirements.in")
        renew_lock(ROOT / "guide/requirements.in")
    for source in sources:
        if not wanted or source.parent.name in wanted:
            renew_lock(source, *overrides_of(source.parent.name))


if __name__ == "__main__":
    run_program(main)
