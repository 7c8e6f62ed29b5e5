"""What only the Ray Train recipe can do, run for real through the driver.

(Killed without restarts: the contract tests.)
"""

import json
import os
import re
import subprocess

import pytest

from cookbook.settings import compose_recipe
from cookbook.tools.chaos import inject
from runrecord import read_records
from tests.helpers import ROOT, Driver, latest, run_cookbook

SHORT = ["recipe=ray_train", *compose_recipe("ray_train")[0]["recipe"]["driver"]["short"]]

ELASTIC = ["recipe.elastic=true", "recipe.max_restarts=3"]


def digests(content):
    return {worker["digest"] for worker in content["workers"]}


@pytest.mark.full
def test_a_killed_worker_is_replaced_and_the_run_ends_where_the_undisturbed_one_ends(undisturbed, tmp_path):
    expected, _, _ = undisturbed(*SHORT)
    driver = Driver(*SHORT, "recipe.max_restarts=1", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 4) for e in driver.events()))
    driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "ray_train")
    assert content["restarts"] == 1
    assert len(content["lost_workers"]) == 2, "Ray Train starts all workers anew"
    assert digests(content) == digests(expected)
    assert content["num_rows"] == expected["num_rows"]
    assert not (folder / "scratch").exists()


def steps_thrown_back(events, steps_per_epoch):
    """For each restart of all workers: how many steps they took again."""
    generations = sorted(
        {(e["generation"], e["epoch"] * steps_per_epoch + e["step"]) for e in events if "generation" in e}
    )
    rows = sorted((e["time"], e["epoch"] * steps_per_epoch + e["step"] + 1) for e in events if e["event"] == "rows")
    return [
        max(step for when, step in rows if when < generation) - position for generation, position in generations[1:]
    ]


@pytest.mark.full
def test_a_lost_node_makes_the_world_smaller_until_it_is_back(tmp_path):
    epochs, every = 60, 5
    words = [*SHORT, *ELASTIC, f"recipe.num_epochs={epochs}", "recipe.width=64"]
    driver = Driver(*words, f"recipe.checkpoint_every_steps={every}", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 8) for e in driver.events()))
    log = (tmp_path / "ray_train/latest/logs/rayrun.log").read_text()
    inject.kill(int(re.search(r"node 2 is process (\d+)", log)[1]))
    status, output = driver.end(1800)
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "ray_train")
    assert content["worlds"] == [2, 1, 2]
    assert content["restarts"] == 2, "once to go on with one worker, once with two"
    assert [worker["world_size"] for worker in content["lost_workers"]] == [2, 2, 1]
    assert content["num_rows"] == epochs * 1438, "every row took effect once in every epoch, whoever was there"
    assert len(digests(content)) == 1
    assert content["metrics"]["eval/accuracy"] >= 0.95
    events = [event for record in read_records(folder) for event in record]
    assert all(0 <= steps <= every + 1 for steps in steps_thrown_back(events, 23))
    assert "node 2 is lost; it comes back in 60 s" in (folder / "logs/rayrun.log").read_text()


def test_tensorflow_trains_too(undisturbed):
    content, _, _ = undisturbed(*SHORT, "recipe.mode=tensorflow", "recipe.num_epochs=2")
    assert content["versions"]["tensorflow"].startswith("2.")
    assert [worker["samples"] for worker in content["workers"]] == [2 * 719, 2 * 719]
    assert len(digests(content)) == 1
    (_, first), (_, last) = content["curves"]["train/loss"]
    assert last < first - 0.1


@pytest.mark.full
def test_tensorflow_goes_on_after_a_killed_worker(tmp_path):
    words = [*SHORT, "recipe.mode=tensorflow", "recipe.max_restarts=1"]
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 4) for e in driver.events()))
    driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, _ = latest(tmp_path, "ray_train")
    assert content["restarts"] == 1
    assert [worker["samples"] for worker in content["workers"]] == [2 * 719, 2 * 719], "the last two of four epochs"
    assert content["num_rows"] == 4 * 1438
    assert len(digests(content)) == 1
    assert content["metrics"]["eval/accuracy"] >= 0.85


@pytest.mark.full
def test_rows_that_stay_in_the_object_store_train_the_same_network(undisturbed, tmp_path):
    """Prepared once instead of in each epoch beside the training, and in other blocks: the same batches."""
    words = ["recipe.keep_prepared=true", "recipe.rows_per_file=100", "recipe.num_epochs=2", "recipe.profile=true"]
    streamed, _, _ = undisturbed(*SHORT, "recipe.num_epochs=2")
    content, folder, _ = run_cookbook(*SHORT, *words, output_root=tmp_path / "lr=0.1")
    assert digests(content) == digests(streamed)
    assert content["num_rows"] == 2 * content["dataset"]["rows"]["train"]
    trace = json.loads((folder / "traces/tasks.json").read_text())
    trained = {event["tid"] for event in trace if event["cat"] == "task::RayTrainWorker.run_train_fn"}
    assert len(trained) == 2, "processes"
    assert any(event["cat"].startswith("task::ReadParquet") for event in trace), "Ray Data's tasks"
    assert '<a href="traces/tasks.json">' in (folder / "report.html").read_text()


@pytest.mark.full
def test_a_last_batch_without_rows_for_one_worker(undisturbed):
    """129 rows in batches of 64: the last batch is one row, and one worker has none of it."""
    content, _, _ = undisturbed(*SHORT, "recipe.num_epochs=2", "scale.max_rows=129")
    assert sorted(worker["samples"] for worker in content["workers"]) == [2 * 64, 2 * 65]
    assert len(digests(content)) == 1


@pytest.mark.full
def test_accuracy_at_the_default_scale(undisturbed):
    content, _, _ = undisturbed("recipe=ray_train")
    assert content["metrics"]["eval/accuracy"] >= 0.97


def test_the_core(tmp_path):
    content, folder, _ = run_cookbook(
        "recipe=ray_train", "recipe.mode=core", "recipe.num_tasks=300", output_root=tmp_path
    )
    rows = {row["what"]: row for row in json.loads((folder / "tables/tour.json").read_text())["rows"]}
    assert list(rows) == [
        "tasks",
        "places",
        "actor calls",
        "put of 64 MB",
        "get of 64 MB",
        "spilling",
        "placement group",
        "back pressure",
    ]
    assert rows["actor calls"]["checked"].endswith("it has counted to 300")
    assert content["metrics"]["tasks_per_second"] > 0
    assert [worker["samples"] for worker in content["workers"]] == [301, 1]
    # What is read is a view of the store's memory: nothing is copied, so it cannot be slower than copying.
    metrics = content["metrics"]
    assert metrics["object_store/get_gb_per_second"] > metrics["object_store/memcpy_gb_per_second"]


HOLD = """
import os, sys, time
print("AT", os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_TOKEN"], flush=True)
time.sleep(600)
"""
OTHER_VERSION = """
import ray, sys
sys.path.insert(0, sys.argv[1])
ray.__version__ = "2.59.0"
import workers
workers.connect(None)
"""


@pytest.mark.full
def test_a_running_cluster(recipe_python, tmp_path, undisturbed):
    """The recipe on Ray that somebody else has started; and all that may be wrong with one."""
    python = recipe_python("ray_train")
    (tmp_path / "hold.py").write_text(HOLD)
    words = [python, "-m", "rayrun", "--num-cpus", "4", "--temp-dir", tmp_path / "ray", tmp_path / "hold.py"]
    environment = {**os.environ, "RAYRUN_NETWORK": "host"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as ray:
        try:
            address, token = next(line for line in ray.stdout if line.startswith("AT ")).split()[1:]
            mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
            there = [*SHORT, f"cluster.ray_address={address}"]
            content, _, _ = run_cookbook(*there, output_root=tmp_path / "out", environment=mine)
            assert digests(content) == digests(undisturbed(*SHORT)[0])
            words = ["cluster.num_workers=6", "recipe.num_shards=6", "recipe.global_batch_size=66"]
            _, _, output = run_cookbook(*there, *words, output_root=tmp_path / "many", environment=mine, status=1)
            assert "6 workers need 6 CPU, and the cluster has 4 free of 4: ask for fewer" in output
            wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
            _, _, output = run_cookbook(*there, output_root=tmp_path / "wrong", environment=wrong, status=1)
            assert "does not take this token" in output
            # What Ray compares is the version that it finds in the module.
            done = subprocess.run(
                [python, "-c", OTHER_VERSION, ROOT / "recipes/ray_train"],
                capture_output=True,
                text=True,
                env={**os.environ, **mine, "RAY_ADDRESS": address},
            )
            assert done.returncode == 1
            assert f"error: the cluster at {address} has other versions" in f"error: {done.stderr.splitlines()[-1]}"
            assert "2.59.0" in done.stderr
        finally:
            ray.terminate()
            ray.wait(60)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["cluster.num_workers=3"], "num_shards=2 cannot be divided among 3 workers: set it to 6"),
        (["recipe.global_batch_size=63"], "global_batch_size=63 cannot be divided among num_shards=2"),
        (["recipe.width=12"], "width=12: expected a multiple of 8"),
        (["recipe.mode=jax"], "recipe.mode='jax' is unknown; expected one of: pytorch"),
        (["recipe.object_store_mb=20"], "object_store_mb=20: Ray wants at least 80"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=ray_train", *words, output_root=tmp_path, status=1)
    assert text in output


def test_an_address_where_nobody_listens(tmp_path):
    _, _, output = run_cookbook(*SHORT, "cluster.ray_address=127.0.0.1:1", output_root=tmp_path, status=1)
    assert "no Ray cluster answers at 127.0.0.1:1" in output


@pytest.mark.full
def test_gpus_that_are_not_there(tmp_path):
    _, _, output = run_cookbook(*SHORT, "recipe.use_gpu=true", output_root=tmp_path, status=1)
    assert "2 workers need 2 GPU, and the cluster has 0 free of 0" in output
