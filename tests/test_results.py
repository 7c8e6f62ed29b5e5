"""A figure that a run claims is recomputed by other code from what the run has left: tests/results/<recipe>.py."""

import ast
import json
import re
import subprocess
import sys

import pytest

from cookbook import ROOT
from tests.helpers import CLEAN, Driver, copy_checkout, latest, recipes, short_words

# The words in a metric's name that make it a claim of quality.
QUALITY = {"accuracy", "auc", "baseline", "bits", "f1", "ndcg", "precision", "recall", "return", "rmse", "score"}


def about(recipe):
    """The constants of a recipe's module; it is read, not imported: it needs the recipe's environment."""
    path = ROOT / f"tests/results/{recipe}.py"
    assert path.exists(), f"nothing recomputes what {recipe} claims: write {path.relative_to(ROOT)}"
    assignments = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    found = {node.targets[0].id: node.value for node in assignments if isinstance(node.targets[0], ast.Name)}
    names = ("TOLERANCE", "EXCEPT", "BREAK", "BROKEN", "SMALLEST")
    modes = ast.literal_eval(found["MODES"]) if "MODES" in found else []
    return {name: ast.literal_eval(found[name]) for name in names} | {"MODES": modes}


def differences(recipe, folder, python):
    """{figure: (claimed, recomputed)} of those that differ by more than their tolerance.

    Fails when a figure of quality is neither recomputed nor excepted.
    """
    command = [python, "-W", "ignore", "-m", "tests.results", recipe, folder]
    done = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    recomputed, own = json.loads(done.stdout.splitlines()[-1]), about(recipe)
    claimed = json.loads((folder / "run.json").read_text())["metrics"]
    quality = {name for name in claimed if QUALITY & set(re.split(r"[/_]", name))}
    assert recomputed, "the module recomputes nothing"
    assert quality - set(own["EXCEPT"]) <= set(recomputed), "a figure that nothing recomputes"
    assert set(recomputed) <= set(claimed)
    found = {}
    for name, value in recomputed.items():
        value, tolerance = value if isinstance(value, list) else (value, own["TOLERANCE"])
        print(f"{recipe} {name}: claimed {claimed[name]}, recomputed {value}, tolerance {tolerance}")
        if not abs(claimed[name] - value) <= tolerance:
            found[name] = (claimed[name], value)
    return found


def test_each_module_belongs_to_a_recipe():
    found = {path.stem for path in ROOT.glob("tests/results/*.py")} - {"__init__", "__main__"}
    assert found == set(recipes())


@pytest.mark.parametrize("recipe", recipes())
def test_other_code_finds_the_figures_that_a_run_claims(recipe, undisturbed, recipe_python):
    _, folder, _ = undisturbed(f"recipe={recipe}", *short_words(recipe))
    assert differences(recipe, folder, recipe_python(recipe)) == {}


def modes():
    """(recipe, mode, its settings) of the other modes whose figures are recomputed."""
    return [
        pytest.param(path.stem, mode, words, id=f"{path.stem}-{mode}")
        for path in sorted(ROOT.glob("tests/results/*.py"))
        if path.stem in recipes()
        for several, words in about(path.stem)["MODES"]
        for mode in several
    ]


@pytest.mark.parametrize(("recipe", "mode", "words"), modes())
@pytest.mark.full
def test_other_code_finds_the_figures_of_a_mode(recipe, mode, words, undisturbed, recipe_python):
    _, folder, _ = undisturbed(f"recipe={recipe}", f"recipe.mode={mode}", *words)
    variant = mode if (ROOT / f"recipes/{recipe}/requirements-{mode}.txt").exists() else None
    assert differences(recipe, folder, recipe_python(recipe, variant)) == {}


@pytest.mark.parametrize("recipe", recipes())
@pytest.mark.full
def test_a_recipe_that_reports_more_than_is_true_is_found_out(recipe, tmp_path, recipe_python):
    """In a copy of the checkout the recipe's own judgement is broken; its run ends well, and its figures are wrong."""
    own, copy = about(recipe), copy_checkout(tmp_path / "copy")
    file, text, instead = own["BREAK"]
    path = copy / "recipes" / recipe / file
    assert path.read_text().count(text) == 1, f"{path.name} does not have the text that is to be broken"
    path.write_text(path.read_text().replace(text, instead))
    words = [f"recipe={recipe}", *own["SMALLEST"]]
    driver = Driver(*words, output_root=tmp_path / "out", checkout=copy)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    _, folder = latest(tmp_path / "out", recipe)
    found = differences(recipe, folder, recipe_python(recipe))
    assert sorted(found) == own["BROKEN"], "what is broken differs, and nothing else does"
    assert all(claimed > recomputed for claimed, recomputed in found.values())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pytorch"], "usage: python -m tests.results horovod outputs/horovod/latest"),
        (["pytorch", "nowhere"], "error: nowhere: expected the folder of a run, such as outputs/pytorch/latest"),
        (
            ["pytorch", "."],
            "is a run of pytorch with the status failed: expected one of pytorch that ended ok",
        ),
        (["horovod", "."], "expected one of horovod that ended ok"),
    ],
)
def test_a_run_that_leaves_nothing_to_recompute_is_refused(words, text, tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": "pytorch", "status": "failed", "dataset": null}')
    command = [sys.executable, "-m", "tests.results", *words]
    done = subprocess.run(command, cwd=tmp_path, env=CLEAN | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(text) and "Traceback" not in done.stderr
