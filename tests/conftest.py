"""What several test files need: the recipes' environments, and runs of the driver that are looked at more than once."""

import hashlib
import os

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from cookbook import ROOT
from cookbook.prepare import environments
from cookbook.settings import compose_recipe
from tests.areas import NETWORK, area_of, areas, group_of
from tests.helpers import Silent, latest, python_of, recipes, run_cookbook


@pytest.fixture(autouse=True)
def no_slurm_for_plans(monkeypatch):
    """A plan of a job can be looked at on a machine without Slurm. Runs are programs of their own, and look for it."""
    monkeypatch.setattr("cookbook.places.slurm.TOOLS", ())


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also the tests that are marked as full")
    parser.addoption("--area", choices=areas(), help="only the tests of this area")


def pytest_collection_modifyitems(config, items):
    """Chooses the tier and the area, and the order."""
    every, wanted = config.getoption("all"), config.getoption("area")
    chosen = []
    for item in items:
        area = area_of(item)
        if (every or item.get_closest_marker("full") is None) and wanted in (None, area):
            chosen.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    # The long ones first: what comes last is short, and neither process waits long for the other.
    chosen.sort(key=lambda item: (area_of(item) not in NETWORK, area_of(item) not in recipes()))
    items[:] = chosen


class Groups(LoadScopeScheduling):
    """One test after the other goes to the next idle process; a group stays together."""

    def _split_scope(self, nodeid):
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


@pytest.fixture(scope="session")
def recipe_python():
    """Returns the Python of a recipe's environment, which is made if it is not there."""

    def ensure(recipe, variant=None):
        config, _ = compose_recipe(recipe)
        return environments.ensure(recipe, config["cache_dir"], Silent(), "tests", variant)[0]

    return ensure


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Returns the folder `name` that `make(folder)` has filled: once in a session, also when two processes ask."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    shared.mkdir(exist_ok=True)

    def folder_of(name, make):
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                make(folder)
                (shared / f"{name}.made").touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def undisturbed(made_once):
    """Returns (run.json, folder, output) of a short undisturbed run of a recipe.

    Each recipe and setting runs once in a session: the run record on disk serves all tests.
    """

    def run(*words):
        def make(root):
            _, _, output = run_cookbook(*words, output_root=root)
            (root / "output.txt").write_text(output)

        root = made_once(hashlib.sha256("\0".join(words).encode()).hexdigest()[:16], make)
        (recipe,) = (word.removeprefix("recipe=") for word in words if word.startswith("recipe="))
        return *latest(root, recipe), (root / "output.txt").read_text()

    return run


@pytest.fixture(scope="session")
def tools():
    """The Python of an environment with schemas, linters, and AWS on loopback (moto and an old provider)."""
    return python_of("infra-tests", ROOT / "tests/infra/requirements.txt")
