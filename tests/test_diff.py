"""The twins in one process: they know of no others, they train as main.py does, and make diff compares the two."""

import ast
import re
import subprocess

import pytest

from cookbook import ROOT, UserError
from cookbook.tools import diff
from cookbook.tools.eject import eject
from runrecord import read_records
from tests.helpers import CLEAN
from tests.test_tags import TAG, named

TWINS = sorted(path.parent.name for path in ROOT.glob("recipes/*/single.py"))
QUICK = "pytorch"  # the twin that runs in every suite
# What makes a program one of several. Petastorm only reads the store; tf.distribute is looked for below.
LIBRARIES = ("horovod", "ray", "torch.distributed", "torch.nn.parallel", "dask", "pyspark", "mpi4py")
# Hidden while a twin runs. PyTorch imports torch.distributed itself, and Petastorm PySpark.
HIDDEN = ["horovod", "ray", "dask", "mpi4py"]
HIDING = """
import runpy, sys
sys.modules.update(dict.fromkeys({hidden}))
sys.argv = {argv}
runpy.run_path("single.py", run_name="__main__")
"""


def test_there_are_twins():
    assert len(TWINS) >= 5
    assert diff.recipes_with_twin() == TWINS, "a twin stands beside a main.py"


def imports_of(path):
    """Dotted names that a program imports; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def with_own_modules(path, seen):
    """The program and the modules of its folder that it imports, and those that they import."""
    if path not in seen:
        seen.add(path)
        for name in imports_of(path):
            if (own := path.with_name(f"{name}.py")).exists():
                with_own_modules(own, seen)
    return seen


def libraries_of(path):
    """The libraries of LIBRARIES that the program imports, itself or through a module of its folder."""
    return {
        (file.name, name)
        for file in with_own_modules(path, set())
        for name in imports_of(file)
        for library in LIBRARIES
        if name == library or name.startswith(f"{library}.")
    }


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_nothing_distributed(name):
    path = ROOT / "recipes" / name / "single.py"
    text = path.read_text()
    assert TAG not in text
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert {named(call) for call in calls} == {None}
    assert libraries_of(path) == set()
    code = ast.unparse([node for node in ast.parse(text).body if not isinstance(node, ast.Expr)])
    assert "distribute" not in code


def test_the_distributed_programs_are_recognised():
    """What finds nothing in a twin finds something in main.py."""
    others = [name for name in TWINS if name != "tensorflow"]  # its strategies are a part of TensorFlow
    assert [name for name in others if not libraries_of(ROOT / "recipes" / name / "main.py")] == []


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.full) for name in TWINS]
)
def test_a_twin_reaches_the_loss_of_one_worker(name, undisturbed, recipe_python, tmp_path):
    """The same steps from the same seed, without the library: the sums of floats may come in another order.

    That is about 1e-7 a step. In the first epoch it must still be tiny; training then amplifies it, so at the end
    the losses agree to a few hundredths, as those of one worker and two do.
    """
    content, folder, _ = undisturbed(f"recipe={name}", "scale=smoke", "cluster.num_workers=1")
    words = ["single.py", str(folder / "config.yaml"), f"output_dir={tmp_path}", f"checkpoint_dir={tmp_path}"]
    done = subprocess.run(
        [recipe_python(name), "-c", HIDING.format(hidden=HIDDEN, argv=words)],
        cwd=ROOT / "recipes" / name,
        env={**CLEAN, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = read_records(tmp_path)
    assert "error" not in record[-1]
    mine = {event["step"]: event["value"] for event in record if event.get("name") == "train/loss"}
    theirs = dict(map(tuple, content["curves"]["train/loss"]))
    assert mine.keys() == theirs.keys()
    assert mine[min(mine)] == pytest.approx(theirs[min(theirs)], rel=1e-4)
    assert mine[max(mine)] == pytest.approx(theirs[max(theirs)], abs=0.05)
    assert record[-1]["samples"] == content["num_rows"]


@pytest.mark.parametrize("name", TWINS)
def test_an_ejected_copy_has_the_twin(name, tmp_path):
    copy = eject(name, tmp_path / "mine")
    assert (copy / "single.py").read_bytes() == (ROOT / "recipes" / name / "single.py").read_bytes()


def make_diff(*words):
    return subprocess.run(["make", "-s", "diff", *words], cwd=ROOT, env=CLEAN, capture_output=True, text=True)


def test_the_command_shows_the_difference():
    done = make_diff("RECIPE=horovod")
    assert done.returncode == 0, done.stderr
    summary, *lines = done.stdout.splitlines()
    numbers = re.fullmatch(
        r"horovod: single\.py has (\d+) lines, main\.py (\d+): (\d+) added or changed, (\d+) removed; "
        r"(\d+) of the (\d+) carry or stand below `# Distributed:`",
        summary,
    )
    single, main, added, removed, tagged, again = map(int, numbers.groups())
    folder = ROOT / "recipes/horovod"
    assert [single, main] == [len((folder / file).read_text().splitlines()) for file in ("single.py", "main.py")]
    assert lines[:2] == ["--- recipes/horovod/single.py", "+++ recipes/horovod/main.py"]
    assert added == again == sum(line.startswith("+") for line in lines[2:])
    assert removed == sum(line.startswith("-") for line in lines[2:])
    assert 0 < tagged < added
    assert sum(TAG in line for line in lines[2:] if line.startswith("+")) == (folder / "main.py").read_text().count(TAG)
    assert "+    hvd.init()" in lines
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"


@pytest.mark.parametrize("name", TWINS)
def test_the_hunks_stand_where_they_say(name):
    """Each hunk's lines are those of main.py, and its removed ones those of single.py."""
    folder, hunks = ROOT / "recipes" / name, diff.difference_of(name).text.split("\n@@ ")[1:]
    main, single = ((folder / file).read_text().splitlines() for file in ("main.py", "single.py"))
    assert hunks
    for hunk in hunks:
        place, *lines = hunk.split("\n")
        old, old_count, new, new_count = map(int, re.fullmatch(r"-(\d+),(\d+) \+(\d+),(\d+) @@", place).groups())
        assert [line[1:] for line in lines if line[0] in " +"] == main[new - 1 : new - 1 + new_count]
        left = [line[1:] for line in lines if line[0] in " -"]
        assert [line.strip() for line in left] == [line.strip() for line in single[old - 1 : old - 1 + old_count]]


@pytest.mark.parametrize(
    ("words", "said"), [([], "RECIPE is missing"), (["RECIPE=dask"], "RECIPE=dask has no single.py to compare with")]
)
def test_errors_name_the_recipes_that_have_a_twin(words, said):
    done = make_diff(*words)
    assert done.returncode
    assert done.stdout == ""
    assert f"error: {said}; these recipes have one: {', '.join(TWINS)}. Try: make diff RECIPE=" in done.stderr


def test_a_recipe_is_not_a_path():
    with pytest.raises(UserError, match="has no single.py"):
        diff.difference_of("../recipes/horovod")


@pytest.mark.parametrize(
    ("source", "below"),
    [
        ("a = 1\nb = 2  # Distributed: why\nc = 3\n", [1]),
        ("# Distributed: why,\n# at length\na()\nb()\n\nc()\n", [0, 1, 2, 3]),
        ("# Distributed: why\na()\n# something else\nb()\n", [0, 1]),
        ("if a:\n    # Distributed: why\n    b()\nc()\n", [1, 2]),
        ("# Distributed: why\na(\n    b,\n)\n", [0, 1, 2, 3]),
        ("# Distributed: why\na()\n# Distributed: and why\nb()\n", [0, 1, 2, 3]),
        ("# something\na()\n", []),
    ],
)
def test_which_lines_a_tag_speaks_of(source, below):
    assert list(diff.below_tags(source.splitlines())) == below


def test_the_docstring_at_the_head_is_left_out():
    source = '"""Head.\n\nMore.\n"""\n\nimport os\n'
    assert diff.head_of(source) == 4
    assert diff.head_of("import os\n") == 0
