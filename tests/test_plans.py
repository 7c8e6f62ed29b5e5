"""What each run would start, in every mode and place: unchanged until somebody means to change it.

To take over a change that is meant: UPDATE_GOLDEN=1 make test ARGS=tests/test_plans.py, and read the difference.
"""

import json
import os
import re
import secrets
from pathlib import Path

import pytest
import yaml

from cookbook import ROOT, UserError, inventory, launch, launch_hosts
from cookbook.eject import compose_recipe
from tests.helpers import recipes

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
        ["recipe.timeline=true", "recipe.cycle_time_ms=2", "recipe.fusion_threshold_mb=32"],
    ],
    "spark": [["cluster.spark_master=spark://head:7077"], ["recipe.spark_conf.my.password=hidden"]],
    "dask": [["cluster.dask_scheduler=tls://head:8786"], ["cluster.dask_scheduler=tcp://head:8786"]],
    "ray_train": [["cluster.ray_address=head:6379"], ["cluster.port=7000", "cluster.num_threads_per_worker=2"]],
    "ray_tune": [["recipe.cpus_per_trial=2"]],
    "pytorch": [["cluster.port=7000", "recipe.max_restarts=2"], ["cluster.gpus_per_worker=1"]],
    "tensorflow": [["cluster.port=7000", "recipe.max_restarts=2"]],
}


def cases(recipe):
    """name -> overrides, of a recipe in every mode, place and setting that changes its plan."""
    content = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    driver = content["driver"]
    modes = [[f"recipe.{driver['switch']}={mode}"] for mode in driver.get("modes", ())] or [[]]
    if recipe == "horovod":
        modes = [["recipe.framework=pytorch"], ["recipe.framework=tensorflow"]]
    return {
        " ".join([place, *words]): [*PLACES[place], *words]
        for place in PLACES
        for words in [*modes, *MORE.get(recipe, [])]
        if not any(word.startswith("cluster.gpus") for word in words) or place in ("slurm", "kubernetes")
        if not any(re.match(r"cluster\.\w+_(master|scheduler|address)", word) for word in words) or place != "kubernetes"
    }  # fmt: skip


def plan(recipe, words, folder):
    """The processes of a run as plain data, or the text of its refusal."""
    (folder / "inventory.yaml").write_text(INVENTORY)
    config, _ = compose_recipe(recipe, [word.replace("INVENTORY", f"{folder}/inventory.yaml") for word in words])
    config["cluster"] = inventory.with_hosts(config["cluster"])
    for host in config["cluster"].get("hosts", ()):
        host["interface"] = "eth0"
    config["cluster"] |= {
        "shared": True, "config_yaml": "seed: 0\n", "dataset": "digits-0123", "versions": {"ray": "2.60.0", "pyspark": "4.3.0"},
    }  # fmt: skip
    run_dir = Path(f"/runs/{recipe}/2026-01-31_12-00-00")
    try:
        planned = launch.plan(config, ROOT / "recipes" / recipe, Path("/env/bin/python"), run_dir)
    except UserError as error:
        return f"refused: {error}".replace(str(folder), "FOLDER")
    fields = ("name", "argv", "environment", "host", "files", "secrets", "service", "leaves", "ready", "takes_settings")
    made = [{field: getattr(process, field) for field in fields} for process in planned]
    text = json.dumps(made).replace(str(ROOT), "CHECKOUT").replace(os.environ["PATH"], "$PATH")
    return [{key: value for key, value in one.items() if value not in ({}, [], "", False)} for one in json.loads(text)]


@pytest.mark.parametrize("recipe", recipes())
def test_every_plan_is_as_it_was(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5" * 2 * size)
    monkeypatch.setattr(
        launch_hosts,
        "certificate",
        lambda run_dir, names: {f"{run_dir}/scratch/secrets/{name}.pem": ",".join(names) for name in ("key", "cert")},
    )
    found = {name: plan(recipe, words, tmp_path) for name, words in cases(recipe).items()}
    path = GOLDEN / f"{recipe}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(found, sort_keys=False, width=10_000))
    assert found == yaml.safe_load(path.read_text())


def test_there_is_a_golden_file_for_each_recipe():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(recipes())
