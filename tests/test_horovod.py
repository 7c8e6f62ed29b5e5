"""What only the Horovod recipe can do, run for real through the driver."""

import json
import re
import shutil
import subprocess

import pytest

from tests.helpers import Driver, latest, run_cookbook


def losses(content):
    return [value for _, value in content["curves"]["train/loss"]]


@pytest.mark.parametrize(("epochs", "accuracy"), [(3, 0.5), pytest.param(15, 0.97, marks=pytest.mark.full)])
def test_tensorflow_reaches_the_same_accuracy(undisturbed, epochs, accuracy):
    content, _, _ = undisturbed("recipe=horovod", "recipe.mode=tensorflow", f"recipe.num_epochs={epochs}")
    assert content["metrics"]["eval/accuracy"] >= accuracy
    assert content["versions"].keys() == {"tensorflow", "horovod"}
    assert content["num_rows"] == epochs * 1438


@pytest.mark.full
def test_tensorflow_one_worker_and_two_and_a_resume(tmp_path):
    words = ["recipe=horovod", "recipe.mode=tensorflow", "recipe.num_epochs=3"]
    driver = Driver(*words, output_root=tmp_path / "killed")
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (1, 3) for e in driver.events()))
    driver.kill(0)
    assert driver.end()[0] == 1
    resumed, _, _ = run_cookbook(*words, output_root=tmp_path / "killed")
    two, _, _ = run_cookbook(*words, output_root=tmp_path / "two")
    one, _, _ = run_cookbook(*words, "cluster.num_workers=1", output_root=tmp_path / "one")
    assert {worker["digest"] for worker in resumed["workers"]} == {worker["digest"] for worker in two["workers"]}
    assert losses(one)[0] == pytest.approx(losses(two)[0], rel=1e-4)
    assert losses(one)[-1] == pytest.approx(losses(two)[-1], abs=0.05)


@pytest.mark.full
def test_tensorflow_accumulates_gradients(tmp_path):
    words = ["recipe=horovod", "recipe.mode=tensorflow", "recipe.num_epochs=1"]
    parts, _, _ = run_cookbook(
        *words, "recipe.backward_passes_per_step=4", "recipe.compression=fp16", output_root=tmp_path / "parts"
    )
    whole, _, _ = run_cookbook(*words, output_root=tmp_path / "whole")
    assert losses(parts)[0] == pytest.approx(losses(whole)[0], rel=1e-2)


def test_mpi_takes_the_same_steps_as_gloo(undisturbed, tmp_path):
    gloo, _, _ = undisturbed("recipe=horovod", "recipe.num_epochs=4")
    mpi, _, _ = run_cookbook("recipe=horovod", "recipe.num_epochs=4", "recipe.controller=mpi", output_root=tmp_path)
    assert losses(mpi)[0] == pytest.approx(losses(gloo)[0], rel=1e-4)
    assert "--mpi" in mpi["workers_command"]


@pytest.mark.full
def test_adasum_learns(tmp_path):
    content, _, _ = run_cookbook(
        "recipe=horovod", "recipe.op=adasum", "recipe.controller=mpi", "recipe.num_epochs=5", output_root=tmp_path
    )
    assert content["metrics"]["eval/accuracy"] >= 0.9


@pytest.mark.full
def test_elastic_survives_a_lost_worker_and_takes_in_a_new_one(tmp_path):
    driver = Driver(
        "recipe=horovod", "recipe.elastic=true", "recipe.num_epochs=30", "recipe.width=64", output_root=tmp_path
    )
    driver.wait_until(lambda: any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (2, 8) for e in driver.events()))
    lost = driver.kill(1)
    status, output = driver.end(400)
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "horovod")
    assert content["worlds"] in ([2, 1], [2, 1, 2])
    assert [worker["pid"] for worker in content["lost_workers"]] == [lost]
    assert content["num_rows"] == 30 * 1438, "every row took effect once in every epoch, whoever was there"
    assert content["metrics"]["eval/accuracy"] >= 0.95
    events = [json.loads(line) for path in folder.glob("workers/*.jsonl") for line in path.read_text().splitlines()]
    restored = min((e["time"], e["epoch"], e["step"]) for e in events if e["event"] == "restore" and e["epoch"] > 0)
    furthest = max((e["epoch"], e["step"]) for e in events if e["event"] == "rows" and e["time"] < restored[0])
    thrown_back = (furthest[0] - restored[1]) * 23 + furthest[1] + 1 - restored[2]
    assert 0 <= thrown_back <= 5, "no more than commit_every_steps steps were lost"


def test_a_loss_that_is_no_number_fails_the_run(tmp_path):
    content, _, output = run_cookbook(
        "recipe=horovod",
        "recipe.learning_rate=1e12",
        "recipe.num_epochs=2",
        "recipe.warmup_epochs=0",
        output_root=tmp_path,
        status=1,
    )
    assert content["status"] == "failed"
    assert re.search(r"train/loss is nan at epoch \d+, step \d+ on rank \d", content["reason"])
    assert re.search(r"result +FAILED: .*train/loss is nan", output)


@pytest.mark.full
def test_a_checkpoint_of_another_model_is_refused(tmp_path, undisturbed):
    _, folder, _ = undisturbed("recipe=horovod", "recipe.num_epochs=4")
    driver = Driver("recipe=horovod", "recipe.width=64", "recipe.num_epochs=4", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" and e["epoch"] >= 1 for e in driver.events()))
    driver.interrupt()
    assert driver.end()[0] == 130
    _, mine = latest(tmp_path, "horovod")
    shutil.rmtree(mine / "checkpoints")
    shutil.copytree(folder / "checkpoints", mine / "checkpoints")
    content, _, _ = run_cookbook(
        "recipe=horovod", "recipe.width=64", "recipe.num_epochs=4", output_root=tmp_path, status=1
    )
    assert "is from another model: 0.weight is (32, 1, 3, 3) there and (64, 1, 3, 3) here" in content["reason"]
    assert (mine / "checkpoints/epoch-00004-step-00000000/state.pt").exists(), "nothing is lost"


@pytest.mark.full
def test_a_timeline_on_request(tmp_path):
    _, folder, _ = run_cookbook(
        "recipe=horovod", "recipe.timeline=true", "scale=smoke", "scale.max_steps=4", output_root=tmp_path
    )
    assert "ALLREDUCE" in (folder / "timeline.json").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipe.op=adasum"], "op=adasum needs controller=mpi"),
        (["recipe.mode=jax"], "mode='jax' is unknown; expected one of: pytorch, tensorflow"),
        (["recipe.width=20"], "width=20: expected a multiple of 8"),
        (["recipe.global_batch_size=1"], "global_batch_size=1 is less than world_size=2"),
        (
            ["recipe.elastic=true", "recipe.cycle_time_ms=1"],
            "elastic=true needs fusion_threshold_mb=null and cycle_time_ms=null",
        ),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, folder, output = run_cookbook("recipe=horovod", *words, output_root=tmp_path, status=1)
    assert text in output
    assert folder is None, "refused before any work"


@pytest.mark.parametrize("variant", [None, "tensorflow"])
def test_the_compiled_wheel_does_not_need_the_environment_that_it_was_compiled_in(recipe_python, variant):
    """It is shared by all checkouts: what it is linked with is looked for beside it first, wherever it is installed."""
    packages = recipe_python("horovod", variant).parent.parent / "lib"
    libraries = sorted(packages.glob("python3.*/site-packages/horovod/*/*.so"))
    assert libraries
    for library in libraries:
        text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        paths = re.search(r"Library runpath: \[(.*)\]", text)[1].split(":")
        assert paths[0] == "$ORIGIN/../../../..", library
        assert (library.parent / "../../../..").resolve() == packages.resolve()
