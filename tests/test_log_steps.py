"""Steps of a recipe that are skipped, and files that are left out: both are seen wherever a run is looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cookbook import ROOT, evidence
from cookbook.report import pages
from cookbook.report.console import console
from cookbook.report.summary import print_summary
from runrecord import RunRecord, read_records
from tests.helpers import CLEAN

sys.path.insert(0, str(ROOT / "recipes/spark"))
try:
    from needs import NEEDS, Facts, lacking, lacking_classes
finally:
    sys.path.pop(0)  # other recipes have modules of the same names

REASON = "needs a time in each line, and these lines have none"


def test_a_skipped_step_is_in_the_verdict_with_its_reason(tmp_path):
    with RunRecord(tmp_path, 0, 1) as run:
        run.work(1)
        run.skip("anomalies", "an earlier reason")
        run.skip("anomalies", REASON)
    verdict = evidence.judge(read_records(tmp_path), evidence.Asked(num_workers=1))
    assert verdict.problems == []
    assert verdict.skipped == {"anomalies": REASON}


def test_a_skipped_step_and_a_file_left_out_are_in_terminal_and_report(tmp_path):
    left_out = [{"file": "notes.pdf", "reason": "its ending is not that of a log"}]
    content = {
        **{name: [] for name in ("workers", "lost_workers", "services", "worlds")},
        **{name: {} for name in ("metrics", "curves", "versions")},
        "recipe": "spark",
        "status": "ok",
        "reason": "",
        "world_size": 2,
        "account": {"read": 3},
        "objective": {"name": "speed", "value": 1.0},
        "seconds": {"total": 1.0},
        "skipped": {"anomalies": REASON},
        "dataset": {"name": "log_files", "rows": {"lines": 3}, "left_out": left_out, "notes": ["a<b"]},
        "num_rows": 3,
        "warnings": ["a<c"],
        "each_row_once": False,
        "workers_command": "",
        "machine": "here",
        "command": "python -m cookbook",
    }
    (tmp_path / "run.json").write_text(json.dumps(content))
    page = pages.write_run_page(tmp_path).read_text()
    assert f"<td>anomalies</td><td>{REASON}</td>" in page
    assert "<p>Note: a&lt;b</p>" in page
    assert '<p class="warning">Warning: a&lt;c</p>' in page
    assert "<td>notes.pdf</td><td>its ending is not that of a log</td>" in page.replace("&#39;", "'")
    with console.capture() as shown:
        print_summary(content, tmp_path / "report.html")
    assert f"anomalies: {REASON}" in shown.get()
    assert "a<c" in shown.get()
    assert "1 files below data.path were not read" in shown.get()


LACKS = "needs the field {}, and no line has one; there are: {}"
FEW = "needs {} windows of 5 minutes with lines, there are {}; a smaller recipe.window_minutes makes more"
WEB = ("time", "client", "method", "path", "status", "bytes")


def facts(columns=WEB, rows=600, windows=40):
    return Facts(columns, rows, windows, 5)


def test_every_step_says_what_it_needs():
    spec = importlib.util.spec_from_file_location("spark_settings", ROOT / "recipes/spark/settings.py")
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    assert list(NEEDS) == settings.STEPS


@pytest.mark.parametrize(
    ("step", "given", "reason"),
    [
        ("anomalies", facts(), None),
        ("anomalies", facts(("host", "message")), LACKS.format("time", "host, message")),
        ("anomalies", facts(windows=1), FEW.format(10, 1)),
        ("forecast", facts(windows=19), FEW.format(20, 19)),
        ("recommend", facts(("time", "message")), LACKS.format("client", "time, message")),
        ("templates", facts(("time", "status")), "needs one of the fields message, path; there are: time, status"),
        ("explore", facts((), 0, 0), "needs at least 1 good lines, there are 0"),
        ("explore", facts(("message",)), None),
    ],
)
def test_a_step_is_skipped_where_the_events_lack_what_it_needs(step, given, reason):
    assert lacking(step, given) == reason


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({0.0: 400.0, 1.0: 30.0}, None),
        ({}, "needs labels"),
        ({0.0: 400.0}, "one class only: each line is ordinary"),
        ({1.0: 400.0}, "one class only: each line is an alert"),
        ({0.0: 400.0, 1.0: 3.0}, "needs 20 lines of each class, and one of them has 3"),
    ],
)
def test_a_classifier_needs_two_classes(counts, reason):
    found = lacking_classes("classify", counts)
    assert found is None if reason is None else reason in found


# ---- every step on other people's logs


def each(text, count=240):
    """Lines a minute apart; {k} is the number of a line, {hour} and {minute} its time."""
    return [text.format(k=k, p=k % 7, hour=k // 60, minute=f"{k % 60:02d}") for k in range(count)]


WEB = '192.0.2.{p} - - [29/Mar/2025:0{hour}:{minute}:00 +0000] "GET /a{p} HTTP/1.1" 200 {k} "-" "curl"'
STEPS_OF = {  # name -> format asked for, lines, format found, steps that must be skipped
    "common": ("common", each(WEB.removesuffix(' "-" "curl"')), "common", "classify recommend gradient_descent stream"),
    "caddy": (
        "auto",
        each(
            '{{"ts":17432856{minute}.{p},"request":{{"remote_ip":"192.0.2.{p}","method":"GET","uri":"/a{p}"}},'
            '"duration":9.3e-05,"size":{k},"status":200}}'
        ),
        "json_access",
        "anomalies classify forecast recommend gradient_descent stream",  # all of a minute
    ),
    "klog": (
        "auto",
        each("I0329 0{hour}:{minute}:00.000001 {k} a.go:4] did {p}"),
        "klog",
        "classify recommend gradient_descent stream",
    ),
    "labels": (
        r"^(?<time>\S+) (?<label>\S+) (?<features>\w+) (?<message>.*)$",  # MLlib has a column of this name
        each("2025-03-29T0{hour}:{minute}:00Z - w work {p}") + each("2025-03-29T0{hour}:{minute}:30Z DISK w no {p}"),
        "regex",
        "recommend stream",
    ),
    "no time": (
        r"^(?<level>\w+) (?<message>.*)$",
        each("INFO did {p}"),
        "regex",
        "anomalies classify forecast recommend gradient_descent stream",
    ),
    "one line": ("auto", each(WEB, 1), "combined", "anomalies classify forecast recommend gradient_descent stream"),
    "w3c": (
        "auto",
        [
            "#Fields: date time c-ip cs-uri-stem sc-status",
            *each("2025-03-29 0{hour}:{minute}:00 192.0.2.{p} /a{p} 200"),
        ],
        "w3c",
        "classify recommend gradient_descent stream",
    ),
}


@pytest.mark.full
def test_every_step_on_other_peoples_logs(recipe_python, tmp_path):
    """A session of its own: no run of the recipe has logs that lack so much. Its tasks write down nothing."""
    python = recipe_python("spark")
    cases = []
    for name, (wanted, lines, *_) in STEPS_OF.items():
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        (folder / "a.log").write_text("\n".join(lines) + "\n")
        cases.append([name, str(folder), wanted, {}])
    # Names and packings: what Spark reads must be what the files hold, whatever the locale.
    folder = tmp_path / "in/names"
    folder.mkdir()
    program = (
        "import sys, zstandard; lines = sys.stdin.buffer.read().splitlines(True); half = len(lines) // 2; "
        "open(sys.argv[1], 'wb').write(b''.join(zstandard.compress(b''.join(p)) for p in (lines[:half], lines[half:])))"
    )
    text = [
        "\n".join(each(WEB.replace("GET", method), 200)).encode() + b"\n" for method in ("GET", "PUT", "HEAD", "POST")
    ]
    subprocess.run(
        [python, "-c", program, folder / "two frames.log.zst"], input=text[0] + b"no such line\n", check=True
    )
    for name, content in zip((b"\xff\xfe.log", "Käse 100%.log".encode(), b"a\nb.log"), text[1:], strict=True):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(content)
    cases.append(["names", str(folder), "combined", {}])
    env = {
        **CLEAN,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TZ": "UTC",
        "PYTHONPATH": str(ROOT / "recipes/spark"),
        "LC_ALL": "C",
    }
    done = subprocess.run(
        [python, ROOT / "tests/log_steps_server.py", tmp_path / "out", json.dumps(cases)],
        capture_output=True,
        text=True,
        env={**env, "PYSPARK_PYTHON": str(python)},
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line, done.stderr[-3000:]
    found = json.loads(line.removeprefix("FOUND "))
    outcomes = {(name, step): one for name, steps in found.items() for step, one in steps.items()}
    assert {key: one for key, one in outcomes.items() if one.keys() & {"crash", "refused"}} == {}
    ingested = found["names"]["ingest"]
    assert [ingested[key] for key in ("read", "good", "quarantined", "located")] == [801, 800, 1, 1]
    for name, (_, lines, fmt, _) in STEPS_OF.items():
        assert found[name]["build"]["format"] == fmt, name
        assert found[name]["ingest"]["good"] == len([line for line in lines if not line.startswith("#")]), name
        assert all(len(one["skipped"]) > 20 for one in found[name].values() if "skipped" in one)
    skipped = {name: " ".join(step for step, one in steps.items() if "skipped" in one) for name, steps in found.items()}
    assert {name: skipped[name] for name in STEPS_OF} == {name: expected for name, (*_, expected) in STEPS_OF.items()}
