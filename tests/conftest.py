"""What several test files need: the recipes' environments, and runs of the driver that are looked at more than once."""

import hashlib
import shutil
import subprocess

import pytest

from cookbook import ROOT, environments
from cookbook.eject import compose_recipe
from cookbook.environments import uv, uv_environment
from tests.helpers import CLEAN, Silent, run_cookbook

TOOLS = ROOT / "tests/infra/requirements.txt"


@pytest.fixture(scope="session")
def recipe_python():
    """Returns the Python of a recipe's environment, which is made if it is not there."""

    def ensure(recipe, variant=None):
        config, _ = compose_recipe(recipe)
        return environments.ensure(recipe, config["cache_dir"], Silent(), "tests", variant)[0]

    return ensure


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Returns (run.json, folder, output) of a short undisturbed run of a recipe; each recipe and setting runs once."""
    known = {}

    def run(*words):
        if words not in known:
            known[words] = run_cookbook(*words, output_root=tmp_path_factory.mktemp("undisturbed"))
        return known[words]

    return run


@pytest.fixture(scope="session")
def tools():
    """The Python of an environment with schemas, linters, and AWS on loopback (moto and an old provider)."""
    folder, stamp = ROOT / ".venvs/infra-tests", ROOT / ".venvs/infra-tests/.stamp"
    wanted = hashlib.sha256(TOOLS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        environment = {**CLEAN, **uv_environment()}
        subprocess.run([uv(), "venv", "-q", "--python", "3.11", folder], check=True, env=environment)
        subprocess.run(
            [uv(), "pip", "install", "-q", "--python", folder / "bin/python", "-r", TOOLS], check=True, env=environment
        )
        stamp.write_text(wanted)
    return folder / "bin/python"
