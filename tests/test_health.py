"""The page over a made history: a break, a flake, an old lock, a figure that fell out of its history;
and how a run is recorded."""

import dataclasses
import json
import random
import re
import subprocess

import pytest

from benchmarks import measure
from cookbook import UserError
from cookbook.tools import health, provenance
from cookbook.tools.history import Entry, append, entry_of, read, variant_of
from cookbook.tools.trends import flakiness, judge, spells_of

DAY, NOW = 86400, 1_800_000_000
CLASS = "Some Processor, 2 cores, 8 GiB"
RECIPES = ["breaking", "flaky", "healthy", "missing", "oldlock", "slow"]


def entry(recipe, night, **changes):
    """A run of night 0 to 19; its figures are spread a little."""
    noise = random.Random(f"{recipe} {night}").uniform(-1, 1)
    known = {
        "recipe": recipe,
        "time": NOW - (20 - night) * DAY,
        "commit": f"{night // 3:040x}",
        "machine": CLASS,
        "settings": "",
        "status": "ok",
        "versions": {"torch": "2.13.0", "numpy": "2.4.1"},
        "seconds": {"run": 30 + noise, "total": 40 + noise},
        "objective": "eval/accuracy",
        "value": 0.96 + 0.002 * noise,
        "samples_per_second": 1000 + 20 * noise,
        "lock_age_days": 10.0,
    }
    return Entry(**known | changes)


def made_history():
    found = []
    for night in range(20):
        broken = night >= 15
        found += [
            entry("healthy", night),
            entry(
                "breaking",
                night,
                status="failed" if broken else "ok",
                reason="ranks disagree" if broken else "",
                versions={"torch": "2.14.0" if broken else "2.13.0", "numpy": "2.4.1"},
            ),
            entry("flaky", night, status="failed" if night in (4, 10) else "ok", reason="a port was taken"),
            entry("oldlock", night, lock_age_days=180.0 + night),
            entry("slow", night, samples_per_second=400.0 if night == 19 else 1000.0 + night % 3),
        ]
    return found


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "history.jsonl"
    for one in made_history():
        append(path, "run", dataclasses.asdict(one))
    return path


def rows(history, recipes=RECIPES):
    return {row.recipe: row for row in health.page(history, recipes, NOW)[1]}


def test_each_thing_in_a_made_history_is_seen(history):
    found = rows(history)
    states = {name: row.state for name, row in found.items()}
    assert states == {
        "breaking": "failed",
        "flaky": "warning",
        "healthy": "ok",
        "missing": "warning",
        "oldlock": "warning",
        "slow": "warning",
    }
    assert found["healthy"].notes == ()
    assert found["breaking"].notes == ("failed 5 times in a row: ranks disagree",)
    assert found["breaking"].flaky == ""
    assert found["flaky"].notes == ("flaky: 2 of 20 runs failed and went well again without any change",)
    assert found["oldlock"].notes == ("its lock is 199 days old (make lock RECIPE=oldlock)",)
    assert found["missing"].notes == ("no run in this history",)
    assert found["slow"].notes == ("samples/s 400.0, worse than the last 10 runs: median 1,001, spread 50.05",)


def test_what_broke_when(history):
    (spell,) = rows(history)["breaking"].spells
    assert len(spell.failed) == 5 and spell.after is None and not spell.is_flake
    assert spell.failed[0].time == NOW - 5 * DAY and spell.before.time == NOW - 6 * DAY
    assert spell.changes() == ["commit 0000000000 -> 0000000000", "torch 2.13.0 -> 2.14.0"]
    assert all(spell.is_flake for spell in rows(history)["flaky"].spells)


def test_a_break_that_a_commit_mended_is_no_flake():
    good, bad, mended = (
        entry("a", 1, commit="aa"),
        entry("a", 2, commit="bb", status="failed"),
        entry("a", 3, commit="cc"),
    )
    (spell,) = spells_of([good, bad, mended])
    assert not spell.is_flake and flakiness([good, bad, mended]) == ""
    # A tree with changes has no commit: nothing can be said of it.
    dirty = [dataclasses.replace(one, commit="aa+") for one in (bad, mended)]
    assert not spells_of(dirty)[0].is_flake


def test_the_page_shows_it_and_needs_nothing_from_outside(history, tmp_path):
    proposal = {"target": "one step beyond torch", "status": "breaks", "culprits": ["torch"], "reason": "<it> fails"}
    proposal["upgrades"] = {"torch": ["2.13.0", "2.14.0"]}
    answer = {"recipe": "slow", "time": NOW, "machine": CLASS, "commit": "aa", "proposals": [proposal]}
    append(history, "canary", answer)
    path, _, problems = health.write_page(history, tmp_path / "site", RECIPES, NOW)
    text = path.read_text()
    assert problems == [] and (tmp_path / "site/history.jsonl").read_text() == history.read_text()
    assert dict(re.findall(r'data-recipe="(\w+)" data-state="(\w+)"', text))["breaking"] == "failed"
    assert text.count("<svg") == 3 * 5 and text.count('class="bad"') == 3 * (5 + 2)
    assert "torch 2.13.0 -&gt; 2.14.0" in text and "still fails" in text and "199 days" in text
    assert "torch 2.13.0 → 2.14.0" in text and "&lt;it&gt; fails" in text
    assert not re.search(r'(src|href)="', text)


def test_only_the_same_class_of_machine_and_the_same_settings_are_compared():
    past = [entry("a", night) for night in range(10)]
    slower = entry("a", 11, machine="Other Processor, 4 cores, 16 GiB", samples_per_second=100.0)
    assert {one.state for one in judge(slower, past)} == {"new"}
    other = entry("a", 11, settings="scale=smoke", samples_per_second=100.0)
    assert {one.state for one in judge(other, past)} == {"new"}
    same = {one.name: one for one in judge(entry("a", 11, samples_per_second=100.0), past)}
    assert same["samples/s"].state == "worse" and same["samples/s"].count == 10
    assert same["eval/accuracy"].state == "usual"


@pytest.mark.parametrize(
    ("name", "change", "state"),
    [
        ("eval/accuracy", {"value": 0.7}, "worse"),
        ("eval/accuracy", {"value": 0.7, "direction": "minimize"}, "better"),
        ("seconds of the run", {"seconds": {"run": 60.0}}, "worse"),
        ("seconds of the run", {"seconds": {"run": 10.0}}, "better"),
        ("samples/s", {"samples_per_second": 1500.0}, "better"),
    ],
)
def test_directions(name, change, state):
    past = [entry("a", night) for night in range(10)]
    assert {one.name: one.state for one in judge(entry("a", 11, **change), past)}[name] == state


def test_failed_runs_are_no_history():
    past = [entry("a", night) for night in range(3)] + [entry("a", night, status="failed") for night in range(3, 9)]
    assert {one.state for one in judge(entry("a", 11), past)} == {"new"}


def test_lines_that_cannot_be_read_are_named_and_equal_lines_count_once(history):
    good = history.read_text()
    history.write_text(good + good + '{"kind": "run", "recipe": "x"}\nnonsense\n{"kind": "other"}\n')
    entries, _, _, problems = read(history)
    assert len(entries) == 100
    assert [text.split(" cannot")[0] for text in problems] == ["line 201", "line 202", "line 203"]
    assert "line 202 cannot be read" in health.page(history, RECIPES, NOW)[0]
    with pytest.raises(UserError, match="HISTORY=/nowhere is not a file; expected JSON lines"):
        read("/nowhere")


def test_a_recipe_that_stopped_running_is_seen(history):
    for line in ("still", "still2"):
        append(history, "run", dataclasses.asdict(entry("healthy", 20 + 5 * (line == "still2"))))
    assert "no run for 6 days" in rows(history)["oldlock"].notes
    assert rows(history, ["healthy"])["slow"].notes[-1] == "no longer among the recipes"


CONTENT = {
    "recipe": "pytorch",
    "started": NOW - 60.0,
    "status": "ok",
    "reason": "",
    "seconds": {"run": 9.5, "total": 15.0},
    "machine": "Intel(R) Xeon(R), at 2 GHz, 2 cores, 24 GiB, Linux 6.18.44, Python 3.11.7",
    "versions": {"torch": "2.13.0+cpu"},
    "objective": {"name": "eval/accuracy", "direction": "maximize", "value": 0.97},
    "overrides": ["recipe=pytorch", "seed=1", "resume=never"],
    "metrics": {"samples_per_second": 123.0, "memory/peak_mb": 456.0},
}


def test_a_run_record_becomes_a_line(monkeypatch):
    monkeypatch.setattr("cookbook.tools.history.lock_age", lambda *_: 7.0)
    made = entry_of(CONTENT, "aa", NOW)
    assert (made.machine, made.settings) == ("Intel(R) Xeon(R), at 2 GHz, 2 cores, 24 GiB", "seed=1")
    assert (made.value, made.samples_per_second, made.peak_memory_mb, made.lock_age_days) == (0.97, 123.0, 456.0, 7.0)
    assert made.versions["torch"] == "2.13.0+cpu" and len(made.versions) > 5
    assert entry_of(CONTENT | {"status": "running"}, "aa", NOW).status == "failed"
    nothing = entry_of(CONTENT | {"objective": CONTENT["objective"] | {"value": float("nan")}}, "aa", NOW)
    assert nothing.value is None


def test_a_mode_with_a_lock_of_its_own():
    assert variant_of("horovod", ["recipe.mode=tensorflow"]) == "tensorflow"
    assert variant_of("dask", []) == "distributed"
    assert variant_of("ray_tune", []) is None


def test_a_locks_age_is_its_last_commits_and_a_shallow_clone_does_not_know(tmp_path, monkeypatch):
    def git(*words):
        env = {
            "GIT_AUTHOR_DATE": f"{NOW - 9 * DAY} +0000",
            "GIT_COMMITTER_DATE": f"{NOW - 9 * DAY} +0000",
            "PATH": "/usr/bin:/bin",
        }
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=tmp_path / "full",
            env=env,
            check=True,
            capture_output=True,
        )

    (tmp_path / "full").mkdir()
    git("init", "-q")
    for name in ("lock", "other"):
        (tmp_path / "full" / name).write_text("x")
        git("add", ".")
        git("commit", "-q", "-m", name)
    assert provenance.lock_age("lock", NOW, tmp_path / "full") == 9.0
    assert provenance.commit_of(tmp_path / "full") == provenance.git("rev-parse", "HEAD", root=tmp_path / "full")
    (tmp_path / "full/lock").write_text("y")
    assert provenance.commit_of(tmp_path / "full").endswith("+")
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{tmp_path}/full", tmp_path / "shallow"], check=True)
    assert provenance.lock_age("lock", NOW, tmp_path / "shallow") is None
    assert provenance.commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit_of(tmp_path / "full") == "unknown", "a checkout from a zip file, on a machine without git"
    assert provenance.lock_age("lock", NOW, tmp_path / "full") is None


def test_a_driver_that_leaves_no_run_is_a_failed_line(tmp_path, monkeypatch):
    history = tmp_path / "history.jsonl"
    words = ["pytorch", history, [f"output_root={tmp_path}/out", "recipe.no_such_setting=1"]]
    assert health.record(*words) == 1
    (line,) = map(json.loads, history.read_text().splitlines())
    assert (line["kind"], line["recipe"], line["status"], line["value"]) == ("run", "pytorch", "failed", None)
    assert line["reason"].startswith("the driver ended with status 1 and left no finished run")


def test_a_benchmark_reports_ratios_and_is_judged_by_its_history(tmp_path, monkeypatch, capsys):
    table = [
        "| recipe, 2 workers | 900 samples/s | |",
        "| bare | 1,000 samples/s | recipe / bare = 0.900 (0.8 to 0.9) |",
    ]
    bounds = {"recipe / bare >= 0.97": False}
    monkeypatch.delenv("HISTORY", raising=False)
    measure.print_table("pytorch", CONTENT["machine"], table, bounds)
    assert "missed on this machine (reported, not a failure): recipe / bare >= 0.97" in capsys.readouterr().out
    history = tmp_path / "history.jsonl"
    monkeypatch.setenv("HISTORY", str(history))
    for _ in range(5):
        measure.print_table("pytorch", CONTENT["machine"], table, bounds)
    assert [one.ratios for one in read(history)[1]] == [{"recipe / bare": 0.9}] * 5
    assert "ratio recipe / bare 0.9, usual than the last 4 runs" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a ratio fell out of its history"):
        measure.print_table("pytorch", CONTENT["machine"], [table[0], table[1].replace("0.900", "0.500")], bounds)
    assert "ratio recipe / bare 0.5, worse than the last 5 runs: median 0.9" in capsys.readouterr().out


def test_a_wrong_result_of_a_benchmark_still_fails(monkeypatch):
    monkeypatch.delenv("HISTORY", raising=False)
    with pytest.raises(SystemExit, match="wrong: equal results"):
        measure.print_table("petastorm", "m", ["| a | b | |"], {"equal results": False, "a / b >= 2": False})


@pytest.mark.parametrize("history", ["", "."])
def test_a_history_that_is_no_file_is_refused_before_the_run(history, monkeypatch):
    monkeypatch.setattr(health, "record", lambda *_: pytest.fail("the run was started"))
    with pytest.raises(UserError, match="expected a file for the history, such as HISTORY=history.jsonl"):
        health.main(["record", "horovod", history])


def test_a_hook_of_another_repository_does_not_change_the_commit(tmp_path, monkeypatch):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", name]):
            subprocess.run(["git", *words], cwd=tmp_path / name, check=True)
    mine = provenance.commit_of(tmp_path / "mine")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert len(mine) == 40 and provenance.commit_of(tmp_path / "mine") == mine
