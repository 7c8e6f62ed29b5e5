"""How a recipe's test starts it inside the cookbook: through the driver, with its evidence."""

import pytest
import yaml

from runrecord import read_records
from tests.helpers import ROOT, run_cookbook


@pytest.fixture
def run_recipe(request, tmp_path):
    """Runs the recipe of the test's folder with the given settings; returns the records of its workers."""
    recipe = request.path.parent.name
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())

    def run(num_workers=2, **settings):
        words = [f"cluster.num_workers={num_workers}"]
        for name, value in settings.items():
            text = str(value).lower() if isinstance(value, bool) else value
            words.append(
                f"recipe.{name}={text}"
                if name in own
                else f"scale.{name}={text}"
                if name.startswith("max_")
                else f"{name}={text}"
            )
        _, folder, _ = run_cookbook(
            f"recipe={recipe}", *words, output_root=tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        )
        return read_records(folder)

    return run
