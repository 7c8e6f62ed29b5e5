"""Steps of a recipe that are skipped, and files that are left out: both are seen wherever a run is looked at."""

import json

from cookbook import evidence, report
from cookbook.console import console
from cookbook.summary import print_summary
from runrecord import RunRecord, read_records

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
        "recipe": "spark", "status": "ok", "reason": "", "workers": [], "lost_workers": [], "services": [], "worlds": [], "world_size": 2,
        "account": {"read": 3}, "metrics": {}, "curves": {}, "objective": {"name": "speed", "value": 1.0}, "seconds": {"total": 1.0}, "versions": {},
        "skipped": {"anomalies": REASON}, "dataset": {"name": "log_files", "rows": {"lines": 3}, "left_out": left_out}, "num_rows": 3,
        "each_row_once": False, "workers_command": "", "machine": "here", "command": "python -m cookbook",
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(content))
    page = report.write_run_page(tmp_path).read_text()
    assert f"<td>anomalies</td><td>{REASON}</td>" in page
    assert "<td>notes.pdf</td><td>its ending is not that of a log</td>" in page.replace("&#39;", "'")
    with console.capture() as shown:
        print_summary(content, tmp_path / "report.html")
    assert f"anomalies: {REASON}" in shown.get()
    assert "1 files below data.path were not read" in shown.get()
