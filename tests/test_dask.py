"""What only the Dask recipe can do, run for real through the driver."""

import gzip
import json
import socket
import subprocess

import pytest

from cookbook import ROOT, processes
from cookbook.settings import compose_recipe
from tests.helpers import CLEAN, Driver, latest, run_cookbook

SHORT = ["recipe=dask", *compose_recipe("dask")[0]["recipe"]["driver"]["short"]]
ONE_MODEL = ["recipe=dask", "scale=smoke", "recipe.models=[incremental]"]
INGEST = ["recipe=dask", "scale=smoke", "recipe.steps=[ingest]"]


def results(content):
    return {name: value for name, value in content["metrics"].items() if not name.endswith("seconds")}


def digest_of_features(folder):
    files = sorted((folder / "features").glob("part-*.parquet"))
    assert files
    return [path.read_bytes() for path in files]


def test_the_models_are_better_than_chance_and_every_row_is_known(undisturbed):
    content, folder, _ = undisturbed(*SHORT)
    account = content["account"]
    assert account == {"read": content["dataset"]["rows"]["flights"], "good": account["read"], "quarantined": 0}
    assert account["read"] == 67_356
    assert content["metrics"]["learn/logistic_regression_auc"] >= 0.69
    assert content["metrics"]["features/rows"] == account["read"]
    metrics = content["metrics"]
    assert (
        metrics["features/train_rows"] + metrics["features/test_rows"] == metrics["features/labelled"] < account["read"]
    )
    assert (folder / "traces/dask-performance.html").stat().st_size > 100_000
    schema = json.loads((folder / "features/_schema.json").read_text())
    assert schema["late"] == schema["origin_delay_2h"] == "double"
    assert "arr_delay" not in schema and "dep_delay" not in schema, "what is not known before departure is no feature"


CHECK = """
import sys, json
import numpy as np, pandas as pd
sys.path.insert(0, sys.argv[1])
from reference import features_of
table = pd.read_parquet(sys.argv[2] + "/features")
raw = pd.read_parquet(sys.argv[2] + "/flights")
sample = np.random.default_rng(0).choice(table["id"], 150, replace=False)
wanted = features_of(raw, sys.argv[3], sample)
got = table.set_index("id").loc[sample]
worst = {}
for name in wanted:
    a, b = got[name].to_numpy(), wanted[name].to_numpy()
    if a.dtype.kind == "f":
        same = np.isclose(a, b.astype(float), rtol=1e-9, atol=1e-12, equal_nan=True)
    else:
        same = a.astype(str) == b.astype(str)
    if not same.all():
        worst[name] = [str(a[~same][0]), str(b[~same][0]), int((~same).sum())]
columns = sorted(set(table) - {"id", "scheduled"})
print(json.dumps([sorted(wanted), columns, worst, int(wanted["origin_flights_2h"].sum())]))
"""


def test_features_are_those_of_a_plain_pandas_program(undisturbed, recipe_python):
    """Row by row, on a sample: each feature from the whole raw table, with masks instead of partitions,
    sums and look-ups."""
    content, folder, _ = undisturbed(*SHORT)
    words = [recipe_python("dask"), "-c", CHECK, ROOT / "recipes/dask", folder, content["dataset"]["folder"]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checked, stored, worst, flights = json.loads(done.stdout.splitlines()[-1])
    assert checked == stored
    assert worst == {}
    assert flights > 100, "the sample must have looked back on something"


@pytest.mark.parametrize("model", ["incremental", pytest.param("logistic_regression", marks=pytest.mark.full)])
def test_a_killed_worker_changes_no_result(undisturbed, tmp_path, model):
    expected, expected_folder, _ = undisturbed(*SHORT)
    driver = Driver(*SHORT[:-1], f"recipe.models=[{model}]", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] == 1 for e in driver.events()))
    lost = driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "dask")
    assert lost in [worker["pid"] for worker in content["lost_workers"]]
    assert digest_of_features(folder) == digest_of_features(expected_folder)
    found = results(content)
    assert found.pop("learn/auc") == found[f"learn/{model}_auc"], "the best one of one"
    assert any(name.startswith(f"learn/{model}") for name in found)
    assert found == pytest.approx({name: expected["metrics"][name] for name in found}, rel=1e-9)
    assert content["account"] == expected["account"]
    assert not (folder / "scratch").exists()


@pytest.mark.parametrize("mode", ["processes", "threads"])
@pytest.mark.full
def test_without_a_cluster_the_features_are_the_same(undisturbed, tmp_path, mode):
    words = ["recipe=dask", "scale=smoke", "recipe.steps=[ingest,features,store]", f"recipe.mode={mode}"]
    content, folder, _ = run_cookbook(*words, output_root=tmp_path)
    assert digest_of_features(folder) == digest_of_features(undisturbed(*SHORT)[1])
    assert len({worker["pid"] for worker in content["workers"]}) == {"processes": 2, "threads": 1}[mode]


@pytest.mark.full
def test_a_cluster_that_grows_with_the_work(tmp_path):
    content, _, _ = run_cookbook(*ONE_MODEL, "recipe.elastic=true", output_root=tmp_path)
    assert content["worlds"][:2] == [1, 2]


@pytest.mark.full
def test_the_last_fit_runs_where_there_is_what_it_asks_for(tmp_path):
    words = ["recipe.worker_resources=[{},{learner: 1}]", "recipe.learner_resource=learner", "recipe.num_trees=5"]
    content, folder, _ = run_cookbook(
        "recipe=dask", "scale=smoke", "recipe.models=[boosted_trees]", *words, output_root=tmp_path
    )
    (row,) = [row for row in json.loads((folder / "tables/late flights.json").read_text())["rows"] if row["seconds"]]
    learner = next(worker for worker in content["workers"] if worker["rank"] == 1)
    assert row["best setting"].endswith(f"pid {learner['pid']}")


@pytest.mark.full
def test_a_cluster_that_is_there_already(recipe_python, tmp_path):
    python = recipe_python("dask")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, run_id = f"tcp://127.0.0.1:{port}", f"dask-{port}"
    dask, here = python.parent / "dask", ["--host", "127.0.0.1", "--no-dashboard"]
    workers = ["--nworkers", "2", "--nthreads", "1"]
    words = [
        [dask, "scheduler", *here, "--port", port],
        [dask, "worker", address, *here, *workers, "--local-directory", tmp_path / "work"],
    ]
    try:
        with open(tmp_path / "cluster.log", "w") as log:
            for one in words:
                processes.start(one, run_id, output=log)
        more = [f"cluster.dask_scheduler={address}", "recipe.profile=true"]
        content, folder, _ = run_cookbook(*ONE_MODEL, *more, output_root=tmp_path / "out")
    finally:
        processes.stop(run_id, 5)
    assert len({worker["pid"] for worker in content["workers"]}) == 2
    trace = json.loads(gzip.decompress((folder / "traces/tasks.json.gz").read_bytes()))["traceEvents"]
    assert len([event for event in trace if event["ph"] == "M"]) == 2, "workers"
    done = {(event["pid"], event["name"]) for event in trace if event["ph"] == "X"}
    assert {pid for pid, _ in done} == {0, 1}
    assert "transfer" in {name for _, name in done}
    assert any("read" in name or "ingest" in name for _, name in done), done
    page = (folder / "report.html").read_text()
    assert all(f'<a href="traces/{name}">' in page for name in ("tasks.json.gz", "dask-performance.html"))


GOOD = "2013,1,{day},517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-0{day}T10:00:00Z"
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,"
    "origin,dest,"
    "air_time,distance,hour,minute,time_hour"
)


def own_flights(folder, python):
    """Files as people have them; returns (read, quarantined)."""
    folder.mkdir()
    lines = [HEADER, *(GOOD.format(day=day) for day in range(1, 10))]
    text = "\n".join(lines) + "\n"
    (folder / "plain.csv").write_text(text)
    (folder / "windows.csv").write_bytes(text.replace("\n", "\r\n").encode())
    (folder / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "empty.csv").write_text("")
    (folder / "again.csv").symlink_to(folder / "plain.csv")
    strange = [
        HEADER,
        lines[1].replace("2013,1,1,", "2013,2,30,"),
        lines[2].replace(",2,830", ",late,830"),
        lines[3].replace("UA", "x" * 5_000_000),
        lines[4].replace(",EWR,", ",,"),
        lines[5],
    ]
    (folder / "strange.csv").write_bytes(
        "\n".join(strange).encode() + b"\n" + lines[6].encode().replace(b"IAH", b"\xe9AH") + b"\n"
    )
    # Another kind of number, and a row group whose bytes are spoilt.
    script = """
import sys, pandas as pd, pyarrow.parquet as pq
folder = sys.argv[1]
table = pd.read_csv(folder + "/plain.csv")
kinds = table.assign(dep_delay=table["dep_delay"].astype("str"), year=table["year"].astype("int16"))
kinds.to_parquet(folder + "/kinds.parquet")
table.to_parquet(folder + "/spoilt.parquet", row_group_size=5, compression="gzip")
column = pq.read_metadata(folder + "/spoilt.parquet").row_group(1).column(5)
with open(folder + "/spoilt.parquet", "r+b") as file:
    file.seek(column.data_page_offset)
    file.write(b"\\xff" * 24)
"""
    subprocess.run([python, "-c", script, folder], check=True)
    return 9 * 3 + 6 + 9 + 9, 5 + 4


def test_own_flights_in_many_forms(tmp_path, recipe_python):
    read, quarantined = own_flights(tmp_path / "mine", recipe_python("dask"))
    words = ["recipe=dask", "data=flights_files", f"data.path={tmp_path}/mine", "recipe.steps=[ingest]"]
    content, folder, _ = run_cookbook(*words, output_root=tmp_path / "out")
    assert content["account"] == {"read": read, "good": read - quarantined, "quarantined": quarantined}
    rows = json.loads((folder / "tables/rows in quarantine.json").read_text())["rows"]
    assert {row["reason"]: row["rows"] for row in rows} == {
        "no such day or hour": 1,
        "dep_delay is no number": 1,
        "carrier is longer than 16 characters": 1,
        "origin is missing": 1,
        "dest is not UTF-8": 1,
        "the row group cannot be read": 4,
    }
    script = (
        "import sys, pandas as pd; table = pd.read_parquet(sys.argv[1]).sort_values('row'); "
        "print(table[['file', 'row', 'reason']].to_json(orient='values'))"
    )
    done = subprocess.run([recipe_python("dask"), "-c", script, folder / "quarantine"], capture_output=True, text=True)
    found = [(path.rpartition("/")[2], row) for path, row, _ in json.loads(done.stdout)]
    assert sorted(found) == [("spoilt.parquet", -1), *(("strange.csv", row) for row in (0, 1, 2, 3, 5))]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("no.parquet", b"no parquet", "1 of 7 files cannot be read"),
        (
            "bad.csv",
            (HEADER.replace("arr_delay", "arr") + "\n").encode(),
            "bad.csv lacks the columns arr_delay; it has: year",
        ),
        ("cut.csv.gz", gzip.compress((HEADER + "\n" + GOOD.format(day=1) * 99).encode(), 0)[:-3000], "cut.csv.gz"),
    ],
)
def test_files_that_stop_the_run_before_anything_is_written(tmp_path, recipe_python, name, content, text):
    own_flights(tmp_path / "mine", recipe_python("dask"))
    (tmp_path / "mine/kinds.parquet").unlink()
    (tmp_path / "mine" / name).write_bytes(content)
    words = [
        "recipe=dask",
        "data=flights_files",
        f"data.path={tmp_path}/mine",
        "recipe.steps=[ingest]",
        "recipe.mode=threads",
    ]
    _, folder, output = run_cookbook(*words, output_root=tmp_path / "out", status=1)
    assert text in output
    assert not (folder / "flights").exists()
    assert not (folder / "quarantine").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data=flights_files"], "data.path is not set: data=flights_files takes files of yours"),
        (["recipe.steps=[features]"], "expected the first ones of"),
        (["recipe.models=[forest]"], "forest is unknown; there are: logistic_regression"),
        (
            ["recipe.elastic=true", "recipe.mode=threads"],
            "only the distributed scheduler's cluster can grow and shrink",
        ),
        (["recipe.learner_resource=gpu", "recipe.worker_resources=[{},{}]"], "none of the 2 workers has it"),
        (["cluster.dask_scheduler=tcp://head:8786"], "leaves this machine unencrypted: expected tls://"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=dask", *words, output_root=tmp_path, status=1)
    assert text in output


CLIENT = """
import sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import workers

class Client:
    def __init__(self, address, timeout):
        print(address)
    def register_plugin(self, plugin):
        pass
    def upload_file(self, path):
        pass

workers.Client, workers.embedded, workers.modules_in = Client, lambda config: "embedded", lambda folder: ""
workers.Workers(SimpleNamespace(elastic=False, worker_resources=[], start_timeout_seconds=1, output_dir=""))
"""


@pytest.mark.parametrize(("address", "used"), [(None, "embedded"), ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1")])
def test_a_cluster_that_a_file_in_the_home_names_is_not_taken(recipe_python, tmp_path, address, used):
    (tmp_path / ".config/dask").mkdir(parents=True)
    (tmp_path / ".config/dask/site.yaml").write_text("scheduler-address: tcp://10.255.255.1:8786\n")
    environment = CLEAN | {"HOME": str(tmp_path)} | ({"DASK_SCHEDULER_ADDRESS": address} if address else {})
    words = [recipe_python("dask"), "-c", CLIENT, ROOT / "recipes/dask"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == used, done.stderr
