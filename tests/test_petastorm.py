"""What only the Petastorm recipe can do, run for real through the driver. (A killed worker: the contract tests.)"""

import json
import shutil
import subprocess

import pytest

from cookbook import bootstrap
from cookbook.settings import compose_recipe
from tests.helpers import ROOT, run_cookbook

SHORT = ["recipe=petastorm", *compose_recipe("petastorm")[0]["recipe"]["driver"]["short"]]


def digests(content):
    return {worker["digest"] for worker in content["workers"]}


def test_every_row_reaches_one_worker_although_row_groups_do_not_divide_evenly(undisturbed):
    content, _, _ = undisturbed(*SHORT)
    rows = content["dataset"]["rows"]["train"]
    assert content["num_rows"] == 4 * rows, "evidence has counted each id once in each epoch"
    # What became of the flights before that: those that never arrived have no label, and are not in the store.
    account = content["account"]
    assert account["read"] == 67_356 == account["good"] + account["quarantined"]
    assert account["good"] == sum(content["dataset"]["rows"].values())
    first, second = (worker["samples"] for worker in content["workers"])
    assert first + second == 4 * rows
    assert abs(first - second) > 4 * 1000, "seven row groups for two workers: one has more"
    assert content["metrics"]["eval/auc"] >= 0.65


@pytest.mark.parametrize(
    "words", [["recipe.reader=arrow"], ["recipe.reader=row"], ["recipe.pool=dummy", "recipe.cache=local-disk"]], ids=str
)
@pytest.mark.full
def test_another_reader_trains_the_same_network(undisturbed, tmp_path, words):
    content, folder, _ = run_cookbook(*SHORT, *words, output_root=tmp_path)
    assert digests(content) == digests(undisturbed(*SHORT)[0])
    assert not (folder / "scratch").exists()


MANY_TIMES = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from readers import chunks_of, leave
manifest = json.loads(Path(sys.argv[2], "manifest.json").read_text())
lost = 0
for pool in ("thread", "dummy"):
    config = SimpleNamespace(
        seed=0, reader="batch", pool=pool, num_loader_workers=1, prefetch_chunks=4, cache="none", output_dir=""
    )
    for _ in range(100):
        chunks = chunks_of(sys.argv[2] + "/train", config, manifest, 0, 1, 0)
        lost += sum(len(chunk["id"]) for chunk in chunks) != manifest["rows"]["train"]
print(json.dumps(lost))
leave()
"""


@pytest.mark.full
def test_no_reader_ends_before_its_last_row(undisturbed, recipe_python):
    """Petastorm's thread pool alone loses row groups in a quarter of such short reads: see `whole` in readers.py."""
    content, _, _ = undisturbed(*SHORT)
    words = [
        recipe_python("petastorm"),
        "-W",
        "ignore",
        "-c",
        MANY_TIMES,
        ROOT / "recipes/petastorm",
        content["dataset"]["folder"],
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == 0


@pytest.mark.full
def test_spark_converter(undisturbed, tmp_path):
    """Spark writes the rows anew, in other row groups: another order, each row once all the same."""
    content, _, _ = run_cookbook(
        "recipe=petastorm",
        "data.parameters.keep_every=5",
        "recipe.num_epochs=2",
        "recipe.reader=converter",
        output_root=tmp_path,
    )
    assert content["num_rows"] == 2 * content["dataset"]["rows"]["train"]
    assert content["metrics"]["eval/auc"] >= 0.6


@pytest.mark.full
def test_a_predicate_leaves_only_the_rows_that_were_asked_for(tmp_path):
    words = [
        "recipe=petastorm",
        "data.parameters.keep_every=5",
        "scale.max_rows=9000",
        "recipe.num_epochs=1",
        "recipe.pool=process",
    ]
    content, _, _ = run_cookbook(*words, output_root=tmp_path)
    assert content["num_rows"] == 9000


@pytest.mark.parametrize(("epochs", "accuracy"), [(6, 0.5), pytest.param(40, 0.95, marks=pytest.mark.full)])
def test_tensors(undisturbed, epochs, accuracy):
    content, _, _ = undisturbed("recipe=petastorm", "recipe.mode=digits", f"recipe.num_epochs={epochs}")
    assert content["metrics"]["eval/accuracy"] >= accuracy
    assert content["num_rows"] == epochs * content["dataset"]["rows"]["train"]


@pytest.mark.full
def test_both_codecs_give_back_what_was_put_in(recipe_python, undisturbed, tmp_path):
    folder = tmp_path / "digits_store"
    python, words = recipe_python("petastorm"), ["test_fraction=0.2", "rows_per_group=300", "seed=0"]
    subprocess.run([python, ROOT / "data/digits_store.py", folder, *words], check=True, capture_output=True)
    script = """
import json, os, sys
import numpy as np
from petastorm import make_reader
from sklearn.datasets import load_digits
images = (load_digits().images / 16).astype(np.float32)
known = {image.tobytes(): label for image, label in zip(images, load_digits().target)}
right = rows = 0
with make_reader("file://" + sys.argv[1] + "/train", reader_pool_type="dummy") as reader:
    for row in reader:
        rows += 1
        picture = np.kron(row.image * 255, np.ones((4, 4))).astype(np.uint8)
        right += known[row.image.tobytes()] == row.label and (row.picture == picture).all()
print(json.dumps([rows, int(right)]), flush=True)
os._exit(0)  # see `leave` in readers.py
"""
    done = subprocess.run([python, "-W", "ignore", "-c", script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, right = json.loads(done.stdout.splitlines()[-1])
    assert rows == right == json.loads((folder / "manifest.json").read_text())["rows"]["train"] == 1438


def test_tensorflow(undisturbed):
    words = ["data.parameters.keep_every=5", "recipe.num_epochs=2"]
    content, _, _ = undisturbed("recipe=petastorm", "recipe.mode=tensorflow", *words)
    assert content["num_rows"] == 2 * content["dataset"]["rows"]["train"]
    assert content["metrics"]["eval/auc"] >= 0.65
    assert len(digests(content)) == 1


OTHER_KINDS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from main_tensorflow import addresses_of, batches_of_tensors, leave, make_batch_reader
import numpy as np, pandas as pd
frame = {"id": np.arange(6), "late": (np.arange(6) % 2).astype("i1"), "a": np.arange(6) * 10, "b": np.arange(6) / 2}
pd.DataFrame(frame).to_parquet(sys.argv[2] + "/part-0.parquet")
with make_batch_reader(addresses_of(sys.argv[2]), num_epochs=1, reader_pool_type="dummy") as reader:
    (batch,) = batches_of_tensors(reader, 6, 1, 0, {"features": ["a", "b"]}).as_numpy_iterator()
print(json.dumps([[str(column.dtype), column.tolist()] for column in batch]))
leave()
"""


def test_a_store_of_whole_numbers_and_float64_is_read_by_tensorflow(tmp_path, recipe_python):
    done = run_program(recipe_python("petastorm"), OTHER_KINDS, tmp_path)
    assert done == [
        ["int64", [0, 1, 2, 3, 4, 5]],
        ["float32", [[0, 0], [10, 0.5], [20, 1], [30, 1.5], [40, 2], [50, 2.5]]],
        ["float32", [0, 1, 0, 1, 0, 1]],
    ]


RATES = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
import main, torch
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
network = torch.nn.Linear(2, 1)
manifest = {"rows": {"train": 8}}
config = {"seed": 0, "global_batch_size": 4, "num_shards": 1, "shuffle_rows": 4, "max_rows": None}
rates = []
for rate in (0.002, 0.001):
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    training = main.Training(network, network, optimizer, main.Checkpoints(sys.argv[2], sys.argv[2]))
    settings = SimpleNamespace(**config, learning_rate=rate)
    main.load_checkpoint(training, settings, manifest)
    rates.append([training.epoch, optimizer.param_groups[0]["lr"]])
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    training.epoch = 1
    main.save_checkpoint(training, settings, manifest)
print(json.dumps(rates))
main.leave()
"""


def test_a_resumed_training_has_the_learning_rate_of_the_settings(tmp_path, recipe_python):
    assert run_program(recipe_python("petastorm"), RATES, tmp_path) == [[0, 0.002], [1, 0.001]]


def run_program(python, program, folder):
    """What a program with the recipe's folder and another one as arguments prints last, as JSON."""
    words = [python, "-W", "ignore", "-c", program, ROOT / "recipes/petastorm", folder]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["recipe.mode=digits", "recipe.reader=batch"],
            "reader=batch cannot decode the tensors of the digits store: use recipe.reader=row",
        ),
        (["recipe.mode=tensorflow", "recipe.reader=row"], "only make_batch_reader feeds make_petastorm_dataset here"),
        (["cluster.num_workers=3"], "num_shards=2 cannot be divided among 3 workers"),
        (["recipe.global_batch_size=63"], "cannot be divided among num_shards=2"),
        (["recipe.reader=csv"], "reader='csv' is unknown; expected one of: batch, row, converter, arrow"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=petastorm", *words, output_root=tmp_path, status=1)
    assert text in output


def test_fewer_row_groups_than_shards(tmp_path):
    words = ["recipe=petastorm", "data.parameters.keep_every=5", "recipe.num_shards=8"]
    _, _, output = run_cookbook(*words, output_root=tmp_path, status=1)
    assert "7 row groups, too few for num_shards=8" in output


def test_a_spoilt_row_group_is_noticed_before_anything_is_trained(tmp_path, undisturbed):
    content, _, _ = undisturbed(*SHORT)
    store = ROOT / content["dataset"]["folder"]
    # In a copy: other tests read the store at the same time.
    path = shutil.copytree(store, tmp_path / "cache" / store.name) / "train/part-00003.parquet"
    (tmp_path / "cache/environments").symlink_to(bootstrap.cache_dir() / "environments")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + b"\xff" * 24 + whole[1024:])
    _, folder, output = run_cookbook(*SHORT, f"cache_dir={tmp_path / 'cache'}", output_root=tmp_path / "out", status=1)
    assert "train/part-00003.parquet has other content than when it was built" in output
    assert not (folder / "workers").exists()


STORE = """
import sys
import numpy as np, pandas as pd
random = np.random.default_rng(0)
x = random.normal(size=7000)
clicked = (x + random.normal(size=7000) > 0).astype("i1")
pd.DataFrame({"clicked": clicked, "x": x, "noise": random.normal(size=7000)}).to_parquet(sys.argv[1])
"""


def test_a_store_of_ones_own(tmp_path, recipe_python):
    subprocess.run([recipe_python("petastorm"), "-c", STORE, tmp_path / "mine.parquet"], check=True)
    words = ["data=store_files", f"data.path={tmp_path}/mine.parquet", "data.label=clicked", "recipe.num_epochs=8"]
    content, _, output = run_cookbook("recipe=petastorm", *words, output_root=tmp_path / "out")
    assert content["account"] == {"read": 7000, "good": 7000, "quarantined": 0}, output
    assert content["num_rows"] == 8 * content["dataset"]["rows"]["train"]
    # The best that x allows is 0.84.
    assert 0.78 <= content["metrics"]["eval/auc"] <= 0.9
