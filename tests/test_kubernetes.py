"""cluster=kubernetes: the objects against their projects' own schemas, and runs on pods that are namespaces of this machine."""

import json
import os
import signal

import pytest
import yaml

from cookbook.clusters import kubernetes as cluster_kubernetes
from tests.fake_kubernetes import FakeKubernetes
from tests.helpers import ROOT, Driver, latest, run_cookbook
from tests.test_contracts import DATA_PARALLEL, SHORT, digests, in_the_middle_of_an_epoch
from tests.test_hosts import SYSTEMS, Place, needs_hosts

ON_PODS = ["cluster=kubernetes", "cluster.image=registry.test/cookbook:1"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("pods") / "hosts", num_hosts=3)
    yield place.hosts
    place.hosts.down()


@pytest.fixture
def kubernetes(hosts, recipe_python, tmp_path):
    """Returns a cluster with a recipe's image."""
    started = []

    def start(recipe):
        started.append(FakeKubernetes(hosts, recipe_python(recipe), recipe, tmp_path / "cluster"))
        return started[-1].__enter__()

    yield start
    for cluster in started:
        cluster.__exit__()


@needs_hosts
@pytest.mark.parametrize("recipe", SYSTEMS)
def test_two_pods_come_to_the_same_result_as_one_machine(kubernetes, undisturbed, recipe, tmp_path):
    more = ["recipe.steps=[ingest,templates]"] if recipe == "spark" else []
    words = [f"recipe={recipe}", *SHORT[recipe], *more]
    here = undisturbed(*(words if not more else words[:-1]))[0]
    cluster = kubernetes(recipe)
    content, folder, output = run_cookbook(*words, *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    assert content["status"] == "ok", output
    assert len({worker["host"] for worker in content["workers"]}) == 2, "each worker has a pod of its own"
    assert sorted(worker["rank"] for worker in content["workers"]) == [0, 1]
    assert content["num_rows"] == here["num_rows"]
    if recipe in DATA_PARALLEL:
        losses = [dict(map(tuple, one["curves"]["train/loss"])) for one in (here, content)]
        assert losses[1][min(losses[0])] == pytest.approx(losses[0][min(losses[0])], rel=1e-4)
    elif content["account"]:
        assert content["account"] == here["account"], "lines read, good and quarantined"
    else:
        name = content["objective"]["name"]
        assert content["metrics"][name] == pytest.approx(here["metrics"][name], abs=0.02)
    assert cluster.objects == {} and cluster.pods == {}, "nothing is left on the cluster"
