"""Steps of a recipe that are skipped, and files that are left out: both are seen wherever a run is looked at."""

import importlib.util
import json
import sys

import pytest

from cookbook import ROOT, evidence
from cookbook.report import pages
from cookbook.report.console import console
from cookbook.report.summary import print_summary
from runrecord import RunRecord, read_records

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
        "dataset": {"name": "log_files", "rows": {"lines": 3}, "left_out": left_out},
        "num_rows": 3,
        "each_row_once": False,
        "workers_command": "",
        "machine": "here",
        "command": "python -m cookbook",
    }
    (tmp_path / "run.json").write_text(json.dumps(content))
    page = pages.write_run_page(tmp_path).read_text()
    assert f"<td>anomalies</td><td>{REASON}</td>" in page
    assert "<td>notes.pdf</td><td>its ending is not that of a log</td>" in page.replace("&#39;", "'")
    with console.capture() as shown:
        print_summary(content, tmp_path / "report.html")
    assert f"anomalies: {REASON}" in shown.get()
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
