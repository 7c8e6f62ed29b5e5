"""What a canary asks of a requirements.in, and how it finds the upgrade that breaks a recipe; packages come from a
folder on this machine."""

import dataclasses
import json
import zipfile

import pytest

from cookbook.prepare import environments, locks
from cookbook.prepare.locks import resolve
from cookbook.tools import health, history
from cookbook.tools.canary import trials, versions
from cookbook.tools.canary.question import Proposal, Question
from tests.helpers import ROOT, copy_checkout

TEXT = """torch==2.13.0      # a GPU machine gets more
numpy<2.4
ray[data,train]==2.60.0
tf-keras==2.21.*
horovod==0.28.1   # not in the lock: build_wheels.py compiles it
pyarrow>=18
pytest
old<=1.5
near~=1.2
"""


def test_what_is_beyond_a_limit():
    assert versions.limits(TEXT) == {
        "torch": ">2.13.0",
        "numpy": ">=2.4",
        "ray": ">2.60.0",
        "tf-keras": ">=2.21,!=2.21.*",
        "old": ">1.5",
        "near": ">=1.2,!=1.*",
    }


@pytest.mark.parametrize("source", sorted(ROOT.glob("recipes/*/requirements*.in")), ids=lambda path: path.parent.name)
def test_each_limit_of_each_recipe_is_seen(source):
    lines = [line for line in source.read_text().splitlines() if "not in the lock" not in line]
    limited = [line.split("#")[0] for line in lines if any(sign in line.split("#")[0] for sign in ("==", "<", "~="))]
    assert len(versions.limits(source.read_text())) == len(limited)


def test_other_versions_keep_extras_and_the_rest():
    found = versions.with_versions(TEXT, {"ray": "2.61.0", "numpy": "2.4.1"}).splitlines()
    assert found[1:3] == ["numpy==2.4.1", "ray[data,train]==2.61.0"] and found[0] == TEXT.splitlines()[0]


def counted(breaks):
    calls = []

    def asked(names):
        calls.append(list(names))
        return breaks(set(names))

    return asked, calls


def test_one_of_many_upgrades_is_found_in_few_trials():
    names = [f"p{number}" for number in range(32)]
    for guilty in ("p0", "p17", "p31"):
        breaks, calls = counted(lambda chosen, guilty=guilty: guilty in chosen)
        assert versions.fewest_that_break(names, breaks) == [guilty]
        assert len(calls) <= 6


def test_two_upgrades_that_break_only_together_are_both_named():
    breaks, _ = counted(lambda chosen: {"p3", "p12"} <= chosen)
    assert sorted(versions.fewest_that_break([f"p{number}" for number in range(16)], breaks)) == ["p12", "p3"]


def test_packages_that_go_only_together_are_taken_together():
    def fits(names):
        return ("dask" in names) == ("distributed" in names) and "bad" not in names

    assert versions.most_that_fit(["bad", "dask", "distributed", "pandas"], fits) == (
        ["dask", "distributed", "pandas"],
        ["bad"],
    )


# ---- with packages in a folder


def wheel(folder, name, version, *requires):
    """A package that has nothing but its name, version and what it requires."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def question(tmp_path):
    """Makes a question over `apple` (free), `berry` (held below 2), `cherry` and `date`
    (pinned; both go only together)."""
    wheels, source = tmp_path / "wheels", tmp_path / "requirements.in"
    wheels.mkdir()
    for version in ("1.0", "1.1", "3.0"):
        wheel(wheels, "apple", version)
    for version in ("1.0", "1.5", "2.0", "2.1"):
        wheel(wheels, "berry", version)
    for version in ("1.0", "2.0"):
        wheel(wheels, "cherry", version, f"date=={version}")
        wheel(wheels, "date", version)
    source.write_text("apple\nberry<2\ncherry==1.0\ndate==1.0\n")
    words = ("--no-index", "--find-links", str(wheels))
    lock = "apple==1.0\nberry==1.0\ncherry==1.0\ndate==1.0\n"
    assert resolve(source, *words, lock=lock) == lock, "what is locked stays"

    def make(breaks, deadline=None):
        tried = []

        def trial(lock, text):
            if deadline is not None and len(tried) >= deadline:
                raise trials.OutOfTime
            tried.append(locks.pins(lock))
            return "it broke" if breaks(tried[-1]) else ""

        return Question(source, lock, words, trial), tried

    return make


def test_newer_versions_that_work(question):
    asked, tried = question(lambda pins: False)
    found = asked.newest()
    assert (found.status, found.upgrades) == ("works", {"apple": ("1.0", "3.0"), "berry": ("1.0", "1.5")})
    assert tried == [{"apple": "3.0", "berry": "1.5", "cherry": "1.0", "date": "1.0"}]


def test_the_one_that_breaks_is_named(question):
    asked, tried = question(lambda pins: pins["berry"] == "1.5")
    found = asked.newest()
    assert (found.status, found.culprits, found.reason) == ("breaks", ("berry",), "it broke")
    assert tried[-1] == {"apple": "1.0", "berry": "1.5", "cherry": "1.0", "date": "1.0"}, "alone: the others as locked"


def test_one_step_beyond_each_limit(question):
    asked, tried = question(lambda pins: False)
    found = asked.next_step()
    assert found.status == "works"
    assert found.upgrades == {"berry": ("1.0", "2.0"), "cherry": ("1.0", "2.0"), "date": ("1.0", "2.0")}
    assert tried == [{"apple": "1.0", "berry": "2.0", "cherry": "2.0", "date": "2.0"}]


def test_one_step_beyond_that_breaks(question):
    asked, _ = question(lambda pins: pins["berry"] == "2.0")
    assert (asked.next_step().status, asked.next_step().culprits) == ("breaks", ("berry",))


def test_out_of_time(question):
    asked, _ = question(lambda pins: True, deadline=0)
    assert asked.newest().status == "unfinished"
    asked, _ = question(lambda pins: pins["berry"] == "1.5", deadline=1)
    found = asked.newest()
    assert (found.status, found.culprits) == ("breaks", ()) and "time was over" in found.reason


def test_the_environment_of_a_trial_goes_with_it(tmp_path, monkeypatch):
    """One that another checkout has already stays."""
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    copy = copy_checkout(tmp_path / "copy")
    lock = copy / "recipes/petastorm/requirements.txt"
    for text, is_kept in ((lock.read_text(), True), (lock.read_text() + "berry==1.0\n", False)):
        lock.write_text(text)
        name = f"petastorm-{environments.fingerprint('petastorm', None, copy)[:12]}"
        folder = tmp_path / "cache/environments" / name
        with trials.environment_of(copy, "petastorm", None):
            folder.mkdir(parents=True)
        assert folder.exists() == is_kept


@pytest.mark.full
def test_a_recipe_is_tried_in_a_copy(tmp_path, monkeypatch):
    """The lock as it is, and one with a package that breaks the recipe: a version without what the program imports."""
    lock = ROOT / "recipes/petastorm/requirements.txt"
    before = lock.read_bytes()
    trial = trials.Trials("petastorm", None, deadline=float("inf"))
    assert trial(lock.read_text(), "as it is") == ""
    without = "\n".join(line for line in lock.read_text().splitlines() if not line.startswith("petastorm=="))
    assert "petastorm" in trial(without, "without petastorm")
    assert lock.read_bytes() == before
    # The page of the history shows it.
    proposal = Proposal("the newest", "breaks", {"berry": ("1.0", "1.5")}, ("berry",), "it broke")
    content = {"recipe": "petastorm", "time": 1.0, "machine": "m", "commit": "c"}
    path = tmp_path / "history.jsonl"
    history.append(path, "canary", content | {"proposals": [dataclasses.asdict(proposal)]})
    assert json.loads(path.read_text())["kind"] == "canary"
    text, _, problems = health.page(path, ["petastorm"], 2.0)
    assert problems == [] and "berry 1.0 → 1.5" in text
