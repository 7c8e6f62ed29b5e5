"""What several test files need: the recipes' environments, and runs of the driver that are looked at more than once."""

import pytest

from cookbook import environments
from cookbook.eject import compose_recipe
from tests.helpers import Silent, run_cookbook


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
