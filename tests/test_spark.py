"""What only the Spark recipe can do, run for real through the driver."""

import bz2
import gzip
import json
import os
import signal
import subprocess
from urllib.parse import urlparse

import pytest

from tests.helpers import Driver, latest, run_cookbook

SMALL = ["recipe=spark", "scale=smoke"]
GOOD = (
    '10.0.0.{n} - - [05/Jan/2025:10:00:{n:02d} +0000] "GET /product/{n} HTTP/1.1" 200 512 "-" "Mozilla/5.0 (X11)" 0.012'
)


def results(content):
    """The metrics that do not depend on the clock."""
    return {
        name: value for name, value in content["metrics"].items() if not name.endswith(("seconds", "lines_per_second"))
    }


def test_every_line_is_good_or_quarantined_where_it_stands(undisturbed, recipe_python):
    content, folder, output = undisturbed(*SMALL)
    account = content["account"]
    assert account["read"] == content["dataset"]["rows"]["lines"] == 20_000
    assert account["quarantined"] == len(range(997 // 2, 20_000, 997))
    assert account["good"] + account["quarantined"] == account["read"]
    assert "lines                read 20,000" in output
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
    assert {row[3] for row in rows} >= {"quotes are missing or too many", "status or size is no number"}


def test_a_killed_executor_changes_no_result(undisturbed, tmp_path):
    expected, _, _ = undisturbed(*SMALL)
    driver = Driver(*SMALL, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] == 3 for e in driver.events()))
    lost = driver.pid_of(1)
    os.kill(lost, signal.SIGKILL)
    status, output = driver.end(400)
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "spark")
    assert lost in [worker["pid"] for worker in content["lost_workers"]]
    assert content["world_size"] == 2
    assert results(content) == pytest.approx(results(expected), rel=1e-6)
    assert content["account"] == expected["account"]
    assert not (folder / "scratch").exists()


def test_a_stream_that_was_cut_off_scores_every_line_once(undisturbed, tmp_path):
    """The stream compares number and hash sum of what it scored with the input, and fails the run where they differ."""
    expected, _, _ = undisturbed(*SMALL)
    driver = Driver(*SMALL, output_root=tmp_path)
    driver.wait_until(lambda: list(tmp_path.glob("spark/*/stream-checkpoint/commits/0")), 200)
    driver.process.kill()
    driver.end()
    assert driver.no_process_left()
    content, _, output = run_cookbook(*SMALL, output_root=tmp_path)
    assert "its driver was killed" in output
    assert content["metrics"]["stream/scored"] == expected["metrics"]["stream/scored"]
    assert results(content) == pytest.approx(results(expected), rel=1e-6)


def own_logs(folder):
    """Files as people have them; returns (good, malformed) lines."""
    lines = [GOOD.format(n=n) for n in range(1, 51)]
    (folder / "plain.log").write_text("\n".join(lines) + "\n")
    (folder / "windows.log").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    (folder / "packed.log.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (folder / "packed.log.bz2").write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
    (folder / "empty.log").write_text("")
    (folder / "strange.log").write_bytes(
        lines[0].replace("product", "caf").encode() + b"\n" + lines[1].encode().replace(b"product", b"caf\xe9") + b"\n" + b"x" * 5_000_000 + b"\n" + lines[2].encode()
    )  # fmt: skip
    (folder / "again.log").symlink_to(folder / "plain.log")
    return 4 * 50 + 2, 2


def test_own_logs_in_many_forms(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    good, malformed = own_logs(logs)
    words = ["recipe=spark", "data=log_files", f"data.path={logs}", "recipe.steps=[ingest,explore,templates]"]
    content, folder, _ = run_cookbook(*words, output_root=tmp_path / "out")
    assert content["account"] == {"read": good + malformed, "good": good, "quarantined": malformed}
    reasons = json.loads((folder / "tables/quarantined lines.json").read_text())["rows"]
    assert {row["reason"] for row in reasons} == {"not UTF-8", "longer than 1,048,576 characters"}


@pytest.mark.parametrize(
    ("content", "text"),
    [(gzip.compress(GOOD.format(n=1).encode() * 500)[:-40], "is cut off"), (b"no gzip", "Not a gzipped file")],
)
def test_files_that_cannot_be_read_stop_the_run_before_it_begins(tmp_path, content, text):
    (tmp_path / "logs").mkdir()
    own_logs(tmp_path / "logs")
    (tmp_path / "logs/bad.log.gz").write_bytes(content)
    _, folder, output = run_cookbook(
        "recipe=spark", "data=log_files", f"data.path={tmp_path}/logs", output_root=tmp_path / "out", status=1
    )
    assert "1 of 7 log files cannot be read" in output
    assert text in output
    assert not (folder / "events").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data=log_files", "data.path=/nowhere/*.log"], "there are no log files"),
        (["data=log_files"], "which files? Say data.path="),
        (["recipe.window_minutes=7"], "window_minutes=7 does not divide a day"),
        (["recipe.steps=[explore]"], "steps must begin with ingest"),
        (["recipe.steps=[ingest,fly]"], "unknown step 'fly'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=spark", *words, output_root=tmp_path, status=1)
    assert text in output


def test_java_is_asked_for_before_any_work(tmp_path):
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not os.path.exists(f"{p}/java"))
    _, folder, output = run_cookbook(
        "recipe=spark", output_root=tmp_path, status=1, environment={"PATH": path, "JAVA_HOME": ""}
    )
    assert "java: missing. Install it: apt-get install openjdk-17" in output
    assert folder is None
