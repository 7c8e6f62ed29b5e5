"""Environments: made once per content, never taken for finished when they are not, and safe
when two runs start at once."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cookbook import ROOT, UserError, bootstrap
from cookbook.bootstrap import complete
from cookbook.prepare import environments, locks
from tests import test_petastorm, test_spark, test_store_cases
from tests.helpers import CLEAN, Silent
from tests.prepare import recipes_of


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A checkout with one recipe that needs PyYAML only."""
    for module in (environments, locks):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "recipes/tiny").mkdir(parents=True)
    (tmp_path / "recipes/tiny/requirements.txt").write_text(
        (ROOT / "recipes/horovod/requirements.txt")
        .read_text()
        .split("pyyaml==")[1]
        .join(["pyyaml==", ""])
        .split("\n")[0]
    )
    shutil.copytree(ROOT / "runrecord", tmp_path / "runrecord")
    return tmp_path


@pytest.fixture
def ensure(tiny):
    """Asks for the environment of the recipe; the cache is the checkout's neighbour."""
    return lambda: environments.ensure("tiny", tiny / "cache", Silent(), f"test-{os.getpid()}")


def test_made_once_and_again_when_the_lock_changes(tiny, ensure):
    python, made = ensure()
    assert made
    assert subprocess.run([python, "-c", "import yaml, runrecord"]).returncode == 0
    assert ensure() == (python, False)
    assert (tiny / ".venvs/tiny/bin/python").samefile(python)
    lock = tiny / "recipes/tiny/requirements.txt"
    lock.write_text(lock.read_text() + "\n# changed\n")
    other, made = ensure()
    assert made
    assert other != python, "a run that still uses the first one keeps it"
    assert python.exists()
    assert (tiny / ".venvs/tiny").readlink() == other.parent.parent


def test_another_checkout_has_it_at_once(tiny, ensure, tmp_path, monkeypatch):
    python, _ = ensure()
    second = tmp_path / "second"
    shutil.copytree(tiny / "recipes", second / "recipes")
    shutil.copytree(tiny / "runrecord", second / "runrecord")
    for module in (environments, locks):
        monkeypatch.setattr(module, "ROOT", second)
    assert ensure() == (python, False)
    assert (second / ".venvs/tiny").readlink() == python.parent.parent


def test_an_interrupted_creation_is_made_again(ensure):
    python, _ = ensure()
    folder = python.parent.parent
    complete(folder).unlink()
    for path in (folder / "lib").rglob("runrecord.py"):
        path.unlink()
    assert ensure() == (python, True)
    assert subprocess.run([python, "-c", "import runrecord"]).returncode == 0


def test_two_at_once_make_it_once(ensure):
    results = []
    threads = [threading.Thread(target=lambda: results.append(ensure()[1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]


def test_what_nobody_has_used_for_a_month_is_removed(tiny, ensure):
    """But for the one that a living process was started from."""
    folders = []
    for change in ("first", "second", "third"):
        lock = tiny / "recipes/tiny/requirements.txt"
        lock.write_text(f"{lock.read_text()}\n# {change}\n")
        folders.append(ensure()[0].parent.parent)
    long_ago = time.time() - (environments.UNUSED_DAYS + 1) * 86_400
    for folder in folders[:2]:
        os.utime(complete(folder), (long_ago, long_ago))
    with subprocess.Popen([folders[1] / "bin/python", "-c", "input()"], stdin=subprocess.PIPE):
        environments.remove_unused(tiny / "cache/environments")
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_a_lock_that_cannot_be_installed_is_an_error(tiny, ensure):
    (tiny / "recipes/tiny/requirements.txt").write_text("pyyaml==0.0.0.1\n")
    with pytest.raises(UserError, match="tiny: installing the lock failed; the whole output is in"):
        ensure()
    assert list((tiny / "cache/environments").glob("*/.complete")) == []


@pytest.mark.parametrize("where", ["/proc/nowhere", "a-file/cache"])
def test_a_cache_folder_of_a_run_that_cannot_be_made(tiny, where):
    (tiny / "a-file").touch()
    with pytest.raises(UserError, match=r"cannot be used \(.*set cache_dir=\.\.\. or COOKBOOK_CACHE"):
        environments.ensure("tiny", tiny / where, Silent(), "run")


def test_every_lock_pins_everything_and_names_no_source():
    files = sorted(
        [ROOT / "requirements.txt", ROOT / "docs/requirements.txt", *ROOT.glob("recipes/*/requirements*.txt")]
    )
    assert len(files) >= 2
    for lock in files:
        lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert [line for line in lines if "==" not in line or "://" in line or line.startswith("-")] == [], lock
        assert [line for line in lines if locks.GPU_PACKAGES.match(line)] == [], lock
        source = lock.with_suffix(".in") if lock.parent != ROOT else ROOT / "pyproject.toml"
        assert source.name in lock.read_text().splitlines()[0]


def test_stop_ends_descendants_that_left_their_group():
    from cookbook import processes

    run_id = f"stop-{os.getpid()}"
    script = "import subprocess, sys, time; subprocess.Popen(['setsid', 'sleep', '600']); time.sleep(600)"
    child = processes.start([sys.executable, "-c", script], run_id)
    deadline = time.monotonic() + 10
    while len(processes.of_run(run_id)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes.of_run(run_id)) == 2
    processes.stop(run_id, 2)
    with contextlib.suppress(ChildProcessError):
        child.wait()
    assert processes.of_run(run_id) == []


def test_only_what_the_chosen_tests_need_is_prepared():
    def chosen(function, **parameters):
        callspec = SimpleNamespace(params=parameters)
        return SimpleNamespace(function=function, path=Path("tests/test_some.py"), callspec=callspec)

    assert recipes_of([chosen(test_spark.test_own_logs_in_many_forms)]) == ["spark"], (
        "by the list of words that it uses"
    )
    assert recipes_of([chosen(test_petastorm.test_fewer_row_groups_than_shards)]) == ["petastorm"], "by its own words"
    assert recipes_of([chosen(test_store_cases.test_stores_that_are_read)]) == ["petastorm"], "by its fixture"
    assert recipes_of([chosen(test_only_what_the_chosen_tests_need_is_prepared, recipe="dask")]) == ["dask"]


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"HOME": "/proc/none"}, "No such file or directory; choose a folder of yours: COOKBOOK_CACHE="),
        ({"COOKBOOK_CACHE": "/etc/passwd"}, "Not a directory; choose a folder of yours: COOKBOOK_CACHE="),
        ({"COOKBOOK_CACHE": "/tmp/a:b"}, "the cache folder /tmp/a:b has ':' in its name, which divides PATH"),
    ],
)
def test_a_cache_folder_that_cannot_be_made_is_said(environment, text):
    kept = {name: value for name, value in CLEAN.items() if name not in ("XDG_CACHE_HOME", "COOKBOOK_CACHE")}
    words = [sys.executable, "-m", "cookbook.bootstrap"]
    done = subprocess.run(words, cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert text in done.stderr and "Traceback" not in done.stderr


def test_installers_are_not_sent_elsewhere(monkeypatch):
    """Settings that other projects and companies export: packages would land in another folder, or not at all."""
    for name in bootstrap.OTHER_INSTALLS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1/simple")
    environment = bootstrap.install_environment()
    assert environment["PIP_INDEX_URL"] == "http://127.0.0.1/simple"
    assert {name: environment[name] for name in bootstrap.OTHER_INSTALLS if name in environment} == {"PIP_USER": "0"}


def test_a_checkout_whose_name_divides_path_is_refused(monkeypatch):
    monkeypatch.setattr(bootstrap, "ROOT", Path("/builds/2026-01-01T10:00:00/cookbook"))
    with pytest.raises(UserError, match=r"this checkout is in .*T10:00:00/cookbook, and ':' divides PATH: move it"):
        bootstrap.usable(Path("/tmp"))
    monkeypatch.setenv("COOKBOOK_CACHE", "cache")
    assert bootstrap.cache_dir() == Path.cwd() / "cache", "workers have another working folder"


def test_a_user_without_a_home_is_told_so(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "COOKBOOK_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(UserError, match="user 54321 has no home for the cache folder; choose a folder of yours"):
        bootstrap.cache_dir()


def test_a_virtual_environment_of_the_user_s_is_not_removed(tmp_path):
    """Editors make a .venv in the folder that is opened."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    with pytest.raises(UserError, match=r"\.venv is a folder that `make` has not made, and a link .*: move it"):
        bootstrap.point(tmp_path / ".venv", tmp_path / "made")
    assert (tmp_path / ".venv/pyvenv.cfg").exists()
    complete(tmp_path / ".venv").touch()
    bootstrap.point(tmp_path / ".venv", tmp_path / "made")
    assert (tmp_path / ".venv").readlink() == tmp_path / "made"


@pytest.mark.parametrize("number", environments.NO_LOCKS)
def test_a_disk_without_locks_is_named_with_the_setting(tiny, ensure, monkeypatch, number):
    def refused(self, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(environments.FileLock, "acquire", refused)
    with pytest.raises(UserError, match=rf"the cache folder .* cannot be used \({os.strerror(number)}.*COOKBOOK_CACHE"):
        ensure()


def test_make_setup_with_another_python_or_in_somebody_else_s_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").touch()
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bootstrap, "make", lambda folder: (folder.mkdir(), complete(folder).touch()))

    def refused(link, folder):
        raise PermissionError(13, "Permission denied", str(link))

    monkeypatch.setattr(bootstrap, "point", refused)
    with pytest.raises(
        SystemExit, match=r"cannot be written \(Permission denied\), and it needs the link \.venv: have"
    ):
        bootstrap.main()
    monkeypatch.setattr(sys, "version_info", (3, 13))
    with pytest.raises(SystemExit, match=r"is Python 3\.13, and every environment is made with 3\.11: `make tools`"):
        bootstrap.main()
