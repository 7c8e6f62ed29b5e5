"""What each run would start, in every mode and place: unchanged until somebody means to change it.

To take over a change that is meant: UPDATE_GOLDEN=1 make test-all ARGS=tests/test_plans.py, and read the difference.
"""

import dataclasses
import json
import os
import re
import secrets
from pathlib import Path

import pytest
import yaml

from cookbook import ROOT, UserError, inventory
from cookbook.settings import compose_recipe
from cookbook.systems import dask
from tests.helpers import plan, recipes

GOLDEN = ROOT / "tests/golden/plans"
INVENTORY = "hosts:\n" + "".join(f"  - {{name: {n}, address: 10.0.0.{k}, slots: 2}}\n" for k, n in ((1, "a"), (2, "b")))
PLACES = {
    "local": [],
    "hosts": ["cluster=hosts", "cluster.inventory=INVENTORY"],
    "slurm": ["cluster=slurm", "cluster.num_workers=4"],
    "kubernetes": ["cluster=kubernetes", "cluster.image=registry.example/recipe:1"],
}
# Settings that change what is started, where a recipe has them.
MORE = {
    "horovod": [
        ["recipe.elastic=true", "recipe.allow_unsafe_elastic=true"],
        ["recipe.elastic=true"],
        ["recipe.controller=mpi"],
        ["recipe.cycle_time_ms=2", "recipe.fusion_threshold_mb=32"],
        ["recipe.timeline=true"],
    ],
    "spark": [["cluster.spark_master=spark://head:7077"], ["recipe.spark_conf.spark.my.password=hidden"]],
    "dask": [["cluster.dask_scheduler=tls://head:8786"], ["cluster.dask_scheduler=tcp://head:8786"]],
    "ray_train": [
        ["cluster.ray_address=head:6379"],
        ["cluster.num_threads_per_worker=2"],
        ["cluster.port=7000"],
        ["recipe.elastic=true", "recipe.max_restarts=3"],
    ],
    "ray_tune": [["recipe.cpus_per_trial=2"]],
    "pytorch": [["cluster.port=7000", "recipe.max_restarts=2"], ["cluster.gpus_per_worker=1"]],
    "tensorflow": [["cluster.port=7000"], ["recipe.max_restarts=2"]],
}


def cases(recipe):
    """name -> overrides, of a recipe in every mode, place and setting that changes its plan."""
    content = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    driver = content["driver"]
    modes = [[f"recipe.mode={mode}"] for mode in driver.get("modes", ())] or [[]]
    service = re.compile(r"cluster\.\w+_(master|scheduler|address)")
    return {
        " ".join([place, *words]): [*PLACES[place], *words]
        for place in PLACES
        for words in [*modes, *MORE.get(recipe, [])]
        if not any(word.startswith("cluster.gpus") for word in words) or place in ("slurm", "kubernetes")
        if not any(service.match(word) for word in words) or place != "kubernetes"
    }


def planned(recipe, words, folder):
    """The processes of a run as plain data, or the text of its refusal."""
    (folder / "inventory.yaml").write_text(INVENTORY)
    config, _ = compose_recipe(recipe, [word.replace("INVENTORY", f"{folder}/inventory.yaml") for word in words])
    config["cluster"] = inventory.with_hosts(config["cluster"])
    config["cluster"]["shared"] = True
    run_dir = Path(f"/runs/{recipe}/2026-01-31_12-00-00")
    try:
        processes = plan(config, ROOT / "recipes" / recipe, Path("/env/bin/python"), run_dir)
    except UserError as error:
        return f"refused: {error}".replace(str(folder), "FOLDER")
    made = [{field.name: getattr(one, field.name) for field in dataclasses.fields(one)} for one in processes]
    text = json.dumps(made).replace(str(ROOT), "CHECKOUT").replace(os.environ["PATH"], "$PATH")
    return [{key: value for key, value in one.items() if value not in ({}, [], "", False)} for one in json.loads(text)]


@pytest.fixture
def nothing_by_chance(monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5" * 2 * size)
    monkeypatch.setattr(dask, "certificate", lambda name, addresses: (",".join(addresses),) * 2)


@pytest.mark.parametrize("recipe", recipes())
def test_the_plan_in_each_place_is_as_it_was(recipe, tmp_path, nothing_by_chance):
    known, chosen = golden(recipe), {}
    for name, words in cases(recipe).items():
        chosen.setdefault(name.partition(" ")[0], (name, words))  # the first mode in each place
    assert {name: planned(recipe, words, tmp_path) for name, words in chosen.values()} == {
        name: known[name] for name, _ in chosen.values()
    }


@pytest.mark.full
@pytest.mark.parametrize("recipe", recipes())
def test_every_plan_is_as_it_was(recipe, tmp_path, nothing_by_chance):
    found = {name: planned(recipe, words, tmp_path) for name, words in cases(recipe).items()}
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / f"{recipe}.yaml").write_text(yaml.safe_dump(found, sort_keys=False, width=10_000))
    assert found == golden(recipe)


def golden(recipe):
    return yaml.safe_load((GOLDEN / f"{recipe}.yaml").read_text())


def test_there_is_a_golden_file_for_each_recipe():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(recipes())
