"""What the machine must have: found or named before any work, with one line that installs it; README, conda,
CI and doctor agree."""

import ast
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from cookbook import ROOT, UserError, recipes
from cookbook.prepare import doctor, install, remedies, tools

RECIPES = recipes()


def tool(name):
    return next(tool for tool in tools.TOOLS if tool.name == name)


def program(folder, name, text, status=0):
    """A program that prints a text on both of its outputs."""
    (folder / name).write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with no program at all, and an apt that knows Debian 12's packages; root without sudo."""
    for name in ("CXX", "JAVA_HOME", "CONDA_PREFIX", "YES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MORE_FOLDERS", [])
    monkeypatch.setattr(remedies, "is_root", lambda: True)
    monkeypatch.setattr(doctor, "is_made", lambda recipe: False)
    program(tmp_path, "apt-get", "")
    program(tmp_path, "apt-cache", "  Candidate: 3.11.2-1+b1")
    return tmp_path


def test_readme_names_what_doctor_wants_for_the_recipes():
    line = re.search(r"`apt-get install ([^`]+)`", (ROOT / "README.md").read_text())[1].split()
    named = [name for recipe in RECIPES for name in doctor.tools_of(recipe)]
    wanted, without = remedies.packages_of(tools.tools_for(named, [tools.EVERY_RECIPE, tools.MAKE_HELP]), "apt")
    assert sorted(line) == sorted(wanted) and without == []
    assert {"python3-dev", "g++", "make", "openjdk-17-jre-headless"} <= set(line)


def test_conda_names_what_doctor_wants():
    file = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = [tool for tool in tools.TOOLS if "conda" in tool.packages and tool.used_by != ("tests",)]
    assert sorted(set(file["dependencies"])) == sorted(remedies.packages_of(listed, "conda")[0])
    assert f"python={tools.PYTHON}" in file["dependencies"]
    assert f'requires-python = ">={tools.PYTHON}"' in (ROOT / "pyproject.toml").read_text()


def test_ci_has_no_list_of_its_own():
    text = (ROOT / ".ci/run").read_text()
    assert "YES=1 make tools USE=tests" in text
    assert set(re.findall(r"missing\+=\((\S+)\)", text)) == {"python3", "make"}


def test_doctor_and_the_environments_mean_the_same_python():
    assert tool("python").minimum == tools.PYTHON


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_s_tools_are_known_and_read_as_yaml_reads_them(recipe):
    driver = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())["driver"]
    assert doctor.tools_of(recipe) == driver["tools"]
    assert set(driver["tools"]) <= {tool.name for tool in tools.TOOLS}
    assert doctor.needs_of(recipe) == driver["needs"]
    assert driver["needs"]["disk_mb"] >= 500 and driver["needs"]["memory_mb"] >= 300


def test_one_line_installs_all_that_is_missing(machine):
    with pytest.raises(UserError) as error:
        doctor.require(["c++", "java"], "x")
    assert "\n  c++: missing" in str(error.value) and "\n  java: missing" in str(error.value)
    assert "\n  apt-get update && apt-get install -y g++ openjdk-17-jre-headless\n" in str(error.value)


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt", "sudo apt-get update && sudo apt-get install -y python3-dev g++ openjdk-17-jre-headless"),
        ("dnf", "sudo dnf install -y python3.11-devel gcc-c++ java-17-openjdk-headless"),
        ("brew", "brew install python@3.11 gcc openjdk@17"),
        ("conda", "conda install -y -c conda-forge python=3.11 cxx-compiler openjdk=17"),
    ],
)
def test_each_package_manager_has_its_line(machine, monkeypatch, manager, line):
    monkeypatch.setattr(remedies, "is_root", lambda: False)
    assert remedies.install_line([tool("headers"), tool("c++"), tool("java")], manager) == (line, [])


@pytest.mark.parametrize(
    ("known", "package"),
    [
        (["openjdk-17-jre-headless", "default-jre-headless"], "openjdk-17-jre-headless"),
        (["default-jre-headless"], "default-jre-headless"),  # Debian 13
        ([], "openjdk-17-jre-headless"),  # no list of packages was fetched yet
    ],
)
def test_a_release_without_that_java_has_its_own(machine, monkeypatch, known, package):
    monkeypatch.setattr(remedies, "_candidate", lambda name: "1" if name in known else "")
    line = f"apt-get update && apt-get install -y {package}"
    assert remedies.install_line([tool("java")], "apt") == (line, [])


def test_conda_is_taken_where_the_system_s_packages_are_out_of_reach(machine, monkeypatch):
    program(machine, "conda", "")
    assert remedies.manager() == "apt"
    monkeypatch.setattr(remedies, "is_root", lambda: False)
    assert remedies.manager() == "conda"


def test_only_another_python(machine, monkeypatch):
    for module in (doctor, remedies):
        monkeypatch.setattr(module, "PYTHON", "3.99")
    monkeypatch.setattr(remedies, "_release", lambda: "id=ubuntu")
    program(machine, "apt-cache", "  Candidate: (none)")
    found = doctor.examine(tool("python"))
    assert found.problem.startswith("Python 3.99 is missing (there is Python 3.")
    assert "PYTHON=" in found.problem
    # A release whose python3 is another one: the packages have the version in their names, where there are any.
    monkeypatch.setattr(remedies, "_candidate", lambda package: "3.12.3-0ubuntu2" if package == "python3" else "")
    line, _ = remedies.install_line([tool("python"), tool("venv")], "apt")
    assert "add-apt-repository -y ppa:deadsnakes/ppa" in line and line.endswith("python3.99 python3.99-venv")
    monkeypatch.setattr(remedies, "_release", lambda: "id=debian")
    assert remedies.install_line([tool("python"), tool("venv")], "apt") == ("", [tool("python")])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ('openjdk version "11.0.2"', "version 11.0.2 is too old, expected 17 or newer"),
        ('java version "1.8.0_392"', "version 1.8.0 is too old"),
        ('openjdk version "17.0.15" 2025-04-15', None),
        ('openjdk version "21" 2023-09-19', None),
        ("Unable to locate a Java Runtime", "does not tell its version: Unable to locate a Java Runtime"),
    ],
)
def test_java_s_version(machine, words, problem):
    program(machine, "java", words)
    found = doctor.examine(tool("java")).problem
    assert found is None if problem is None else problem in found


@pytest.mark.parametrize(("number", "good"), [("11.0.2", 0), ("17.0.15", 1), ("22.0.1", 1), ("23", 0), ("25.0.3", 0)])
def test_spark_3_5_takes_no_java_from_23_on(machine, number, good):
    program(machine, "java", f'openjdk version "{number}" 2026-04-21 LTS')
    problem = doctor.examine(tool("java 17-22")).problem
    assert (problem is None) == bool(good)
    if number.startswith("2") and not good:
        assert f"version {number} is too new, expected 17 to 22 (" in problem and "JAVA_HOME=" in problem
    assert doctor.examine(tool("java")).problem is None or number == "11.0.2"
    assert doctor.tools_of("petastorm") == ["java 17-22"]


def test_java_home_wins_over_path(machine, monkeypatch):
    program(machine, "java", 'openjdk version "17.0.1"')
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert doctor.examine(tool("java")).problem == "JAVA_HOME=/nowhere has no bin/java"


def test_a_compiler_must_link(machine, monkeypatch):
    program(machine, "g++", "cannot find crt1.o", status=1)
    assert "cannot make a small program" in doctor.examine(tool("c++")).problem
    monkeypatch.setenv("CXX", "clang++-99 -O2")
    assert doctor.examine(tool("c++")).problem == "CXX=clang++-99 -O2 is not there"


def test_headers_are_those_of_the_interpreter(machine, monkeypatch, tmp_path):
    program(tmp_path, "python3.11", tmp_path / "include")
    monkeypatch.setattr(doctor, "interpreter", lambda: str(tmp_path / "python3.11"))
    assert doctor.examine(tool("headers")).problem == f"{tmp_path}/include/Python.h is missing"
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    assert doctor.examine(tool("headers")).problem is None


def test_what_only_the_making_of_an_environment_needs_is_not_asked_for_later(machine):
    assert [finding.tool.name for finding in doctor.missing_for(["c++", "java"], (), made=True)] == ["java"]


def test_space_that_is_short_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "is_made", lambda recipe: False)
    monkeypatch.setattr(doctor, "free_disk_mb", lambda folder: 100)
    monkeypatch.setattr(doctor, "free_memory_mb", lambda: 64)
    short = doctor.lack_of_space(["horovod"])
    assert short["disk"].startswith("0.1 GB are free where ") and "COOKBOOK_CACHE=" in short["disk"]
    assert short["memory"].startswith("0.1 GB of memory are free") and "cluster.num_workers=1" in short["memory"]
    with pytest.raises(UserError, match=r"0\.1 GB are free"):
        install.before("dask", [])
    monkeypatch.setattr(doctor, "is_made", lambda recipe: True)
    assert set(doctor.lack_of_space(["horovod"])) == {"memory"}


def test_a_recipe_stops_with_the_line_where_nobody_can_be_asked(machine):
    with pytest.raises(
        UserError, match=r"(?s)recipe horovod needs what this machine lacks.*apt-get install -y .*g\+\+"
    ):
        install.before("horovod", [])
    with pytest.raises(UserError, match="ssh: missing"):
        install.before("dask", ["cluster=hosts"])


def test_nobody_is_asked_where_the_input_is_closed(monkeypatch):
    monkeypatch.delenv("YES", raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    assert install.agreed("Install it now?") is False


def test_yes_installs_and_goes_on(machine, monkeypatch):
    monkeypatch.setenv("YES", "1")
    missing, lines = ["c++"], []
    monkeypatch.setattr(doctor, "missing_for", lambda *_: [doctor.Finding(tool(name), None) for name in missing])

    def run(words, **_):
        lines.append(words[-1])
        missing.clear()
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(remedies, "manager", lambda: "dnf")
    install.before("horovod", [])
    assert lines == ["dnf install -y gcc-c++"]


def test_without_rights_it_says_who_can(machine, monkeypatch):
    monkeypatch.setattr(remedies, "is_root", lambda: False)
    with pytest.raises(UserError, match=r"(?s)no sudo.*\n  apt-get update && apt-get install -y g\+\+"):
        install.install([doctor.Finding(tool("c++"), None)])


def test_the_python_of_the_tools_is_that_of_the_environments():
    python = tool("python")
    assert python.minimum == doctor.PYTHON
    assert {python.packages[name] for name in ("dnf", "brew", "conda")} == {
        f"python{sign}{doctor.PYTHON}" for sign in ("", "@", "=")
    }


def test_doctor_lists_every_tool_and_needs_nothing_installed():
    words = [sys.executable, "-S", "-E", "-m", "cookbook.prepare.doctor"]  # -S: without site-packages
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    for each in tools.TOOLS:
        assert f" {each.name} " in done.stdout, done.stderr
    assert f"of {len(tools.TOOLS)} tools found" in done.stdout
    assert "disk" in done.stdout and "memory" in done.stdout


def test_doctor_s_status_says_whether_a_recipe_can_run(tmp_path):
    environment = {"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}
    words = [shutil.which("python3.11") and sys.executable, "-m", "cookbook.prepare.doctor", "spark"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "--  java " in done.stdout
    unknown = subprocess.run([*words[:-1], "sparc"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 1 and "RECIPE=sparc does not exist" in unknown.stderr


def test_what_runs_first_runs_with_any_python_from_3_8_on():
    """RHEL 9 has 3.9, Debian 11 too. What they import is found here, as they find it."""
    todo, done = [ROOT / "cookbook/bootstrap.py", ROOT / "cookbook/prepare/install.py"], set()
    while todo:
        path = todo.pop()
        done.add(path)
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        later = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        assert later or not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body), path
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cookbook"):
                base = ROOT.joinpath(*node.module.split("."))
                names = [base.with_suffix(".py"), base / "__init__.py", *(base / f"{n.name}.py" for n in node.names)]
                todo += [one for one in names if one.exists() and one not in done]
    assert {ROOT / f"cookbook/{name}.py" for name in ("programs", "redact", "machine", "prepare/tools")} <= done


def test_an_old_python_is_named_and_none_too(tmp_path):
    program(tmp_path, "old", "", status=1)
    for python, said in ((tmp_path / "old", str(tmp_path / "old")), ("/nowhere/python", "/nowhere/python")):
        for target in ("doctor", "tools", "tools-for-pytorch"):
            words = ["make", target, f"PYTHON={python}"]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 2 and f"error: there is no Python from 3.8 on ({said}); README.md" in done.stderr


def test_programs_that_may_not_run_where_temporary_files_are(machine, monkeypatch):
    program(machine, "g++", "g++ 12.2.0")
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert "is mounted noexec; set TMPDIR to another folder" in doctor.examine(tool("c++")).problem
