"""The driver from outside: bad input, interruptions, two at once, sweeps, reports and trackers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cookbook import ROOT, UserError, bootstrap, run_folder
from cookbook.machine import num_cores
from cookbook.prepare import doctor, remedies
from cookbook.report import pages
from tests.helpers import CLEAN, Driver, latest, recipes, run_cookbook
from tests.requirements import skip

SMOKE = ("recipe=horovod", "scale=smoke", "scale.max_steps=8")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipe=horovd"], "recipe=horovd does not exist; did you mean recipe=horovod?"),
        ([], "which recipe? Say recipe=NAME"),
        (["recipe=horovod", "cluster.num_workers=0"], "cluster.num_workers=0: expected a whole number from 1 to"),
        (["recipe=horovod", "recipe.num_epochs=many"], "recipe.num_epochs='many': expected a whole number"),
        (["recipe=horovod", "recipe.num_epoch=3"], "num_epoch"),
        (
            ["recipe=horovod", "resume=always"],
            "resume='always': expected auto or never, or the folder of a run",
        ),
        (["recipe=horovod", "scale.max_rows=-5"], "scale.max_rows=-5: expected a whole number of at least 1"),
        (["recipe=horovod", "scale.max_workers=abc"], "scale.max_workers='abc': expected a whole number"),
        (["recipe=horovod", "recipe.cycle_time_ms=abc"], "cycle_time_ms='abc': expected a number from 0 to 60000"),
        (["recipe=horovod", "recipe.op=adasum"], "op=adasum needs controller=mpi"),
        (["recipe=horovod", "tracking=mlflow", "tracking.uri=http://127.0.0.1:9"], "no MLflow server answers there"),
        (
            ["recipe=horovod", "tracking=mlflow", "tracking.uri=file:///tmp/x"],
            "tracking.uri=sqlite:////tmp/x/mlflow.db",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, words, text):
    _, folder, output = run_cookbook(*words, output_root=tmp_path, status=1)
    assert text in output
    assert "Traceback" not in output
    assert folder is None, "no run folder was made"


@pytest.mark.parametrize(("name", "launcher"), [("RANK", "torchrun"), ("OMPI_COMM_WORLD_RANK", "mpirun")])
def test_the_driver_under_a_launcher_by_mistake(tmp_path, name, launcher):
    _, _, output = run_cookbook(*SMOKE, output_root=tmp_path, status=1, environment={name: "0"})
    assert f"{name}=0: the driver was started by {launcher}, once per rank" in output


def test_without_a_compiler_nothing_is_started(monkeypatch):
    monkeypatch.setattr(doctor, "is_made", lambda recipe: False)
    monkeypatch.setattr(remedies, "manager", lambda: "apt")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError) as error:
        doctor.require(["c++", "headers"], "horovod")
    assert "recipe horovod needs what this machine lacks" in str(error.value)
    assert "c++: missing" in str(error.value)
    assert "apt-get install" in str(error.value)
    assert "g++" in str(error.value)


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
@pytest.mark.parametrize("root", ["/proc/nope", "a-file"])
def test_a_place_where_no_run_folder_can_be_made(tmp_path, root, sweep):
    (tmp_path / "a-file").write_text("")
    _, _, output = run_cookbook(*SMOKE, *sweep, output_root=tmp_path / root, status=1)
    assert "cannot be used: " in output
    assert "Traceback" not in output


def test_help_names_groups_and_commands():
    text = subprocess.run(
        [sys.executable, "-m", "cookbook", "--help"], cwd=ROOT, env=CLEAN, capture_output=True, text=True, check=True
    ).stdout
    for word in (
        f"recipe: {', '.join(recipes())}",
        "scale: bench, default, smoke",
        "python -m cookbook -m recipe=NAME",
        "make eject",
    ):
        assert word in text


def test_make_alone_prints_help():
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("recipe-%", "doctor", "report", "eject", "test", "lint", "clean"):
        assert f"make {target} " in text
    (line,) = [line for line in text.splitlines() if "make infra-%" in line]
    assert "TARGET=local|aws|gcp|eks|gke|kubernetes ARGS=" in line


@pytest.mark.parametrize("recipe", ["", "ray_tune"])
def test_a_recipe_without_a_benchmark(recipe):
    done = subprocess.run(
        ["make", "-o", "setup", "bench", f"RECIPE={recipe}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"error: RECIPE={recipe} has no benchmark; there are: dask horovod" in done.stderr
    assert "__init__" not in done.stderr and "measure" not in done.stderr


def test_a_target_of_no_recipe():
    done = subprocess.run(["make", "recipe-"], cwd=ROOT, capture_output=True, text=True)
    assert "No rule to make target 'recipe-'" in done.stderr


def test_a_user_s_folder_that_is_not_there(tmp_path):
    content, _, output = run_cookbook(
        "recipe=horovod",
        "data=image_folder",
        f"data.path={tmp_path / 'nowhere'}",
        output_root=tmp_path / "out",
        status=1,
    )
    assert "data.path must be a readable folder with a folder of pictures for each class" in output
    assert content["status"] == "failed"


@pytest.mark.full
def test_more_workers_than_cores_warns_and_goes_on(tmp_path):
    num_workers = num_cores() + 1
    content, _, output = run_cookbook(*SMOKE, f"cluster.num_workers={num_workers}", output_root=tmp_path)
    assert f"warning: {num_workers} worker threads share {num_cores()} cores" in output
    assert content["world_size"] == num_workers


def test_a_full_disk_is_said_and_harms_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not shutil.which("sudo"):
        skip("root", "a small tmpfs cannot be mounted here: neither root nor sudo")
    mount = [*sudo, "mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "none", str(small)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        skip("root", f"a small tmpfs cannot be mounted here (needs root): {mounted.stderr.strip()}")
    try:
        (small / "environments").symlink_to(bootstrap.cache_dir() / "environments")
        content, _, output = run_cookbook(*SMOKE, f"cache_dir={small}", output_root=tmp_path / "out", status=1)
        assert "No space left on device" in output
        assert content["status"] == "failed"
        assert [path.name for path in small.iterdir() if not path.name.endswith(".lock")] == ["environments"]
    finally:
        subprocess.run([*sudo, "umount", str(small)], check=True)


def test_ctrl_c_while_training(tmp_path):
    driver = Driver("recipe=horovod", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "rows" for e in driver.events()))
    driver.interrupt()
    status, output = driver.end()
    assert status == 130
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "horovod")
    assert content["status"] == "failed"
    assert content["reason"] == "interrupted by SIGINT during stage 'run'"
    assert "FAILED: interrupted by SIGINT" in output
    assert (folder / "report.html").exists()


def test_ctrl_c_while_workers_start(tmp_path):
    driver = Driver("recipe=horovod", output_root=tmp_path)
    driver.wait_until(lambda: list(tmp_path.glob("horovod/*/logs/horovodrun.log")))
    time.sleep(1)
    driver.interrupt()
    assert driver.end()[0] == 130
    assert driver.no_process_left()


def test_ctrl_c_while_the_data_is_built(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "environments").symlink_to(bootstrap.cache_dir() / "environments")
    driver = Driver(
        "recipe=horovod",
        "data=images",
        "data.parameters.num_train_rows=500000",
        f"cache_dir={cache}",
        output_root=tmp_path / "out",
    )
    driver.wait_until(lambda: list(cache.glob(".images-*.partial/*.npy")))
    driver.interrupt()
    assert driver.end()[0] == 130
    assert driver.no_process_left()
    assert latest(tmp_path / "out", "horovod")[0]["reason"] == "interrupted by SIGINT during stage 'data'"
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == ["environments"], (
        "nothing half-built is left"
    )


def copy_checkout(target):
    """A copy of the files that belong to the project, without environments and runs."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split() if (ROOT / name).is_file()]
    assert names, "this test copies what git lists"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.mark.full
def test_ctrl_c_while_the_environment_is_made_and_workers_with_faults(tmp_path):
    """A fresh checkout: interrupted while its environment is made, then run with programs that are wrong on purpose.

    Each fault is one that real programs have, and that no exit status shows: the driver must see it in the evidence.
    """
    checkout = copy_checkout(tmp_path / "checkout")
    cache = tmp_path / "cache"
    driver = Driver("recipe=horovod", f"cache_dir={cache}", output_root=tmp_path / "out", checkout=checkout)
    driver.wait_until(lambda: list(cache.glob("environments/horovod-*/lib/*/site-packages/*")))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.end()[0] == 130
    assert driver.no_process_left()
    assert latest(tmp_path / "out", "horovod")[0]["reason"] == "interrupted by SIGTERM during stage 'environment'"
    assert not list(cache.glob("environments/*.complete")) and not (checkout / ".venvs/horovod").exists()

    program = checkout / "recipes/horovod/main.py"
    right = program.read_text()
    share = "ids, batch_size = batches.share(order, state.step, hvd.rank(), hvd.size())"
    faults = [
        # The start is not broadcast, and each rank draws weights of its own.
        (
            "state.sync()",
            "torch.nn.init.normal_(model[0].weight, std=1.0 + hvd.rank())",
            "the ranks ended with different parameters",
        ),
        # A worker passes over a share of its rows.
        (share, share.replace("hvd.size()", "hvd.size() + 1"), "rows were lost"),
        # Every worker takes all rows.
        (share, share.replace("hvd.rank(), hvd.size()", "0, 1"), "rows were counted twice"),
        # At first each worker believes to be alone.
        (
            "RunRecord(config.output_dir, hvd.rank(), hvd.size(),",
            "RunRecord(config.output_dir, 0, 1,",
            "world sizes 1 -> 2 in a run that is not elastic",
        ),
        # All is well until the very end.
        ("    hvd.shutdown()\n", "    hvd.shutdown()\n    raise SystemExit(3)\n", "horovodrun ended with exit status"),
    ]
    for number, (old, new, reason) in enumerate(faults):
        assert right.count(old) == 1
        program.write_text(right.replace(old, new))
        driver = Driver(*SMOKE, output_root=tmp_path / f"fault{number}", checkout=checkout)
        status, output = driver.end()
        assert status == 1, output
        content = latest(tmp_path / f"fault{number}", "horovod")[0]
        assert content["status"] == "failed"
        assert reason in content["reason"]


def test_two_runs_at_once_in_the_same_checkout(tmp_path):
    drivers = [Driver(*SMOKE, output_root=tmp_path) for _ in range(2)]
    for driver in drivers:
        status, output = driver.end()
        assert status == 0, output
    contents = [content for _, content in run_folder.load_all(tmp_path)]
    assert [content["status"] for content in contents] == ["ok", "ok"]
    assert len({worker["pid"] for content in contents for worker in content["workers"]}) == 4


@pytest.mark.full
def test_a_sweep_has_a_folder_each_and_a_table(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cookbook", "-m", *SMOKE, "recipe.learning_rate=0.01,0.1", f"output_root={tmp_path}"],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    contents = [content for _, content in run_folder.load_all(tmp_path)]
    assert len(contents) == 2
    table = done.stdout[done.stdout.index("sweep") :]
    for content in contents:
        assert f"{content['objective']['value']:.4f}" in table
    assert contents[0]["curves"]["train/loss"] != contents[1]["curves"]["train/loss"]


@pytest.fixture(scope="module")
def past_runs(made_once):
    """Two smoke runs, one of them with each tracker."""

    def make(root):
        run_cookbook(*SMOKE, "tracking=mlflow", "tracking.wait_seconds=3600", output_root=root)
        run_cookbook(*SMOKE, "tracking=tensorboard", "seed=1", output_root=root)

    return made_once("past-runs", make)


def test_mlflow_has_what_the_run_record_says(past_runs):
    import mlflow

    content = next(c for _, c in run_folder.load_all(past_runs) if c["choices"]["tracking"] == "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{past_runs}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "cookbook/horovod"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [tuple(point) for point in content["curves"]["train/loss"]]
    assert run.data.metrics["final/eval/accuracy"] == content["objective"]["value"]
    assert run.data.params["global_batch_size"] == "64"
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {"run.json", "report.html"}


def send(past_runs, *words):
    folder = next(f for f, c in run_folder.load_all(past_runs) if c["choices"]["tracking"] == "mlflow")
    return subprocess.run(
        [sys.executable, "-m", "cookbook.report.tracking", folder, *words],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
    )


def test_a_run_is_sent_later(past_runs, tmp_path):
    import mlflow

    done = send(past_runs, f"tracking.uri=sqlite:///{tmp_path}/other.db")
    assert done.returncode == 0, done.stderr
    content = next(c for _, c in run_folder.load_all(past_runs) if c["choices"]["tracking"] == "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/other.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "cookbook/horovod"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["final/eval/accuracy"] == content["objective"]["value"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracking.uri=/tmp/a folder"], "tracking.uri=sqlite:////tmp/a folder/mlflow.db"),
        (["tracking.uri=http://127.0.0.1:9"], "no MLflow server answers there"),
        (["tracking=none"], "say which"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_named_within_seconds(past_runs, words, said):
    done = send(past_runs, *words)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr


def test_tensorboard_has_what_the_run_record_says(past_runs):
    from tensorboardX.proto.event_pb2 import Event

    folder, content = next(
        (f, c) for f, c in run_folder.load_all(past_runs) if c["choices"]["tracking"] == "tensorboard"
    )
    (file,) = (past_runs / "tensorboard/horovod" / folder.name).glob("events.out.tfevents.*")
    data, offset, points = file.read_bytes(), 0, []
    while offset < len(data):  # TFRecord framing: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "train/loss"]
        offset += length + 16
    assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in content["curves"]["train/loss"]]


def test_one_page_over_all_runs(past_runs):
    path, count, _ = pages.write_overview(past_runs)
    page = path.read_text()
    assert count == 2
    for folder, content in run_folder.load_all(past_runs):
        assert f'href="horovod/{folder.name}/report.html"' in page
        assert f'data-value="{content["objective"]["value"]}"' in page
    assert page.count("data:image/svg+xml;base64,") == 3


def test_latest_points_at_the_newest_run(past_runs):
    newest = run_folder.load_all(past_runs)[-1][0]
    assert (past_runs / "horovod/latest").resolve() == newest
    assert json.loads((past_runs / "horovod/latest/run.json").read_text())["folder"] == str(newest)
