"""The workflows run here, as an unprivileged user `runner` with sudo and an empty home; and other users' habits:
umask, a read-only home, odd paths."""

import json
import os
import shutil
import subprocess

import pytest

from cookbook import bootstrap
from tests.helpers import ROOT, recipes
from tests.requirements import needs
from tests.workflow_runner import Expression, Machine, Run, Unreadable, filled, read

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MISSING = [name for name in ("sudo", "unshare", "setpriv") if not shutil.which(name)] + (
    [] if os.getuid() == 0 else ["root"]
)
needs_runner = needs("runner", MISSING)
RECIPE = "petastorm"  # the quickest environment


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_can_be_read(path):
    assert len(WORKFLOWS) >= 2
    assert read(path)["jobs"]


SMALL = """
on: [push]
jobs:
  first:
    runs-on: ubuntu-24.04
    outputs:
      found: ${{ steps.list.outputs.found }}
    env:
      GREETING: hello ${{ github.ref }}
    steps:
      - run: |
          test "$(id -un)" = runner && test "$(sudo id -u)" = 0 && test ! -r /root && test -z "$(ls -A ~)"
          test "$GREETING" = "hello refs/heads/main"
      - id: list
        run: echo 'found=["a","b"]' >> "$GITHUB_OUTPUT"
  second:
    needs: first
    runs-on: ubuntu-24.04
    strategy:
      matrix:
        one: ${{ fromJSON(needs.first.outputs.found) }}
    steps:
      - {name: good, run: "test ${{ matrix.one }} = a"}
      - {name: not reached, run: "true"}
      - {name: in any case, if: always(), run: sleep 300 & }
      - {name: in any case, if: always(), run: "test ${{ matrix.one }} = a"}
"""


@needs_runner
def test_steps_run_as_runner_and_a_failed_one_makes_its_job_red(tmp_path):
    (tmp_path / "small.yml").write_text(SMALL)
    with Machine() as machine, (tmp_path / "log").open("w+") as log:
        run = Run(tmp_path / "small.yml", machine, log=log)
        machine.workspace.mkdir()
        first = run.job("first")
        assert first.ok, (tmp_path / "log").read_text()
        run.names["needs"] = {"first": {"outputs": first.outputs}}
        assert run.matrix("second") == [{"one": "a"}, {"one": "b"}]
        assert run.job("second", {"one": "a"}).ok
        red = run.job("second", {"one": "b"})
    assert (red.ok, red.steps) == (
        False,
        {"good": "failed", "not reached": "skipped", "in any case": "ok", "in any case (2)": "failed"},
    )
    assert not machine.top.exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${{ matrix.a }}", [1]),
        ("x-${{ runner.os }}-${{ 'it''s' }}", "x-Linux-it's"),
        ("${{ always() && needs.j.result == 'success' && vars.NO == 'true' }}", False),
        ("${{ !(failure()) || false }}", True),
        ("${{ fromJSON('[1, 2]') }}", [1, 2]),
    ],
)
def test_expressions(text, value):
    names = {"matrix": {"a": [1]}, "runner": {"os": "Linux"}, "needs": {"j": {"result": "success"}}, "vars": {}}
    functions = {"always": lambda: True, "failure": lambda: False, "fromJSON": json.loads}
    assert filled(text, names, functions) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("matrix.b", "matrix.b"),
        ("toJSON(1)", "toJSON"),
        ("'a", "no meaning"),
        ("1 2", "goes on"),
        ("(1", "lacks"),
        ("1 ==", "too early"),
    ],
)
def test_an_expression_that_is_not_known_is_an_error(text, said):
    with pytest.raises(Unreadable, match=said):
        Expression(text, {"matrix": {}}, {}).value()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("runs-on", "walks-on"), "walks-on"),
        (('run: "true"', "uses: some/action@" + "0" * 40), "some/action"),
        (('run: "true"', "uses: actions/checkout@v4"), "not pinned"),
        (('run: "true"', "run: 'true', shell: pwsh"), "pwsh"),
    ],
)
def test_a_workflow_that_cannot_be_read_fails(tmp_path, change, said):
    (tmp_path / "bad.yml").write_text(SMALL.replace(*change))
    with pytest.raises(Unreadable, match=said):
        read(tmp_path / "bad.yml")


@pytest.mark.full
@needs_runner
def test_the_quick_job_runs_to_its_end(tmp_path):
    """With one whole run among the tests: the suite itself runs elsewhere, how the job calls it is what is shown.

    CI_TESTS='' runs all.
    """
    chosen = os.environ.get("CI_TESTS", f"-k 'a_run_proves and {RECIPE}'")
    with Machine() as machine, (tmp_path / "log").open("w+") as log:
        job = Run(ROOT / ".github/workflows/ci.yml", machine, environment={"ARGS": chosen}, log=log).job("test")
        text = (tmp_path / "log").read_text()
        assert job.ok, text[-6000:]
        assert set(job.steps.values()) == {"ok"}
        assert " passed" in text and " failed" not in text
        find = ["find", machine.workspace, machine.home, "-not", "-uid", str(machine.uid)]
        owners = subprocess.run(find, capture_output=True, text=True)
        assert owners.stdout == "", "the job leaves nothing that the next one could not remove"


@pytest.mark.full
@needs_runner
def test_a_night_is_green_a_broken_recipe_is_red_and_the_page_has_both(tmp_path):
    with Machine() as machine, (tmp_path / "log").open("w+") as log:
        run = Run(ROOT / ".github/workflows/nightly.yml", machine, log=log)
        steps = run.workflow["jobs"]["recipe"]["steps"]
        # The canary downloads what is newest: see test_canary.py. The benchmark and the faults take minutes:
        # what they would do is shown.
        steps[:] = [step for step in steps if step.get("name") != "canary"]
        for name, command in (("benchmark", "make bench "), ("chaos", "make chaos ")):
            step = next(step for step in steps if step.get("name") == name)
            assert command in step["run"]
            step["run"] = step["run"].replace("make", "make --dry-run")
        assert run.job("found").ok, (tmp_path / "log").read_text()[-6000:]
        run.names["needs"] = {"found": {"outputs": run.done["found"].outputs}}
        assert [one["recipe"] for one in run.matrix("recipe")] == recipes()
        assert f"{RECIPE}" in [one["area"] for one in run.matrix("area")]
        assert run.job("recipe", {"recipe": RECIPE}).ok, (tmp_path / "log").read_text()[-6000:]
        assert f"-m benchmarks.{RECIPE}" in (tmp_path / "log").read_text()
        assert f'-m cookbook.tools.chaos "{RECIPE}" "--faults=each"' in (tmp_path / "log").read_text()
        assert run.job("health").ok, (tmp_path / "log").read_text()[-6000:]
        # The next night.
        run.names["github"]["run_id"] = "2"
        shutil.rmtree(machine.artifacts)
        break_after_checkout(machine)
        red = run.job("recipe", {"recipe": RECIPE})
        assert not red.ok and red.steps['make nightly-record "RECIPE=$RECIPE" "HISTORY=$HISTORY"'] == "failed"
        assert red.steps["benchmark"] == "skipped"
        assert run.job("health").ok, (tmp_path / "log").read_text()[-6000:]
        lines = [json.loads(line) for line in (machine.artifacts / "health/history.jsonl").read_text().splitlines()]
        assert [line["status"] for line in lines if line["kind"] == "run"] == ["ok", "failed"]
        assert f'data-recipe="{RECIPE}" data-state="failed"' in (machine.artifacts / "health/index.html").read_text()
        assert run.job("publish") is None, "nobody has asked for it"


def break_after_checkout(machine):
    """The next checkout has a recipe whose program cannot be parsed."""
    checkout = machine.checkout

    def broken(depth=1):
        checkout(depth)
        (machine.workspace / f"recipes/{RECIPE}/main.py").write_text("this is no program\n")

    machine.checkout = broken


@pytest.mark.full
@needs_runner
def test_another_user_a_path_with_a_blank_and_an_umlaut_a_read_only_home(tmp_path):
    """A recipe of each launcher, all on one machine: what an environment needs twice is unpacked once."""
    with (
        Machine("my wörk/the cookbook", read_only_home=True, umask="077") as machine,
        (tmp_path / "log").open("w+") as log,
    ):
        machine.checkout()
        cache, out = machine.top / "cache", machine.workspace / "outputs"
        # What takes minutes to compile is there, as a company's image has it.
        shutil.copytree(bootstrap.cache_dir() / "wheels", cache / "wheels")
        subprocess.run(["chown", "-R", f"{machine.uid}:{machine.uid}", cache], check=True)
        environment = {"COOKBOOK_CACHE": str(cache), "UV_CACHE_DIR": str(cache / "uv"), "ARGS": "scale=smoke"}
        for recipe in (RECIPE, "horovod", "kubeflow", "ray_tune", "ray_rllib"):
            status = machine.run(["make", f"recipe-{recipe}"], environment, log, 600)
            assert status == 0, (recipe, (tmp_path / "log").read_text()[-6000:])
            content = json.loads((out / recipe / "latest/run.json").read_text())
            assert content["status"] == "ok"
            # Tune may find one process enough on a busy machine.
            assert content["world_size"] == 2 or "one process did all the work" in content["warnings"][0]
        assert list(machine.home.iterdir()) == []
        find = ["find", out, "-perm", "/077", "-not", "-type", "l"]
        open_to_others = subprocess.run(find, capture_output=True, text=True)
        assert open_to_others.stdout == "", "umask 077 holds for all that a run writes"
