"""What only the Spark recipe can do, run for real through the driver."""

import bz2
import gzip
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import urlparse

import psutil
import pytest

from cookbook import ROOT, processes
from cookbook.settings import compose_recipe
from cookbook.tools.chaos import inject
from tests.helpers import CLEAN, Driver, latest, run_cookbook
from tests.requirements import skip

SMALL = ["recipe=spark", *compose_recipe("spark")[0]["recipe"]["driver"]["short"]]
FAST = SMALL[2]  # a Java machine for short runs
WITHOUT = SMALL[:-1]  # ... and its choice of steps
INGEST = ["recipe=spark", "data=log_files", FAST, "recipe.steps=[ingest]"]
GOOD = (
    '10.0.0.{n} - - [05/Jan/2025:10:00:{n:02d} +0000] "GET /product/{n} HTTP/1.1" 200 512 "-" "Mozilla/5.0 (X11)" 0.012'
)


def results(content, like=None):
    """The metrics that do not depend on the clock; `like`: only those that this run has, too."""
    names = (like or content)["metrics"]
    return {name: content["metrics"][name] for name in names if not name.endswith(("seconds", "lines_per_second"))}


def test_every_line_is_good_or_quarantined_where_it_stands(undisturbed, recipe_python):
    content, folder, output = undisturbed(*SMALL)
    account = content["account"]
    assert account["read"] == content["dataset"]["rows"]["lines"] == 20_000
    assert account["quarantined"] == len(range(997 // 2, 20_000, 997))
    assert account["good"] + account["quarantined"] == account["read"]
    assert "rows                 read 20,000" in output
    assert content["metrics"]["anomalies/recall"] >= 0.9
    assert content["metrics"]["anomalies/precision"] >= 0.8
    script = (
        "import sys, json, pyarrow.dataset as ds; t = ds.dataset(sys.argv[1]).to_table().to_pylist();"
        "print(json.dumps([[r['file'], r['offset'], r['line'], r['reason']] for r in t]))"
    )
    done = subprocess.run(
        [recipe_python("spark"), "-c", script, folder / "quarantine"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    assert len(rows) == account["quarantined"]
    for file, offset, line, _ in rows:
        with open(urlparse(file).path, "rb") as text:
            text.seek(offset)
            assert text.readline().rstrip(b"\n").decode() == line
    assert {row[3] for row in rows} == {"does not match the format"}


def test_a_killed_executor_changes_no_result(undisturbed, tmp_path):
    expected, _, _ = undisturbed(*SMALL)
    driver = Driver(*WITHOUT, "recipe.steps=[ingest,anomalies]", "recipe.memory_mb=700", output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] == 1 for e in driver.events()))
    lost = driver.pid_of(1)
    assert "-Xmx700M" in psutil.Process(lost).cmdline(), "the executor has the heap that was asked for"
    inject.kill(lost)
    status, output = driver.end(400)
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "spark")
    assert lost in [worker["pid"] for worker in content["lost_workers"]]
    assert content["world_size"] == 2
    assert {name.partition("/")[0] for name in results(content)} == {"ingest", "anomalies"}
    assert results(content) == pytest.approx(results(expected, content), rel=1e-6)
    assert content["account"] == expected["account"]
    assert not (folder / "scratch").exists()


@pytest.mark.full
def test_a_stream_that_was_cut_off_scores_every_line_once(undisturbed, tmp_path):
    """The stream compares number and hash sum of what it scored with the input, and fails the run where they differ."""
    expected, _, _ = undisturbed(*SMALL)
    words = [*WITHOUT, "recipe.steps=[ingest,classify,stream]"]
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: list(tmp_path.glob("spark/*/stream-checkpoint/commits/0")), 600)
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, _, output = run_cookbook(*words, output_root=tmp_path)
    assert "its driver was killed" in output
    assert content["metrics"]["stream/scored"] == expected["metrics"]["stream/scored"] == content["account"]["good"]
    assert results(content) == pytest.approx(results(expected, content), rel=1e-6)


def own_logs(folder):
    """Files as people have them; returns (good, malformed) lines."""
    folder.mkdir()
    lines = [GOOD.format(n=n) for n in range(1, 51)]
    text = ("\n".join(lines) + "\n").encode()
    (folder / "plain.log").write_bytes(text)
    (folder / "windows.log").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    (folder / "packed.log.gz").write_bytes(gzip.compress(text))
    (folder / "other.log.bz2").write_bytes(bz2.compress(text))
    (folder / "empty.log").write_text("")
    latin = lines[1].encode().replace(b"product", b"caf\xe9")
    strange = [lines[0].replace("product", "café").encode(), b"", latin, b"  ", b"x" * 5_000_000, lines[2].encode()]
    (folder / "strange.log").write_bytes(b"\n".join(strange))  # nothing ends the last line
    (folder / "again.log").symlink_to(folder / "plain.log")
    return 4 * 50 + 2, 2


def test_own_logs_in_many_forms(tmp_path, recipe_python):
    good, malformed = own_logs(tmp_path / "logs")
    # Zstandard, by the recipe's environment: this Python has none.
    pack = "import sys, zstandard as z; open(sys.argv[1], 'wb').write(z.compress(open(sys.argv[2], 'rb').read()))"
    words = [recipe_python("spark"), "-c", pack, tmp_path / "logs/third.log.zst", tmp_path / "logs/plain.log"]
    subprocess.run(words, check=True)
    content, folder, _ = run_cookbook(*INGEST, f"data.path={tmp_path}/logs", output_root=tmp_path / "out")
    assert content["account"] == {"read": good + 50 + malformed, "good": good + 50, "quarantined": malformed}
    reasons = json.loads((folder / "tables/quarantined lines.json").read_text())["rows"]
    assert {row["reason"] for row in reasons} == {"not UTF-8", "longer than 1,048,576 bytes"}
    assert content["metrics"]["ingest/located"] == malformed
    assert content["metrics"]["ingest/blank"] == 2


def test_what_java_says_when_it_does_not_start_is_the_reason(tmp_path):
    words = ["recipe=spark", "scale=smoke", "recipe.java_options=-XX:-BytecodeVerificationRemote"]
    content, _, _ = run_cookbook(*words, output_root=tmp_path, status=1)
    first, *_ = content["reason"].split("; ")
    assert first.startswith("spark-submit: Error: VM option 'BytecodeVerificationRemote' is diagnostic")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("bad.log.gz", b"no gzip", "1 of 7 log files cannot be read"),
        ("bad.log", None, "nowhere: No such file or directory"),  # a link to nowhere
    ],
)
def test_files_that_cannot_be_read_stop_the_run_before_it_begins(tmp_path, name, content, text):
    own_logs(tmp_path / "logs")
    bad = tmp_path / "logs" / name
    bad.symlink_to(tmp_path / "nowhere") if content is None else bad.write_bytes(content)
    _, folder, output = run_cookbook(*INGEST, f"data.path={tmp_path}/logs", output_root=tmp_path / "out", status=1)
    assert text in output
    assert not (folder / "events").exists()


CASES = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession
from ingest import ingest
settings = {"spark.ui.enabled": False, "spark.driver.host": "127.0.0.1"}
spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
for name, paths, log_format, output_dir in json.loads(sys.argv[2]):
    data_dir = Path(output_dir) / "data"
    data_dir.mkdir(parents=True)
    (data_dir / "manifest.json").write_text(json.dumps({"paths": paths, "format": log_format}))
    config = SimpleNamespace(data_dir=str(data_dir), output_dir=output_dir, max_malformed_share=0.1)
    try:
        said = ingest(spark, config, SimpleNamespace(table=print))
    except SystemExit as error:
        said = str(error)
    left = [str(path) for path in Path(output_dir, "events").rglob("*.parquet")]
    print("CASE", json.dumps([name, said, left]), flush=True)
"""


@pytest.mark.full
def test_what_cannot_be_ingested_leaves_no_half_table(tmp_path, recipe_python):
    """One Spark session for all of these; how such an error reaches the user, the other tests show."""
    own_logs(tmp_path / "logs")
    many = "".join(GOOD.format(n=n % 60) + f"{n}\n" for n in range(5000))
    (tmp_path / "logs/cut.log.gz").write_bytes(gzip.compress(many.encode())[:-4000])
    (tmp_path / "logs/large.log").write_text(
        "".join(GOOD.format(n=n % 60) + f"{n * 77 % 9973}\n" for n in range(400_000))
    )
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], capture_output=True).returncode:
        skip("root", "a small tmpfs cannot be mounted here")
    logs = str(tmp_path / "logs")
    cases = [
        ["cut", [f"{logs}/plain.log", f"{logs}/cut.log.gz"], "combined", f"{tmp_path}/cut"],
        ["format", [f"{logs}/plain.log"], "syslog", f"{tmp_path}/format"],
        ["full", [f"{logs}/large.log"], "combined", f"{small}/full"],
        ["names", [f"{logs}/PACKED.LOG.GZ", f"{logs}/a{{b}}.log"], "combined", f"{tmp_path}/a [b]{{c}}*"],
    ]
    shutil.copy(tmp_path / "logs/packed.log.gz", tmp_path / "logs/PACKED.LOG.GZ")
    shutil.copy(tmp_path / "logs/plain.log", tmp_path / "logs/a{b}.log")
    try:
        done = subprocess.run(
            [recipe_python("spark"), "-c", CASES, ROOT / "recipes/spark", json.dumps(cases)],
            capture_output=True,
            text=True,
            env={**CLEAN, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT / "recipes/spark")},
        )
    finally:
        subprocess.run(["umount", small], check=True)
    found = [json.loads(line.removeprefix("CASE ")) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    found = {name: (said, left) for name, said, left in found}
    assert found.keys() == {"cut", "format", "full", "names"}, done.stderr[-3000:]
    assert "cut.log.gz is cut off or damaged: nothing was written" in found["cut"][0]
    assert "50 of 50 lines are malformed, more than max_malformed_share=0.1 allows" in found["format"][0]
    assert "Is data.format=syslog the right format?" in found["format"][0]
    assert "No space left on device" in found["full"][0]
    assert (found["names"][0]["read"], found["names"][0]["good"]) == (100, 100)
    assert [found[name][1] for name in ("cut", "format", "full")] == [[], [], []]


@pytest.fixture
def standalone_cluster(recipe_python, tmp_path):
    """The address of a Spark master on loopback, with two workers: processes of Spark's own, as people start them."""
    home = next((recipe_python("spark").parent.parent / "lib").glob("python3*/site-packages/pyspark"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, run_id = f"spark://127.0.0.1:{port}", f"standalone-{port}"
    environment = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_WORKER_DIR": str(tmp_path / "work"), "SPARK_NO_DAEMONIZE": "1"}
    start = [home / "bin/spark-class", "-XX:TieredStopAtLevel=1"]
    common = ["--host", "127.0.0.1", "--webui-port", "0"]
    words = [
        ["org.apache.spark.deploy.master.Master", *common, "--port", port],
        *2 * [["org.apache.spark.deploy.worker.Worker", *common, "--cores", "1", "--memory", "1g", address]],
    ]
    with open(tmp_path / "cluster.log", "w") as log:
        for one in words:
            processes.start([start[0], *one], run_id, environment, output=log)
        deadline = time.monotonic() + 60
        while (tmp_path / "cluster.log").read_text().count("Registering worker") < 2:
            assert time.monotonic() < deadline, (tmp_path / "cluster.log").read_text()
            time.sleep(0.2)
        yield address
    processes.stop(run_id, 5)


@pytest.mark.full
def test_a_cluster_that_is_there_already(standalone_cluster, tmp_path):
    words = ["recipe=spark", "scale=smoke", FAST, "recipe.steps=[ingest]", f"cluster.spark_master={standalone_cluster}"]
    more = ["recipe.memory_mb=700", "recipe.profile=true"]
    content, folder, output = run_cookbook(*words, *more, output_root=tmp_path)
    assert f"--master {standalone_cluster}" in output
    assert len({worker["pid"] for worker in content["workers"]}) == 2
    assert content["account"]["read"] == 20_000
    (log,) = [path for path in folder.glob("traces/*") if not path.suffix]
    assert {json.loads(line)["Event"] for line in log.read_text().splitlines()} > {"SparkListenerTaskEnd"}
    trace = json.loads(gzip.decompress(log.with_name(f"{log.name}.json.gz").read_bytes()))["traceEvents"]
    assert len([event for event in trace if event["ph"] == "M"]) == 2, "executors"
    tasks = [event for event in trace if event["ph"] == "X"]
    assert {event["pid"] for event in tasks} == {0, 1}
    assert "ingest" in {event["name"] for event in tasks}
    rows = json.loads((folder / "tables/stages with the most seconds of tasks.json").read_text())["rows"]
    assert sum(row["tasks"] for row in rows) == len(tasks)
    assert sum(row["seconds of tasks"] for row in rows) > 1
    assert "Stages with the most seconds of tasks" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data=log_files", "data.path=/nowhere/*.log"], "path=/nowhere/*.log: nothing matches it"),
        (["data=log_files"], "data.path is not set: data=log_files takes files of yours"),
        (["recipe.window_minutes=7"], "window_minutes=7 does not divide a day"),
        (["recipe.steps=[explore]"], "steps must begin with ingest"),
        (["recipe.steps=[ingest,fly]"], "unknown step 'fly'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=spark", *words, output_root=tmp_path, status=1)
    assert text in output


@pytest.mark.parametrize(
    ("version", "text"), [(None, "java: missing"), ("11.0.2", "java: version 11.0.2 is too old, expected 17 or newer")]
)
def test_java_is_asked_for_before_any_work(tmp_path, version, text):
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not os.path.exists(f"{p}/java"))
    if version:
        (tmp_path / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        (tmp_path / "java").chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{path}"
    done = subprocess.run(
        [sys.executable, "-m", "cookbook", "recipe=spark", f"output_root={tmp_path}/out"],
        env={**CLEAN, "PATH": path, "JAVA_HOME": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert text in done.stdout + done.stderr
    assert "openjdk-17-jre-headless" in done.stdout + done.stderr
    assert not (tmp_path / "out/spark").exists()


def task_end(stage, number, executor, begun, ended, shuffled=0, gc=0, failed=False):
    info = {"Task ID": number, "Executor ID": executor, "Host": "a", "Failed": failed}
    metrics = {
        "Executor Run Time": ended - begun,
        "JVM GC Time": gc,
        "Shuffle Read Metrics": {"Remote Bytes Read": shuffled, "Local Bytes Read": 1},
        "Shuffle Write Metrics": {"Shuffle Bytes Written": 2 * shuffled},
    }
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Stage Attempt ID": 0,
        "Task Info": info | {"Launch Time": begun, "Finish Time": ended},
    } | ({} if failed else {"Task Metrics": metrics})


def test_what_an_event_log_says():
    spec = importlib.util.spec_from_file_location("spark_profiles", ROOT / "recipes/spark/profiles.py")
    profiles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(profiles)
    events = [{"Event": "SparkListenerLogStart"}]
    for stage, step, begun, ended in ((0, {}, 0, 500), (1, {"spark.job.description": "ingest"}, 500, 3000)):
        info = {"Stage ID": stage, "Stage Attempt ID": 0, "Stage Name": f"collect {stage}"}
        events += [
            {"Event": "SparkListenerStageSubmitted", "Stage Info": info, "Properties": step},
            {
                "Event": "SparkListenerStageCompleted",
                "Stage Info": info | {"Submission Time": begun, "Completion Time": ended},
            },
        ]
    events += [
        task_end(0, 0, "0", 0, 500),
        task_end(1, 1, "0", 500, 2500, shuffled=10, gc=100),
        task_end(1, 2, "1", 500, 1000, failed=True),
        task_end(1, 3, "0", 600, 2600, shuffled=20, gc=300),
    ]
    stages, tasks = profiles.read(events)
    first, second = profiles.costs(stages, tasks)
    assert first == {
        "step": "ingest",
        "stage": 1,
        "what": "collect 1",
        "seconds": 2.5,
        "tasks": 3,
        "seconds of tasks": 4.0,
        "GC, percent of them": 10.0,
        "shuffle read, bytes": 32,
        "shuffle written, bytes": 60,
    }
    assert (second["step"], second["tasks"], second["GC, percent of them"]) == ("", 1, 0.0)
    trace = [event for event in profiles.trace_events(stages, tasks) if event["ph"] == "X"]
    assert [(event["name"], event["pid"], event["tid"], event["ts"], event["dur"]) for event in trace] == [
        ("collect 0", 0, 0, 0, 500_000),
        ("ingest", 0, 0, 500_000, 2_000_000),
        ("ingest", 1, 0, 500_000, 500_000),
        ("ingest", 0, 1, 600_000, 2_000_000),
    ]
