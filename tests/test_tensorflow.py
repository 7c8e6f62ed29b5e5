"""What only the TensorFlow recipe can do, run for real through the driver."""

import gzip
import importlib.util
import json
import math
import os
import re
import subprocess
import time
from types import SimpleNamespace

import pytest

from cookbook import ROOT, settings
from cookbook.settings import compose_recipe
from cookbook.tools.chaos import inject
from runrecord import read_records
from tests.helpers import Driver, latest, run_cookbook

FOLDER = ROOT / "recipes/tensorflow"
SHORT = ["recipe=tensorflow", "recipe.num_epochs=4"]  # as in the contract tests: one undisturbed run serves both
PS = ["recipe=tensorflow", "recipe.mode=parameter_server"]
FIT = ["recipe=tensorflow", "recipe.mode=parameter_server_fit"]


def losses(content):
    return [value for _, value in content["curves"]["train/loss"]]


def digests(content):
    return {worker["digest"] for worker in content["workers"]}


def in_epoch(driver, epoch, step=4):
    return any(e["event"] == "rows" and (e["epoch"], e["step"]) >= (epoch, step) for e in driver.events())


def test_the_loss_of_two_workers_is_a_mean_over_the_rows(undisturbed):
    content, _, _ = undisturbed(*SHORT)
    assert content["world_size"] == 2
    assert 1.5 < losses(content)[0] < 1.05 * math.log(10), "that of who guesses one of ten digits, at most"


@pytest.mark.full
def test_a_worker_that_is_paused_for_a_moment_is_not_taken_for_dead(tmp_path):
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: in_epoch(driver, 0))
    stopped = driver.stop(1)
    time.sleep(20)  # twice what TensorFlow allows
    inject.go_on(stopped)
    status, output = driver.end()
    assert status == 0, output


@pytest.mark.full
def test_all_workers_start_anew_from_the_checkpoint(undisturbed, tmp_path):
    expected, _, _ = undisturbed(*SHORT)
    driver = Driver(*SHORT, "recipe.max_restarts=1", output_root=tmp_path)
    driver.wait_until(lambda: in_epoch(driver, 2))
    driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    content, _ = latest(tmp_path, "tensorflow")
    assert content["restarts"] == 1
    assert digests(content) == digests(expected)
    assert content["num_rows"] == expected["num_rows"]


@pytest.mark.full
def test_ways_to_divide_the_input_and_devices_take_the_same_first_steps(undisturbed, tmp_path):
    first = losses(undisturbed(*SHORT)[0])[0]
    ring = ["recipe.communication=ring", "recipe.profile=true"]
    for number, words in enumerate((["recipe.auto_shard=own"], ["recipe.mode=mirrored"], ring)):
        content, folder, _ = run_cookbook(
            "recipe=tensorflow", "recipe.num_epochs=1", *words, output_root=tmp_path / str(number)
        )
        assert losses(content)[0] == pytest.approx(first, rel=1e-4), words
        assert content["world_size"] == (1 if "recipe.mode=mirrored" in words else 2)
        restores = [e for record in read_records(folder) for e in record if e["event"] == "restore"]
        assert all(abs(e["generation"] - e["time"]) < 60 for e in restores), "a clock, however many replicas add it up"
    rows = json.loads((folder / "tables/where the time of a step goes, in percent.json").read_text())["rows"]
    page = (folder / "report.html").read_text()
    for rank, row in enumerate(rows):
        trace = json.loads(gzip.decompress((folder / f"traces/rank{rank}.json.gz").read_bytes()))
        names = [event["name"] for event in trace["traceEvents"]]
        assert len([name for name in names if re.fullmatch(r"train \d+", name)]) == row["steps"] == 23 - 4
        assert {"CollectiveReduceV2", "PyFunc"} < set(names), "what TensorFlow did"
        assert row["computing"] > 5 and row["an exchange under way"] >= row["exchanging or waiting for the others"] > 0
        assert sum(list(row.values())[3:7]) == pytest.approx(100, abs=0.1)
        assert f'<a href="traces/rank{rank}.json.gz">' in page
    assert [row["rank"] for row in rows] == [0, 1]


def test_shares_of_a_profile():
    """The recipe's sums, without TensorFlow."""
    text = (FOLDER / "profiles.py").read_text()
    start, end = text.index("# Turns what"), text.index("def shares_of")
    found = {}
    exec(compile(text[:start] + text[end:], "profiles.py", "exec"), found)
    threads = {1: "python", 2: "tf_Compute/7", 3: "collective_ops/5", 4: "tf_data_private_threadpool/1"}
    events = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": tid, "args": {"name": name}}
        for tid, name in threads.items()
    ]
    for tid, name, start, end in [
        (1, "train 3", 0, 100),
        (1, "train 4", 200, 300),
        (1, "train_function", 0, 100),
        (1, "IteratorGetNextOp::DoCompute", 0, 10),
        (2, "Conv2D", 5, 50),
        (2, "Conv2D", 90, 210),  # in no step from 100 to 200
        (3, "CollectiveReduceV2", 40, 80),
        (4, "Map", 0, 300),
    ]:
        events.append({"ph": "X", "name": name, "pid": 0, "tid": tid, "ts": start, "dur": end - start})
    assert found["shares_of"](events) == {
        "steps": 2,
        "ms for a step": 0.1,
        "data": 5.0,
        "computing": 30.0,
        "exchanging or waiting for the others": 15.0,
        "the rest": 50.0,
        "an exchange under way": 20.0,
    }
    assert found["shares_of"](events[:4]) == {}


@pytest.mark.parametrize(("epochs", "accuracy"), [(4, 0.5), pytest.param(15, 0.95, marks=pytest.mark.full)])
def test_asynchronous_training_takes_every_row_once(undisturbed, epochs, accuracy):
    content, _, _ = undisturbed(*PS, f"recipe.num_epochs={epochs}")
    assert content["metrics"]["eval/accuracy"] >= accuracy
    assert content["num_rows"] == epochs * 1438
    assert sum(worker["samples"] for worker in content["workers"]) == epochs * 1438
    assert all(worker["samples"] > epochs * 1438 / 10 for worker in content["workers"])


@pytest.mark.full
def test_a_lost_worker_of_the_parameter_servers_is_replaced(tmp_path):
    driver = Driver(*PS, "recipe.max_restarts=1", output_root=tmp_path)
    driver.wait_until(lambda: in_epoch(driver, 2))
    lost = driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "tensorflow")
    assert content["metrics"]["eval/accuracy"] >= 0.9  # a replaced worker's first gradients are old ones
    assert content["num_rows"] == 15 * 1438
    assert [worker["pid"] for worker in content["lost_workers"]] == [lost]
    assert sorted(service["role"] for service in content["services"]) == ["chief", "ps"]
    assert all(worker["samples"] > 0 for worker in content["workers"])
    assert "it is replaced at the same address" in (folder / "logs/tfrun.log").read_text()


def test_keras_fit_trains_on_parameter_servers(undisturbed):
    content, _, _ = undisturbed(*FIT, "recipe.num_epochs=3", "scale.max_steps=60")
    assert content["num_rows"] == 60 * 64, "two epochs of 23 steps, and one that max_steps cuts"
    assert all(worker["samples"] > 0 for worker in content["workers"])
    assert sorted(service["role"] for service in content["services"]) == ["chief", "ps"]
    assert len(losses(content)) == 3 and losses(content)[-1] < losses(content)[0] - 0.1


@pytest.mark.full
def test_keras_fit_gives_the_steps_of_a_lost_worker_to_another(tmp_path):
    driver = Driver(*FIT, "recipe.max_restarts=1", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["epoch"] >= 2 for e in driver.events()))
    lost = driver.kill(0)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, _ = latest(tmp_path, "tensorflow")
    assert content["metrics"]["eval/accuracy"] >= 0.9
    assert content["num_rows"] >= 15 * 23 * 64
    assert [worker["pid"] for worker in content["lost_workers"]] == [lost]
    assert all(worker["samples"] > 0 for worker in content["workers"])
    assert len(losses(content)) == 15


@pytest.mark.full
def test_a_lost_ps_ends_the_run_and_the_same_command_goes_on(tmp_path):
    words = [*PS, "recipe.num_epochs=4", "recipe.num_ps=2", "recipe.partitioner=fixed_shards"]
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: in_epoch(driver, 2))
    driver.kill(1, "ps")
    status, output = driver.end()
    assert status == 1
    assert "ps:1" in output
    assert "the variables that it held are lost" in output
    assert driver.no_process_left()
    content, _, output = run_cookbook(*words, output_root=tmp_path)
    assert "going on with this run" in output
    assert content["num_rows"] == 4 * 1438


def test_another_number_of_workers_goes_on_and_another_program_does_not(tmp_path):
    """Checkpoints hold whole variables: one worker can take over from two. Parameter servers write other ones."""
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: in_epoch(driver, 1))
    driver.interrupt()
    assert driver.end()[0] == 130
    _, folder = latest(tmp_path, "tensorflow")
    _, _, output = run_cookbook(*PS, "recipe.num_epochs=4", f"resume={folder}", output_root=tmp_path, status=1)
    assert "mode is 'multi_worker' there and 'parameter_server' here" in output
    content, again, _ = run_cookbook(*SHORT, "cluster.num_workers=1", f"resume={folder}", output_root=tmp_path)
    assert again == folder
    assert content["world_size"] == 1
    assert content["num_rows"] == 4 * 1438


def test_one_device_and_two_hold_the_same_model(undisturbed):
    contents = []
    for number in (1, 2):
        words = ["recipe=tensorflow", "recipe.mode=model_parallel", f"recipe.num_devices={number}"]
        content, folder, _ = undisturbed(*words)
        contents.append(content)
        assert content["metrics"]["eval/accuracy"] >= 0.94
    assert losses(contents[1]) == pytest.approx(losses(contents[0]), rel=1e-4)
    parts = json.loads((folder / "tables/layout.json").read_text())["rows"]
    assert [(row["whole"], row["part"]) for row in parts[:2]] == [("(64, 512)", "(64, 256)")] * 2


XLA = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np
from runtime import tf
from model import build, make_optimizer, train_step
from types import SimpleNamespace
tf.keras.mixed_precision.set_global_policy(sys.argv[2])
results = []
for compiled in (True, False):
    tf.keras.utils.set_random_seed(0)
    model = build((8, 8, 1), 10, 16)
    optimizer = make_optimizer(SimpleNamespace(momentum=0.9), 0.03)
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda batch: train_step(model, optimizer, batch), jit_compile=compiled)
    random = np.random.default_rng(0)
    images, labels = random.random((16, 8, 8, 1), np.float32), np.arange(16) % 10
    batch = {"image": tf.constant(images), "label": tf.constant(labels), "weight": tf.fill([16], 1 / 16)}
    results.append([float(tf.reduce_mean(step(batch))) for _ in range(3)])
    if compiled:
        assert "HloModule" in step.experimental_get_compiler_ir(batch)(stage="hlo")
print("RESULT", results)
"""


@pytest.mark.parametrize("policy, tolerance", [("float32", 1e-4), ("mixed_bfloat16", 0.05)])
@pytest.mark.full
def test_the_step_of_all_strategies_compiles_for_a_tpu(recipe_python, policy, tolerance):
    """XLA refuses dynamic shapes and calls of Python: what it compiles on a CPU holds neither."""
    words = [recipe_python("tensorflow"), "-c", XLA, FOLDER, policy]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled, plain = json.loads(done.stdout.partition("RESULT ")[2])
    assert compiled == pytest.approx(plain, rel=tolerance)
    assert compiled[2] < compiled[0]


SHARES = """
import json, sys; sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from pathlib import Path
import numpy as np
from runtime import tf
from data import Batches, ImageData, distributed, write_tfrecords

class Strategy:
    '''Two workers with two devices each: what is made on each worker.'''
    num_replicas_in_sync = 4
    def distribute_datasets_from_function(self, make):
        return [make(tf.distribute.InputContext(2, worker, 4)) for worker in range(2)]

folder = Path(sys.argv[2])
(folder / "manifest.json").write_text(json.dumps({"schema": {"images": {"max_value": 1}}, "classes": [0, 1]}))
np.save(folder / "train_images.npy", np.zeros((22, 2, 2, 1), np.uint8))
np.save(folder / "train_labels.npy", np.zeros(22, np.int64))
data, batches = ImageData(folder, "train"), Batches(22, 8, 0)
write_tfrecords(data, folder / "tfrecords", 4)
found = {}
for kind, shard in (("memory", "own"), ("tfrecord", "own"), ("tfrecord", "file")):
    config = SimpleNamespace(
        input=kind, auto_shard=shard, num_files=4, deterministic=True, prefetch_batches=1, seed=0, output_dir=folder
    )
    workers = distributed(data, batches, Strategy(), config, range(3))
    found[f"{kind} {shard}"] = [
        [[int(element["step"][0]), element["row"].tolist()] for element in dataset.as_numpy_iterator()]
        for dataset in workers
    ]
print("RESULT", json.dumps(found))
"""


@pytest.mark.full
def test_workers_with_several_devices_take_each_row_once(recipe_python, tmp_path):
    """A worker hands its devices an element each: those of one step, and of its own replicas."""
    words = [recipe_python("tensorflow"), "-c", SHARES, FOLDER, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, workers in json.loads(done.stdout.partition("RESULT ")[2]).items():
        rows = {step: [] for step in range(3)}
        for elements in workers:
            assert [step for step, _ in elements] == [0, 0, 1, 1, 2, 2], kind
            for step, taken in elements:
                assert len(taken) == 2, kind
                rows[step] += [row for row in taken if row >= 0]
        assert [len(taken) for taken in rows.values()] == [8, 8, 6], kind
        assert sorted(row for taken in rows.values() for row in taken) == list(range(22)), kind


@pytest.fixture(scope="module")
def check_settings():
    """The recipe's check, as a function of overrides and the number of workers."""
    spec = importlib.util.spec_from_file_location("tensorflow_settings", FOLDER / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = compose_recipe("tensorflow")[0]
    flat = settings.worker_settings(config, "", "")
    return lambda num_workers=2, **changes: module.check_settings(SimpleNamespace(**(flat | changes)), num_workers)


@pytest.mark.parametrize(
    "num_workers, changes, text",
    [
        (2, {"mode": "mirorred"}, "'mirorred' is unknown; expected one of: multi_worker"),
        (2, {"communication": "nccl"}, "choose communication=ring or auto"),
        (3, {}, "64 = 21 x 3 + 1; choose 63 or 66"),
        (2, {"mode": "mirrored", "num_devices": 5}, "num_devices, 5"),
        (2, {"auto_shard": "file"}, "needs input=tfrecord"),
        (
            4,
            {"auto_shard": "file", "input": "tfrecord", "num_files": 6},
            "the number of workers, 4: some would have",
        ),
        (2, {"mode": "mirrored", "input": "tfrecord"}, "say input=memory"),
        (1, {"mode": "tpu"}, "set tpu_name=local on a TPU VM"),
        (1, {"mode": "tpu", "tpu_name": "local"}, "this machine has no TPU"),
        (1, {"mode": "tpu", "tpu_name": "mine"}, "needs tpu_zone=ZONE and tpu_project=PROJECT"),
        (2, {"steps_per_execution": 4}, "is for mode=tpu"),
        (2, {"profile": True, "mode": "parameter_server"}, "needs mode=multi_worker or mirrored, not parameter_server"),
        (1, {"mode": "model_parallel", "num_devices": 3}, "does not divide"),
        (2, {"width": 12}, "expected a multiple of 8"),
        (2, {"num_ps": 0}, "at least 1"),
        (2, {"learning_rate": 0.0}, "above 0"),
    ],
)
def test_settings_that_make_no_sense(check_settings, monkeypatch, num_workers, changes, text):
    monkeypatch.setenv("TFRUN_NETWORK", "host")
    if changes.get("communication") == "nccl" and os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has GPUs")
    with pytest.raises(SystemExit, match=".*") as error:
        check_settings(num_workers, **changes)
    assert text in str(error.value)


def test_each_program_refuses_the_other_strategies(check_settings, tmp_path):
    content, _, output = run_cookbook("recipe=tensorflow", "recipe.mode=tpu", output_root=tmp_path, status=1)
    assert content is None, "refused before any work"
    assert "mode=tpu needs a TPU and none is named" in output
