"""Runs of a recipe with other locks than its own, each in a copy of the checkout."""

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from filelock import FileLock

from cookbook import ROOT, UserError, bootstrap, run_folder
from cookbook.prepare.environments import environment_name, fingerprint
from cookbook.prepare.locks import lock_of

TRIAL_SECONDS = 1500  # the most that one trial may take: the environment (Horovod is compiled) and the run
# Not part of a checkout, or made in it.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".venvs", "outputs", "__pycache__", ".*_cache", ".terraform")


class OutOfTime(Exception):
    """The minutes are over."""


class Trials:
    """Runs of a recipe at scale=smoke with different locks, each in a copy of the checkout; equal locks run once."""

    def __init__(self, recipe: str, variant: str | None, deadline: float) -> None:
        self.recipe, self.variant, self.deadline = recipe, variant, deadline
        self.outcomes: dict[str, str] = {}

    def __call__(self, lock: str, text: str) -> str:
        """Returns why the recipe fails with this lock, or an empty text. Raises OutOfTime."""
        key = hashlib.sha256(lock.encode()).hexdigest()
        if key not in self.outcomes:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            print(f"canary       {text} ...", flush=True)
            began = time.monotonic()
            self.outcomes[key] = self.run(lock)
            said = self.outcomes[key].splitlines()[0] if self.outcomes[key] else "ok"
            print(f"canary       {text}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
        return self.outcomes[key]

    def run(self, lock: str) -> str:
        with tempfile.TemporaryDirectory(prefix="canary-") as folder:
            copy = Path(folder, "checkout")
            shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
            target = copy / lock_of(self.recipe, self.variant).relative_to(ROOT)
            target.write_text(lock)
            words = [f"recipe={self.recipe}", *variant_words(self.recipe, self.variant), "scale=smoke", "resume=never"]
            argv = [sys.executable, "-m", "cookbook", *words, f"output_root={copy}/outputs"]
            with environment_of(copy, self.recipe, self.variant):
                status, output = run_to_its_end(argv, copy, TRIAL_SECONDS)
            content = run_folder.load((copy / "outputs" / self.recipe / "latest").resolve())
        if status == 0:
            return ""
        if reason := content.get("reason"):
            return str(reason)
        lines = [line for line in output.splitlines() if line.strip()] or ["no word"]
        return next((line for line in lines if line.startswith("error:")), lines[-1])


def run_to_its_end(argv: list[str], folder: Path, seconds: float) -> tuple[int, str]:
    """(exit status, output) of a driver.

    It is asked to end, and cleans up, when it takes longer than `seconds`, or when the canary itself is ended.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.write(f"\nerror: it did not end within {seconds:.0f} s\n")
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                process.wait()
        log.seek(0)
        return process.returncode, log.read()


@contextlib.contextmanager
def environment_of(copy: Path, recipe: str, variant: str | None) -> Iterator[None]:
    """Removes afterwards the environment that the copy makes, unless this or another checkout had it before."""
    name = f"{environment_name(recipe, variant)}-{fingerprint(recipe, variant, copy)[:12]}"
    folder = bootstrap.cache_dir() / "environments" / name
    keep = folder.exists() or fingerprint(recipe, variant, copy) == fingerprint(recipe, variant)
    try:
        yield
    finally:
        if not keep:
            with FileLock(folder.with_suffix(".lock")):
                shutil.rmtree(folder, ignore_errors=True)
            for suffix in (".log", ".lock"):
                folder.with_suffix(suffix).unlink(missing_ok=True)


def variant_words(recipe: str, variant: str | None) -> list[str]:
    """The setting that chooses a variant of a recipe which has a lock of its own."""
    if variant is None:
        return []
    driver = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())["driver"]
    if variant not in driver.get("modes", {}):
        raise UserError(f"conf/recipe/{recipe}.yaml: expected {variant} in driver.modes, which has a lock of its own")
    return [f"recipe.mode={variant}"]
