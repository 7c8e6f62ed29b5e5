"""`scale=smoke` of every recipe: it ends ok, and takes a minute at most on two idle cores
once its environment is made."""

import time

import pytest

from tests.helpers import recipes, run_cookbook

MINUTE = 60.0  # s, of the run itself; the environment may have to be made first


@pytest.mark.full
@pytest.mark.parametrize("recipe", recipes())
def test_smoke(recipe, tmp_path, record_property, recipe_python):
    recipe_python(recipe)
    began = time.monotonic()
    content, _, output = run_cookbook(f"recipe={recipe}", "scale=smoke", output_root=tmp_path)
    seconds = time.monotonic() - began
    record_property("seconds", round(seconds, 1))
    print(f"\nsmoke {recipe}: {seconds:.1f} s")
    assert content["status"] == "ok", content["reason"]
    assert seconds <= 2 * MINUTE, output  # what else the machine does at the time may double it


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("kubeflow", "min_accuracy", 0.4),
        ("ray_tune", "budget_epochs", 6),
        ("spark", "model_rows", 6000),
        ("petastorm", "num_epochs", None),
    ],
)
def test_a_scale_shortens_what_only_one_recipe_does(recipe, key, value):
    from cookbook.settings import compose_recipe

    plain, short = (compose_recipe(recipe, words)[0] for words in ([], ["scale=smoke"]))
    if value is not None:
        assert short["recipe"][key] == value != plain["recipe"][key]
        assert (
            compose_recipe(recipe, ["scale=smoke", f"recipe.{key}={plain['recipe'][key]}"])[0]["recipe"][key]
            == plain["recipe"][key]
        )
    assert short["scale"]["max_steps"] == 40
