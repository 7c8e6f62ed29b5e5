"""The guide: its tables, cache and resume, the check for equal results, the page, and what `make choose` answers."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from filelock import FileLock

from cookbook import ROOT, UserError, places, systems
from cookbook.report import pages
from cookbook.settings import compose_recipe
from guide import __main__ as command
from guide import advice, choose, killed, measure, page, results, settings, training
from guide.tasks import TASKS, Wanted, cases_of, lines_of, task_named
from tests.helpers import CLEAN

FLIGHTS = task_named("flights")
MACHINE = "a processor, 2 cores, 8 GiB"
RESULT = {"digest": "d1", "rows": 2, "sums": [10, 20]}


def made(system, size, workers=2, seconds=1.0, launch=0, **more):
    """A run as it could have been; the rows are those of the size."""
    rows = {"0.1x": 33_000, "1x": 330_000, "10x": 3_300_000}[size]
    plain = dict(
        commit="abc",
        machine=MACHINE,
        code="code",
        time=1000.0 + launch,
        status="ok",
        start_seconds=seconds / 4,
        first_seconds=seconds,
        work_seconds=(seconds / 2, seconds / 2),
        peak_mb=100.0 * seconds,
        result=RESULT,
        command="python program.py",
    )
    return results.Run("flights", system, size, workers, launch, rows, **{**plain, **more})


def grid():
    """pandas begins at once and is slow; spark begins late and is fast: they cross between 330,000 and 3,300,000."""
    found = []
    for launch in (0, 1):
        for size, rows in (("0.1x", 33_000), ("1x", 330_000), ("10x", 3_300_000)):
            found.append(made("pandas", size, 1, 0.5 + rows / 100_000, launch))
            found.append(made("polars", size, 2, 0.4 + rows / 10_000_000, launch))
            found.append(made("dask", size, 1, 3 + rows / 50_000, launch))
            found.append(made("dask", size, 2, 3.5 + rows / 90_000, launch))
            found.append(made("spark", size, 2, 12 + launch + rows / 1_000_000, launch))
    return found


# ---- equal results


def test_a_result_that_was_altered_is_found_and_the_others_are_right():
    good = [made(system, "1x") for system in ("pandas", "duckdb", "dask")]
    assert results.unequal(FLIGHTS, good) == {}
    altered = made("spark", "1x", result={**RESULT, "digest": "d2", "sums": [10, 21]})
    found = results.unequal(FLIGHTS, [*good, altered])
    assert found == {altered.id: "not the result of pandas: digest is d1 and d2"}


def test_where_no_result_has_most_systems_all_are_in_doubt():
    one, other = made("pandas", "1x"), made("dask", "1x", result={**RESULT, "digest": "d2"})
    assert set(results.unequal(FLIGHTS, [one, other])) == {one.id, other.id}


def test_one_digit_of_a_table_changes_its_summary():
    table = [["AA", "JFK", 3, 2.0], ["B6", "LGA", 5, 1.0]]
    first = results.summary({"table": table})
    assert (first["rows"], first["sums"]) == (2, [8, 3])
    assert results.summary({"table": [["AA", "JFK", 3, 2], ["B6", "LGA", 5, 1]]}) == first
    assert results.summary({"table": [["AA", "JFK", 4, 2], ["B6", "LGA", 4, 1]]})["digest"] != first["digest"]


def test_numbers_are_equal_within_the_task_s_tolerance_and_never_when_they_are_not_numbers():
    task = replace(FLIGHTS, tolerance={"auc": 0.01})
    assert results.difference(task, {"auc": 0.700}, {"auc": 0.705}) == ""
    assert "at most 0.01 apart" in results.difference(task, {"auc": 0.70}, {"auc": 0.72})
    assert results.difference(task, {"auc": float("nan")}, {"auc": float("nan")}) == "auc is nan and nan"
    assert "one has auc, the other digest" in results.difference(task, {"auc": 0.7}, {"digest": "d"})


# ---- the cache


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A guide whose programs are not started: `bench.started` lists them, `bench.outcome` is what each of them is."""
    state = SimpleNamespace(started=[], outcome=lambda case: {}, root=tmp_path)

    def run(case, place, data, stage):
        state.started.append(case.name)
        lock = measure.lock_of(case.system.environment)
        facts = dict(commit=place.commit, machine=place.machine, code=results.code_of(case, lock), launch=case.launch)
        return made(case.system.name, case.size.name, case.workers, **{**facts, **state.outcome(case)})

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(measure, "data_of", lambda *words: (tmp_path, 1))
    monkeypatch.setattr(command.provenance, "commit_of", lambda: "abc")
    monkeypatch.setattr(pages, "plot", lambda *words, **more: "")  # a second each; the tests of the page draw them
    words = ["smoke", "tasks=flights", "systems=pandas,duckdb", "sizes=1x", "workers=1", f"output_root={tmp_path}"]
    state.make = lambda *more: command.make([*words, *more])
    state.path = tmp_path / "guide/results.jsonl"
    return state


def test_what_is_measured_is_not_measured_again(bench):
    written, problems = bench.make()
    assert problems == [] and written.exists()
    assert bench.started == ["flights 1x, pandas, 1 workers", "flights 1x, duckdb, 1 workers"]
    bench.make()
    assert len(bench.started) == 2
    bench.make("fresh=true")
    assert len(bench.started) == 4


def test_a_guide_that_was_cut_off_goes_on(bench):
    def cut(case):
        if case.system.name == "duckdb":
            raise KeyboardInterrupt
        return {}

    bench.outcome = cut
    with pytest.raises(KeyboardInterrupt):
        bench.make()
    bench.outcome, bench.started[:] = lambda case: {}, []
    bench.path.write_text(bench.path.read_text() + '{"task": "flights", "sys')  # killed while it wrote
    bench.make()
    assert bench.started == ["flights 1x, duckdb, 1 workers"]
    assert [run.system for run in results.read(bench.path)] == ["pandas", "duckdb"]


def test_two_guides_do_not_work_in_one_folder(bench):
    (bench.root / "guide").mkdir()
    with FileLock(bench.root / "guide/.lock"), pytest.raises(UserError, match="another make guide is at work"):
        bench.make()
    assert bench.started == []


def test_another_commit_or_program_is_measured_again(bench, monkeypatch):
    bench.make()
    monkeypatch.setattr(command.provenance, "commit_of", lambda: "def")
    bench.make()
    assert len(bench.started) == 4
    monkeypatch.setattr(results, "code_of", lambda case, lock: "other")
    bench.make()
    assert len(bench.started) == 6


def test_a_failed_run_is_a_problem_and_is_made_again(bench):
    bench.outcome = lambda case: {"status": "failed", "reason": "no memory"} if case.system.name == "pandas" else {}
    written, problems = bench.make()
    assert problems == ["flights 1x, pandas, 1 workers: no memory"]
    assert "no memory" in written.read_text()
    bench.outcome, bench.started[:] = lambda case: {}, []
    assert bench.make()[1] == []
    assert bench.started == ["flights 1x, pandas, 1 workers"]


def test_a_wrong_result_ends_the_guide_in_red_and_is_no_advice(bench):
    def outcome(case):
        return {"result": {**RESULT, "digest": "d2"}} if case.system.name == "pandas" else {}

    bench.outcome = outcome
    words = ["smoke", "tasks=flights", "systems=pandas,duckdb,polars", "sizes=1x", "workers=1"]
    _, problems = command.make([*words, f"output_root={bench.root}"])
    assert problems == ["flights 1x, pandas, 1 workers: not the result of polars: digest is d1 and d2"]
    (wrong,) = [run for run in results.newest(results.read(bench.path), here()) if run.status != "ok"]
    assert (wrong.system, wrong.status) == ("pandas", "wrong")
    assert all(run.system != "pandas" for run in advice.Measured(FLIGHTS, [wrong]).good)


def here():
    """The class of this machine."""
    return command.provenance.machine_class(command.pages.machine())


def test_results_of_two_guides_are_compared_with_each_other(bench):
    words = ["smoke", "tasks=flights", "sizes=1x", "workers=1", f"output_root={bench.root}"]
    command.make([*words, "systems=polars,duckdb"])
    bench.outcome = lambda case: {"result": {**RESULT, "digest": "d2"}}
    _, problems = command.make([*words, "systems=pandas"])
    assert problems == ["flights 1x, pandas, 1 workers: not the result of polars: digest is d1 and d2"]
    assert command.make(["page", f"output_root={bench.root}"])[1] == problems
    bench.outcome = lambda case: {"data": "other data", "result": {**RESULT, "digest": "d2"}}
    assert command.make([*words, "systems=pandas"])[1] == []


def test_a_broken_line_in_the_middle_is_no_result(tmp_path):
    path = tmp_path / "results.jsonl"
    results.append(path, made("pandas", "1x"))
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(SystemExit, match="line 1 is no result"):
        results.read(path)


def test_the_newest_run_of_this_machine_counts():
    old, new = made("pandas", "1x", time=1.0), made("pandas", "1x", time=2.0)
    other = made("pandas", "1x", time=3.0, machine="another")
    assert results.newest([new, old, other], MACHINE) == [new]


# ---- what a program told


def told(*events):
    return measure.with_figures(FLIGHTS, made("pandas", "1x", time=100.0, status="failed"), list(events), 50.0, "")


def test_figures_come_from_what_the_program_told():
    result = {"event": "result", "seconds": 2.0, "result": {"table": [["a", 1]]}}
    run = told({"event": "ready", "time": 101.5}, {**result, "time": 104.0}, {**result, "time": 106.0})
    assert (run.status, run.start_seconds, run.first_seconds, run.work_seconds) == ("ok", 1.5, 4.0, (2.0,))


def test_a_program_that_told_too_little_or_two_results_has_failed():
    ready = {"event": "ready", "time": 101.0}
    one = {"event": "result", "time": 102.0, "seconds": 1.0, "result": {"table": [["a", 1]]}}
    assert "gave 1 results" in told(ready, one).reason
    run = told(ready, one, {**one, "result": {"table": [["a", 2]]}})
    assert run.status == "failed" and "gave another result" in run.reason


# ---- break-even


def test_the_line_goes_through_its_points():
    line = advice.fit([(100, 3.0), (1000, 12.0), (10_000, 102.0)])
    assert (line.fixed, line.per_row) == (pytest.approx(2.0), pytest.approx(0.01))
    assert advice.held_out_errors([(100, 3.0), (1000, 12.0), (10_000, 102.0)]) == [pytest.approx(0.0, abs=1e-9)]
    (error,) = advice.held_out_errors([(100, 3.0), (1000, 24.0), (10_000, 102.0)])
    assert error == pytest.approx(-0.5)


def test_where_two_ways_cross_is_measured_or_extrapolated_and_called_so():
    measured = advice.Measured(FLIGHTS, grid())
    between = measured.break_even(("pandas", 1), ("spark", 2))
    assert between.kind == "measured" and 330_000 < between.rows < 3_300_000
    # 0.5 + r / 1e5 = 12.5 + r / 1e6
    assert between.rows == pytest.approx(12 / (1e-5 - 1e-6), rel=0.01)
    low, high = between.spread
    assert low == pytest.approx(11.5 / 9e-6, rel=0.01) and high == pytest.approx(12.5 / 9e-6, rel=0.01)
    small = advice.Measured(FLIGHTS, [run for run in grid() if run.size != "10x"])
    beyond = small.break_even(("pandas", 1), ("spark", 2))
    assert beyond.kind == "extrapolated" and "(extrapolated)" in beyond.text and beyond.rows > 330_000
    never = measured.break_even(("polars", 2), ("spark", 2))
    assert never.kind == "never" and never.rows is None
    always = measured.break_even(("spark", 2), ("polars", 2))
    assert always.kind == "always" and "from 33,000 flights on" in always.text


def test_a_second_worker_pays_from_a_size_on():
    evens = advice.Measured(FLIGHTS, grid()).break_evens()
    (second,) = [one for one in evens if (one.before, one.after) == ("dask, 1 worker", "dask, 2 workers")]
    assert second.kind == "measured" and second.rows == pytest.approx(0.5 / (1 / 50_000 - 1 / 90_000), rel=0.02)


# ---- the page


def sentences(text):
    return re.findall(r'<p class="advice( none)?">(.*?)</p>', text, re.DOTALL)


@pytest.fixture(scope="module")
def whole_page():
    return page.text_of(grid(), "abc", MACHINE, [], 2000.0)


def test_each_sentence_of_advice_links_to_two_runs_that_are_there_or_says_so(whole_page):
    text = whole_page
    found = sentences(text)
    assert len(found) > 10
    ids = set(re.findall(r'<tr id="(run-\w+)"', text))
    assert len(ids) == len(grid())
    measured = 0
    for none, said in found:
        links = re.findall(r'href="#(run-\w+)"', said)
        if none:
            assert said == "not measured here"
            continue
        measured += 1
        assert len(set(links)) >= 2 and set(links) <= ids
    assert measured > 5
    assert 'src="http' not in text and "<script" not in text


def test_the_page_of_one_run_or_none_gives_no_advice(monkeypatch):
    monkeypatch.setattr(pages, "plot", lambda *words, **more: "")
    for runs in ([], grid()[:1]):
        found = sentences(page.text_of(runs, "abc", MACHINE, ["a problem"], 2000.0))
        assert found and {said for _, said in found} == {"not measured here"}


def test_the_table_has_a_row_for_each_way_and_size(whole_page):
    text = whole_page
    assert len(re.findall(r'<td class="num">330,000</td><td>\w+</td>', text)) == 5
    assert "polars, 2 workers: 0.73 s" in text.partition("size: 3,300,000 flights")[2].partition("</tr>")[0]


def trained(system, workers, rate, value=0.9, task="one"):
    plain = dict(size="digits, 512 rows", folder=f"/out/{system}/{workers}", task=task, objective="eval/accuracy")
    return training.Training(
        system=system,
        workers=workers,
        rate=rate,
        value=value,
        launch_seconds=1.0,
        run_seconds=1000 / rate,
        peak_mb=None,
        **plain,
    )


def test_recipes_that_did_the_same_task_are_compared_and_others_are_not():
    runs = [trained("pytorch single", 1, 100.0), trained("pytorch ddp", 1, 95.0), trained("pytorch ddp", 2, 180.0)]
    other = trained("horovod torch", 2, 900.0, task="another")
    (group,) = training.groups_of([*runs, other])
    said = [sentence.text for sentence in training.advice_of(group)]
    assert said[0] == "pytorch ddp, 2 workers: 180.0 samples/s; next pytorch single, 1 workers: 100.0 samples/s"
    assert said[-1] == "pytorch ddp: 2 workers are 1.89 times as fast as one"
    text = page.text_of([], "abc", MACHINE, [], 2000.0, [*runs, other])
    assert 'id="' + runs[2].id in text and "900" not in text


def test_trainings_with_other_results_give_no_advice():
    group = [trained("pytorch ddp", 2, 100.0), trained("horovod torch", 2, 200.0, value=0.7)]
    assert [sentence.text for sentence in training.advice_of(group)] == ["not measured here"]


def chaos_json(root, recipe, number, **changes):
    folder = root / "chaos" / recipe / str(number)
    folder.mkdir(parents=True)
    content = dict(recipe=recipe, place="local", overrides=["scale=smoke"], names=["kill"], seed=None, recovered=True)
    content |= dict(
        machine=MACHINE + ", Linux 6.1, Python 3.11.7", undisturbed_seconds=10.0, seconds=16.0, steps_lost=4
    )
    content |= dict(folder=str(folder), time=float(number)) | changes
    (folder / "chaos.json").write_text(json.dumps(content))


def test_what_a_killed_worker_costs_is_read_from_the_newest_runs_of_this_machine(tmp_path):
    chaos_json(tmp_path, "pytorch", 1)
    chaos_json(tmp_path, "pytorch", 2, seconds=12.5)
    chaos_json(tmp_path, "spark", 3, steps_lost=None)
    chaos_json(tmp_path, "spark", 4, recovered=False)
    chaos_json(tmp_path, "horovod", 5, names=["kill", "stop"])
    chaos_json(tmp_path, "horovod", 6, machine="another, 8 cores, Linux 6.1, Python 3.11.7")
    chaos_json(tmp_path, "horovod", 7, seed=3)
    found = killed.read(tmp_path, MACHINE)
    assert [(one.recipe, one.goodput, one.steps_lost) for one in found] == [("pytorch", 0.8, 4), ("spark", 0.625, None)]
    text = page.text_of([], "abc", MACHINE, [], 2000.0, [], found, tmp_path / "guide")
    assert 'href="../chaos/pytorch/2/report.html"' in text
    assert "0.62</td>" in text and "horovod</td>" not in text
    assert killed.read(tmp_path / "none", MACHINE) == []


def test_a_busy_machine_is_named_on_the_page_and_in_the_choice(monkeypatch):
    monkeypatch.setattr(pages, "plot", lambda *words, **more: "")
    idle = [replace(run, busy=5.0) for run in grid()]
    assert "busy machine" not in page.text_of(idle, "abc", MACHINE, [], 2000.0)
    assert "while it was busy" not in str(choose.choose(ANSWERS, choose.Known(idle)))
    busy = [replace(idle[0], busy=90.0), *idle[1:]]
    assert f"before 1 of the {len(busy)} runs" in page.text_of(busy, "abc", MACHINE, [], 2000.0)
    assert "while it was busy" in str(choose.choose(ANSWERS, choose.Known(busy)))


# ---- the cases


def test_all_programs_are_there_and_say_what_is_distributed():
    for task in TASKS:
        for system in task.systems:
            assert system.path.exists(), system.path
            code, distributed = lines_of(system.path)
            assert 10 < code < 120, system.program
            assert (distributed > 0) >= system.distributed or system.name == "petastorm", system.program
    assert lines_of(FLIGHTS.system("pandas").path)[1] == 0


def test_cases_go_by_turns_and_pandas_has_one_worker():
    wanted = Wanted((FLIGHTS,), ("pandas", "dask"), ("0.1x", "1x"), (1, 2), 2, 1)
    found = [(case.launch, case.size.name, case.system.name, case.workers) for case in cases_of(wanted)]
    one = [("0.1x", "pandas", 1), ("0.1x", "dask", 2), ("1x", "pandas", 1), ("1x", "dask", 1), ("1x", "dask", 2)]
    assert found == [(launch, *case) for launch in (0, 1) for case in one]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=flight"], "tasks=flight does not exist; did you mean flights?"),
        (["systems=pola"], "did you mean polars?"),
        (["size=1x"], "setting=size does not exist; did you mean sizes?"),
        (["launches=0"], "launches=0: expected a whole number, 1 or more"),
        (["workers=1,4"], "workers=4 does not exist. There are: 1, 2"),
        (["smok"], "smok: expected key=value"),
        (["tasks=flights", "tasks=logs"], "tasks is given twice"),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_nearest_name(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        settings.wanted_of(words)


# ---- choose

ANSWERS = {"task": "tables", "rows": "3e6", "machines": "one", "framework": "pandas", "team": "alone"}


def test_choose_answers_with_a_recipe_a_command_and_figures_of_this_machine():
    found = choose.choose(ANSWERS, choose.Known(grid()))
    assert (found.recipe, found.command) == ("dask", "make recipe-dask")
    text = str(found)
    assert "dask: about 36.83 s to the first result (between measured sizes" in text
    assert found.reasons[0].startswith(
        "you may need no cluster for this; one machine holds the data: polars: about 0.7 s"
    )
    several = choose.choose({**ANSWERS, "machines": "several"}, choose.Known(grid()))
    assert several.command == 'make recipe-dask ARGS="cluster=hosts cluster.inventory=hosts.yaml"'
    assert several.otherwise[0].startswith("one machine holds the data: polars: about 0.7 s")
    assert "slower here: pandas" not in text or "pandas: about 30.5 s" in text
    beyond = choose.choose({**ANSWERS, "rows": "1e9"}, choose.Known(grid()))
    assert "extrapolated" in str(beyond)


def test_choose_without_figures_says_so():
    found = choose.choose(ANSWERS, choose.Known())
    assert "not measured here" in found.reasons[0]
    images = choose.choose({**ANSWERS, "task": "images", "framework": "tensorflow"}, choose.Known())
    assert images.recipe == "tensorflow" and "not measured here" in images.reasons[0]


def test_choose_reports_the_last_good_run_of_a_recipe():
    run = {
        "recipe": "pytorch",
        "status": "ok",
        "world_size": 2,
        "folder": "outputs/pytorch/1",
        "seconds": {"run": 12.5},
    }
    run |= {"metrics": {"samples_per_second": 660.0}, "objective": {"name": "eval/accuracy", "value": 0.97}}
    bad = {**run, "status": "failed", "folder": "outputs/pytorch/2"}
    found = choose.choose({**ANSWERS, "task": "images", "framework": "any"}, choose.Known((), [run, bad]))
    assert found.reasons == (
        "its last run here: 2 workers, 12.5 s, eval/accuracy 0.97, 660.0 samples/s (outputs/pytorch/1)",
    )


@pytest.mark.parametrize("task", choose.QUESTIONS["task"][1])
@pytest.mark.parametrize("framework", choose.QUESTIONS["framework"][1])
@pytest.mark.parametrize("machines", choose.QUESTIONS["machines"][1])
def test_every_answer_leads_to_a_command_that_is_not_refused(task, framework, machines):
    found = choose.choose({**ANSWERS, "task": task, "framework": framework, "machines": machines}, choose.Known())
    assert found.otherwise
    assert is_taken(found.recipe, tuple(found.command.partition('ARGS="')[2].rstrip('"').split()))


@cache
def is_taken(recipe, words):
    """Whether the driver takes these settings, and the system works in that place. Raises UserError otherwise."""
    config, _ = compose_recipe(recipe, words)
    cluster, system = config["cluster"], systems.load(config["recipe"]["driver"]["system"])
    hosts = [{"name": "a", "address": "10.0.0.1", "slots": 1, "gpus": 0}]
    config["cluster"] = cluster | ({"hosts": hosts, "num_workers": 1} if cluster["kind"] == "hosts" else {})
    if cluster["kind"] != "local":  # which looks at this machine
        places.load(cluster["kind"]).check(config, system)
    return True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task=tabels", "task=tabels does not exist; did you mean tables?"),
        ("framework=pytorh", "did you mean pytorch?"),
        ("rows=many", "rows=many: expected a number of rows"),
        ("rows=-5", "rows=-5: expected a number of rows"),
        ("team=alone", "not answered: task, rows, machines, framework"),
        ("colour=red", "setting=colour does not exist"),
    ],
)
def test_choose_refuses_what_it_does_not_know(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        choose.main(words.split())


def test_choose_asks_what_is_not_given_and_asks_again_for_an_unknown_answer(monkeypatch, capsys):
    typed = iter(["tabels", "tables", "one", "pandas", "alone"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert choose.asked({"rows": "3e6"}) == {**ANSWERS}
    assert "task=tabels does not exist; did you mean tables?" in capsys.readouterr().out


# ---- for real


@pytest.mark.full
@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_tiny_guide_gives_the_same_result_in_all_systems(task, tmp_path):
    words = [f"tasks={task}", "sizes=tiny", "launches=1", "repeats=1", f"output_root={tmp_path}"]
    argv = [sys.executable, "-m", "guide", *words]
    done = subprocess.run(argv, cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = results.read(tmp_path / "guide/results.jsonl")
    assert {run.system for run in runs} == {system.name for system in task_named(task).systems}
    assert {run.status for run in runs} == {"ok"}
    assert task_named(task).tolerance or len({json.dumps(run.result) for run in runs}) == 1
    assert all(run.start_seconds < run.first_seconds and run.peak_mb > 20 for run in runs)
    assert "Which tool for my job" in (tmp_path / "guide/index.html").read_text()
