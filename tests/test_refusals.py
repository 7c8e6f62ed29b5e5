"""What is refused before any work, and what the refusal says: both values, and the next step."""

import contextlib
import importlib.util
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from cookbook import ROOT, UserError, inventory, resume, systems
from cookbook.prepare.rows import check_enough_rows
from cookbook.run_folder import IN_CLUSTER
from cookbook.settings import checks, compose_recipe, worker_settings
from runrecord import check_model, check_position
from tests.helpers import plan, run_cookbook


def config_of(recipe, *words):
    return compose_recipe(recipe, words)[0]


def earlier_run(folder, recipe, *words):
    """A run folder as a run with these settings leaves it."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"position": resume.position(recipe, config_of(recipe, *words))}))
    return folder


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("pytorch", ["recipe.global_batch_size=32"], "recipe.global_batch_size is 64 there and 32 here"),
        ("pytorch", ["seed=7"], "seed is 0 there and 7 here"),
        ("pytorch", ["scale.max_rows=320"], "scale.max_rows is None there and 320 here"),
        ("pytorch", ["recipe.mode=fsdp"], "recipe.mode is 'ddp' there and 'fsdp' here"),
        ("horovod", ["data=images"], "data.builder is 'digits' there and 'images' here"),
        (
            "horovod",
            ["recipe.global_batch_size=128", "seed=1"],
            "seed is 0 there and 1 here; recipe.global_batch_size is 64 there",
        ),
        ("tensorflow", ["recipe.global_batch_size=16"], "recipe.global_batch_size is 64 there and 16 here"),
        ("ray_train", ["seed=3"], "seed is 0 there and 3 here"),
        ("kubeflow", ["recipe.global_batch_size=16"], "recipe.global_batch_size is 64 there and 16 here"),
        ("ray_tune", ["recipe.batch_size=16"], "recipe.batch_size is 64 there and 16 here"),
    ],
)
def test_a_resume_under_settings_that_the_position_depends_on(tmp_path, recipe, words, said):
    folder = earlier_run(tmp_path / "run", recipe)
    with pytest.raises(UserError) as error:
        resume.check(folder, recipe, config_of(recipe, *words))
    assert said in str(error.value)
    assert "resume=never" in str(error.value)


@pytest.mark.parametrize(
    "words", [[], ["cluster.num_workers=1"], ["recipe.learning_rate=0.001"], ["recipe.num_epochs=30"]]
)
def test_a_resume_that_is_allowed(tmp_path, words):
    resume.check(earlier_run(tmp_path / "run", "pytorch"), "pytorch", config_of("pytorch", *words))


@pytest.mark.parametrize(
    ("kept", "store", "fits"),
    [
        ("s3://mine/p/runs/pytorch/1", "s3://mine/p", True),
        ("s3://mine/p/runs/pytorch/1", "s3://mine/p/", True),
        ("s3://mine/p2/runs/pytorch/1", "s3://mine/p", False),
        ("s3://mine/p/runs/pytorch/1", None, False),
        ("", "s3://mine/p", False),
    ],
)
def test_a_resume_from_another_store(tmp_path, kept, store, fits):
    folder = earlier_run(tmp_path / "run", "pytorch")
    known = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(known | {"storage": kept}))
    words = [f"cluster.storage={store}"] if store else []
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="another place: give the same one"):
        resume.check(folder, "pytorch", config_of("pytorch", *words))


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("horovod", ["cluster.port=7000"], "horovod finds free ports itself and would take no notice of it (nowhere)"),
        ("dask", ["cluster.port=7000"], "dask finds free ports itself and would take no notice of it (it does with"),
        (
            "spark",
            ["cluster=kubernetes", "cluster.image=a/b:1", "cluster.memory_mb_per_worker=9000"],
            "recipe.memory_mb",
        ),
        ("horovod", ["cluster=slurm", "recipe.timeline=true"], "it is written with cluster=local only"),
        ("tensorflow", ["cluster=slurm", "recipe.max_restarts=1"], "with cluster=slurm a lost process ends the run"),
        ("pytorch", ["cluster=slurm", "recipe.mode=single"], "or cluster.num_workers=1 cluster.num_nodes=1"),
        (
            "tensorflow",
            ["cluster=kubernetes", "cluster.image=a/b:1", "recipe.mode=mirrored"],
            "recipe.mode=mirrored is 1 process on one machine, and cluster=kubernetes would start 2",
        ),
        ("dask", ["cluster=slurm", "recipe.mode=processes"], "recipe.mode=processes works on one machine"),
    ],
)
def test_settings_that_nothing_would_heed_there(recipe, words, said):
    config = config_of(recipe, *words)
    with pytest.raises(UserError) as error:
        systems.load(config["recipe"]["driver"]["system"]).check(config, config["cluster"]["kind"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("dask", "cluster.spark_master=spark://head:7077", "of its own kind: cluster.dask_scheduler"),
        ("pytorch", "cluster.ray_address=head:6379", "recipe=pytorch starts its workers itself"),
        ("ray_tune", "cluster.kubeflow_host=http://localhost:8080", "of its own kind: cluster.ray_address"),
        ("spark", "cluster.notice_file=/run/spot", "the workers of recipe=spark take no notice"),
    ],
)
def test_the_address_of_another_system_and_a_notice_that_nobody_heeds(recipe, word, said):
    with pytest.raises(UserError) as error:
        config_of(recipe, word)
    assert said in str(error.value) and str(error.value).startswith(word)
    config_of(recipe, "cluster=kubernetes")  # whose file has an address for one recipe


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("spark", "cluster.spark_master=local[2]", "expected an address like spark://host:7077, or null for none"),
        ("spark", "cluster.spark_master=head:7077", "expected an address like spark://"),
        ("dask", "cluster.dask_scheduler=127.0.0.1:8786", "expected an address like tls://host:8786"),
        ("ray_tune", "cluster.ray_address=auto", "expected an address like host:6379"),
        ("ray_train", "cluster.ray_address=http://head:8265", "expected an address like host:6379"),
        ("kubeflow", "cluster.kubeflow_host=localhost:8080", "expected an address like http://localhost:8080"),
        ("spark", "recipe.spark_conf.spark.executor.memory=4g", "a run takes it from recipe.memory_mb; set that one"),
        ("spark", "recipe.spark_conf.executor.memory=4g", "Spark ignores it; its settings begin with spark."),
    ],
)
def test_what_a_system_could_not_take_or_would_take_from_elsewhere(recipe, word, said):
    config = config_of(recipe, word)
    with pytest.raises(UserError) as error:
        systems.load(config["recipe"]["driver"]["system"]).check(config, config["cluster"]["kind"])
    assert said in str(error.value) and str(error.value).startswith(word.partition("=")[0])


def test_spark_takes_no_host_with_an_underscore():
    config = config_of("spark")
    host = {"name": "node_1", "address": "node_1", "slots": 2, "gpus": 0}
    config["cluster"] |= {"kind": "hosts", "hosts": [host], "inventory": "hosts.yaml", "shared": True}
    with pytest.raises(
        UserError, match="hosts.yaml: Spark takes no address with an underscore, node_1: give the host's"
    ):
        systems.load("spark").check(config, "hosts")


@pytest.mark.parametrize("data", ["log_files", "image_folder", "flights_files", "store_files"])
def test_files_of_the_user_that_are_not_named_are_asked_for_before_any_work(data):
    with pytest.raises(UserError, match=f"data.path is not set: data={data} takes files of yours, such as data.path="):
        checks.check_path({"data": {"path": None}}, {"data": data})
    checks.check_path({"data": {"path": "/x"}}, {"data": data})
    checks.check_path({"data": {"builder": "digits"}}, {"data": "digits"})


def test_a_clock_that_was_set_back_is_named_before_a_resume(tmp_path):
    """The clock tells which of two tries took a step again: the rows of the newer one would not count."""
    records = [[{"event": "start"}, {"event": "restore", "generation": 1_800_000_000.0}], [{"event": "start"}]]
    resume.check_clock(records, tmp_path, 1_800_000_001.0)
    with pytest.raises(
        UserError, match="cannot be resumed: an earlier try of it began at 2027-01-1.* clock says 2027-01"
    ):
        resume.check_clock(records, tmp_path, 1_799_990_000.0)


def test_a_secret_that_workers_would_read_as_stars():
    words = ["cluster=kubernetes", "cluster.kubeflow_host=https://me:pass@pipelines.example"]
    with pytest.raises(UserError, match=r"recipe\.kubeflow_host has a secret in it: .*\(cluster\.inherit\)"):
        compose_recipe("kubeflow", words)


@pytest.mark.parametrize(
    ("recipe", "words", "on_claim", "fits"),
    [
        ("pytorch", ["cluster=kubernetes", "cluster.image=a/b:1"], True, True),
        ("pytorch", ["cluster=kubernetes", "cluster.image=a/b:1"], False, False),
        ("pytorch", [], True, False),
        ("kubeflow", ["cluster=kubernetes"], False, True),  # whose client keeps its own
    ],
)
def test_a_resume_between_pods_and_other_places(tmp_path, recipe, words, on_claim, fits):
    folder = earlier_run(tmp_path / "run", recipe)
    (folder / "checkpoints").mkdir()
    if on_claim:
        (folder / IN_CLUSTER).write_text("/srv/shared/runs/pytorch/1/checkpoints/epoch-00001-step-00000000\n")
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="go on where it began"):
        resume.check(folder, recipe, config_of(recipe, *words))


def test_a_data_parameter_is_named_with_both_values(tmp_path):
    folder = earlier_run(tmp_path / "run", "horovod", "data=images")
    with pytest.raises(UserError, match=r"data\.parameters\.num_train_rows is \d+ there and 777 here"):
        resume.check(folder, "horovod", config_of("horovod", "data=images", "data.parameters.num_train_rows=777"))


def test_a_run_whose_settings_are_not_known_is_not_resumed(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="its run.json cannot be read"):
        resume.check(tmp_path, "pytorch", config_of("pytorch"))


def test_the_driver_refuses_such_a_resume_before_any_work(tmp_path):
    folder = earlier_run(tmp_path / "run", "pytorch")
    (folder / "checkpoints").mkdir()
    before = (folder / "run.json").read_text()
    words = ["recipe=pytorch", f"resume={folder}", "seed=7"]
    _, made, output = run_cookbook(*words, output_root=tmp_path / "out", status=1)
    assert "seed is 0 there and 7 here" in output
    assert "Traceback" not in output
    assert made is None
    assert (folder / "run.json").read_text() == before


def test_a_dataset_that_has_changed_since(tmp_path):
    before = {"name": "x", "folder": "/cache/x-1", "rows": {"train": 100, "test": 20}}
    resume.check_dataset(None, "/cache/x-2", {"rows": {"train": 1}}, tmp_path)
    resume.check_dataset(before, "/other/x-1", {"rows": {"train": 100, "test": 20}}, tmp_path)
    with pytest.raises(
        UserError, match="the dataset has 90 train, 20 test rows now and had 100 train, 20 test rows there"
    ):
        resume.check_dataset(before, "/cache/x-2", {"rows": {"train": 90, "test": 20}}, tmp_path)
    with pytest.raises(UserError, match="the dataset is x-2 now and was x-1 there"):
        resume.check_dataset(before, "/cache/x-2", {"rows": {"train": 100, "test": 20}}, tmp_path)


def test_a_checkpoint_of_other_batches_is_refused_by_the_program_itself():
    mine = {"seed": 0, "global_batch_size": 32, "num_rows": 100}
    check_position("last.pt", dict(mine), mine)
    with pytest.raises(
        SystemExit, match=r"checkpoint last.pt was made with other settings: global_batch_size=32 \(64 there\)"
    ):
        check_position("last.pt", {**mine, "global_batch_size": 64}, mine)


def test_a_checkpoint_of_another_model_is_refused_by_the_program_itself():
    mine = {"bias": np.zeros(3), "weight": np.zeros((2, 3))}
    check_model("epoch-1", dict(mine), mine)
    with pytest.raises(SystemExit, match=r"epoch-1 is from another model: weight is \(2, 4\) there and \(2, 3\) here"):
        check_model("epoch-1", {**mine, "weight": np.zeros((2, 4))}, mine)
    with pytest.raises(SystemExit, match=r"bias is missing there and \(3,\) here"):
        check_model("epoch-1", {"weight": mine["weight"]}, mine)


@pytest.mark.parametrize(
    ("recipe", "rows", "words", "said"),
    [
        ("horovod", 1, [], "1 training row for 2 workers: each needs one at least. Set cluster.num_workers=1"),
        ("pytorch", 1000, ["scale.max_rows=1"], r"1 training row \(scale.max_rows=1 of 1,000\) for 2 workers"),
        ("tensorflow", 3, ["cluster.num_workers=4"], "3 training rows for 4 workers.* Set cluster.num_workers=3"),
    ],
)
def test_fewer_rows_than_workers(recipe, rows, words, said):
    with pytest.raises(UserError, match=said):
        check_enough_rows(config_of(recipe, *words), {"rows": {"train": rows, "test": 5}})


def test_enough_rows():
    check_enough_rows(config_of("horovod"), {"rows": {"train": 2, "test": 1}})
    check_enough_rows(config_of("spark"), {"rows": {"all": 1}})


RAY, FT = {"elastic": True, "max_restarts": 3}, {"mode": "ft_ddp"}


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("ray_train", {"elastic": True}, "elastic=true with max_restarts=0: to Ray Train a lost worker is a failure"),
        ("ray_train", RAY | {"min_workers": 3}, "expected a whole number from 1 to the number of workers, 2"),
        ("ray_train", RAY | {"mode": "tensorflow"}, "elastic=true needs mode=pytorch, not tensorflow"),
        ("ray_train", RAY | {"num_workers": 3}, "num_shards=2 are too few for 3 workers"),
        ("pytorch", FT | {"min_workers": 3}, "min_workers=3: expected at most the number of workers, 2"),
        ("pytorch", FT | {"backend": "nccl"}, "backend=nccl with mode=ft_ddp was never run"),
        ("pytorch", {"profile": True, "mode": "fsdp"}, "profile=true needs mode=ddp, not fsdp"),
        ("dask", {"profile": True, "mode": "threads"}, "profile=true needs mode=distributed, not threads"),
    ],
)
def test_workers_that_could_not_come_and_go(recipe, changes, said):
    with pytest.raises(SystemExit) as error:
        checked(recipe, **changes)
    assert said in str(error.value)


def test_shards_need_not_be_a_multiple_of_workers_that_come_and_go():
    assert checked("ray_train", **RAY, num_workers=3, num_shards=4).num_shards == 4
    with pytest.raises(SystemExit, match="num_shards=4 cannot be divided among 3 workers"):
        checked("ray_train", num_workers=3, num_shards=4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe.min_workers=0"], "recipe.min_workers=0: expected a whole number from 1 to 10000"),
        (["recipe.min_workers=1.5"], "recipe.min_workers=1.5: expected a whole number"),
        (["recipe.resize_seconds=0"], "recipe.resize_seconds=0: expected a number from 0.01 to 86400"),
        (["recipe.elastic=yes"], "expected true or false"),
    ],
)
def test_ranges_of_what_says_how_workers_come_and_go(words, said):
    with pytest.raises(UserError, match=said):
        config_of("ray_train", *words)


@pytest.mark.parametrize("recipe", ["pytorch", "tensorflow", "ray_train"])
def test_a_profile_that_nobody_could_read(recipe):
    with pytest.raises(UserError, match="traces would stay in the pods"):
        config_of(recipe, "recipe.profile=true", "cluster=kubernetes")


def checked(recipe, **changes):
    """The flat settings of a recipe, as its own check takes them for two workers. Raises what it raises."""
    spec = importlib.util.spec_from_file_location(f"{recipe}_settings", ROOT / "recipes" / recipe / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flat = SimpleNamespace(**(worker_settings(config_of(recipe), "", "") | changes))
    return module.check_settings(flat, *([2] if recipe == "pytorch" else []))


UNEQUAL = {"worker_resources": [{}, {"gpu": 1}], "learner_resource": "gpu"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**UNEQUAL, "elastic": True}, "workers can differ with mode=distributed and elastic=false only"),
        ({"worker_resources": [{}, {"gpu": 1}], "mode": "processes"}, "workers can differ with mode=distributed"),
        (
            {"learner_resource": "gpu", "mode": "threads"},
            "only the distributed scheduler chooses among",
        ),
        ({"worker_resources": [{}] * 3}, "is for 3 workers, and there are 2"),
        ({**UNEQUAL, "learner_resource": "disk"}, "learner_resource=disk: none of the 2 workers has it"),
    ],
)
def test_unequal_workers_that_dask_could_not_give(changes, said):
    """A task that asks for what no worker has waits for ever."""
    with pytest.raises(SystemExit, match=said):
        checked("dask", **changes)
    checked("dask", **UNEQUAL)


RESULTS = {
    "dask": """
import learn
(folder / "ingest.json").write_text(json.dumps({"places": [], "read": 1, "good": 1, "quarantined": 0, **none}))
(folder / "features.json").write_text(json.dumps({"depends_on": settings.depends_on(config, "features")}))
config.steps = ["ingest", "features"]
main.draw_graph = print
workers = mock.Mock()
workers.scheduler_info.return_value = {"workers": {"a": {"resources": {"disk": 1}}}}
learn.check_learner(workers, "disk")
try:
    learn.check_learner(workers, "gpu")
    raise AssertionError("the last fit would wait for ever")
except SystemExit as error:
    assert "learner_resource=gpu: none of the 1 workers has it" in str(error)
main.work(config, mock.Mock(), workers)
config.horizon = "after_departure"
main.work(config, mock.Mock(), workers)
""",
    "spark": """
(folder / "anomalies.json").write_text(json.dumps({"depends_on": settings.depends_on(config, "anomalies")}))
main.done_before(config, "anomalies")
config.window_minutes = 10
main.done_before(config, "anomalies")
""",
    "ray_rllib": """
(folder / "seed-0.old").mkdir()  # `save` was cut off between its two renames
state = {"done": True, "eval": 7.0, "depends_on": settings.depends_on(config)}
(folder / "seed-0.old/state.json").write_text(json.dumps(state))
assert main.train(config, 0, None)["eval"] == 7.0, "there is nothing left to do"
config.algorithm = "dqn"
main.train(config, 0, None)
""",
}
PROLOGUE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
sys.path.insert(0, sys.argv[1])
import main, settings
folder, none = Path(sys.argv[2]), {"depends_on": {}}
config = SimpleNamespace(**json.loads(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("dask", "features.json was made with other settings: horizon='after_departure' ('before_departure' there)"),
        ("spark", "anomalies.json was made with other settings: window_minutes=10 (5 there)"),
        ("ray_rllib", "seed-0 was made with other settings: algorithm='dqn' ('ppo' there)"),
    ],
)
def test_what_was_done_before_with_other_settings_is_not_taken_for_this_run_s(recipe_python, tmp_path, recipe, said):
    flat = worker_settings(config_of(recipe), str(tmp_path), str(tmp_path))
    words = [ROOT / "recipes" / recipe, tmp_path, json.dumps(flat | {"checkpoint_dir": str(tmp_path)})]
    argv = [recipe_python(recipe), "-W", "ignore", "-c", PROLOGUE + RESULTS[recipe], *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert said in done.stderr


def test_elastic_on_several_hosts_names_the_hole_and_the_setting(tmp_path):
    (tmp_path / "hosts.yaml").write_text(
        "hosts:\n  - {name: a, address: 10.0.0.1, slots: 1}\n  - {name: b, address: 10.0.0.2, slots: 1}\n"
    )
    words = ["cluster=hosts", f"cluster.inventory={tmp_path}/hosts.yaml", "recipe.elastic=true"]
    with pytest.raises(UserError, match=r"CVE-2024-10190.*recipe.allow_unsafe_elastic=true"):
        plan_on_hosts(*words)
    assert "--host-discovery-script" in plan_on_hosts(*words, "recipe.allow_unsafe_elastic=true")


def plan_on_hosts(*words):
    config = config_of("horovod", *words)
    config["cluster"] = inventory.with_hosts(config["cluster"])
    return plan(config, ROOT / "recipes/horovod", "/env/bin/python", "/run/x")[0].argv


def test_the_driver_refuses_a_dataset_with_fewer_rows_than_workers(tmp_path):
    words = ["recipe=pytorch", "scale.max_rows=1"]
    content, _, output = run_cookbook(*words, output_root=tmp_path / "out", status=1)
    assert content["reason"].startswith("1 training row (scale.max_rows=1 of ")
    assert not content["workers"]
    assert "Traceback" not in output
