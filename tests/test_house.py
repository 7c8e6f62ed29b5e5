"""The shape of the driver: imports go one way, and a new system or place is one file that nothing else names."""

import ast
import re
import subprocess
import sys

import pytest

from cookbook import ROOT, places, systems
from tests.helpers import CLEAN, copy_checkout, latest


def example(page, number=0):
    """A block of code of a page of the documentation."""
    return re.findall(r"^```(?:python|yaml)\n(.*?)^```$", (ROOT / f"docs/{page}.md").read_text(), re.M | re.S)[number]


def imports():
    """module -> the modules of cookbook/ that it imports, at its top or in a function."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in ROOT.glob("cookbook/**/*.py")}
    names = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    assert len(names) > 40
    found = {}
    for name, path in names.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                wanted |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = {other for other in wanted if other in names and other not in (name, "cookbook")}
    return found


def test_imports_go_one_way():
    """A module that can reach itself stands in a circle."""
    graph = imports()

    def reached(name):
        seen, waiting = set(), [name]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    circles = {name for name in graph if name in reached(name)}
    assert circles == set()
    folders = {name.split(".")[1] for name in graph if name.count(".") > 1 and "__main__" not in name}
    between = {
        (name.split(".")[1], other.split(".")[1])
        for name in graph
        for other in reached(name)
        if name.split(".")[1:2] != other.split(".")[1:2] and "." in name
    }
    assert {"evidence", "places", "prepare", "report", "settings", "systems", "tools"} <= folders
    assert {(one, other) for one, other in between if (other, one) in between} == set(), "folders stand in a circle"
    knows_no_places = [name for name in graph if name.startswith("cookbook.systems")]
    assert knows_no_places
    upward = {name: other for name in knows_no_places for other in reached(name) if other.startswith("cookbook.places")}
    assert upward == {}
    assert {name for name in graph if "cookbook.__main__" in graph[name]} == set()


def test_only_settings_and_the_command_line_know_hydra():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("**/*.py")
        if path.parts[len(ROOT.parts)] in ("cookbook", "recipes", "runrecord", "data")
        for line in path.read_text().splitlines()
        if line.startswith(("import hydra", "from hydra", "from omegaconf"))
    }
    package = {f"cookbook/settings/{name}.py" for name in ("__init__", "quoting")}
    assert users == {"cookbook/__main__.py", *package}


def test_each_system_names_the_places_that_can_start_it():
    for name in systems.names():
        system = systems.load(name)
        assert "local" in system.places()
        assert set(system.places()) <= set(places.names())
        for place in set(places.names()) - set(system.places()):
            assert f"cluster={place}: {name} starts no workers there" in str(system.refusal(place))


@pytest.mark.full
def test_a_new_system_and_a_new_place_are_one_file_each(tmp_path):
    copy = copy_checkout(tmp_path / "copy")
    (copy / "cookbook/systems/standalone.py").write_text(example("add-system"))
    (copy / "cookbook/places/polite.py").write_text(example("add-place"))
    (copy / "conf/cluster/polite.yaml").write_text(example("add-place", 1))
    words = [
        "recipe=pytorch",
        "cluster=polite",
        "recipe.driver.system=standalone",
        "scale=smoke",
        f"output_root={tmp_path}/out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cookbook", *words], cwd=copy, env=CLEAN, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content, _ = latest(tmp_path / "out", "pytorch")
    assert [worker["rank"] for worker in content["workers"]] == [0, 1]
    assert " --standalone " in content["workers_command"]
    assert content["workers_command"].count("nice -n 1 ") == 1
    assert 0 < content["metrics"]["eval/accuracy"] <= 1
