"""The contracts that every recipe is held to.

Recipes are found by globbing: a new one is tested without touching this file.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from cookbook import ROOT
from cookbook.settings import compose_recipe
from runrecord import read_records
from tests.helpers import CLEAN, Driver, latest, recipes, run_cookbook, short_words

RECIPES = recipes()
COMPOSED = {recipe: compose_recipe(recipe)[0] for recipe in RECIPES}
DRIVER = {recipe: config["recipe"]["driver"] for recipe, config in COMPOSED.items()}
# What makes a run of the recipe short.
SHORT = {recipe: short_words(recipe) for recipe in RECIPES}
FROM_NOTHING = "pytorch"  # whose ejected copy also makes its own environment; one is enough, and costs a gigabyte
DATA_PARALLEL = [recipe for recipe, driver in DRIVER.items() if "same_parameters" in driver["proof"]]


def quick(recipes, *chosen):
    """Parameters of a test: the chosen recipes in every suite, the others in `make test-all` only."""
    assert set(chosen) <= set(recipes)
    return [one if one in chosen else pytest.param(one, marks=pytest.mark.full) for one in recipes]


# One recipe of each launcher: what only depends on the launcher is shown by it.
OF_EACH_LAUNCHER = {DRIVER[recipe]["system"]: recipe for recipe in RECIPES}.values()
TRAINING_OF_EACH_LAUNCHER = {DRIVER[recipe]["system"]: recipe for recipe in DATA_PARALLEL}.values()

# Top-level modules whose package has another name.
PACKAGES = {
    "dask_ml": "dask-ml",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "keras": "tensorflow-cpu",
    "tensorflow": "tensorflow-cpu",
    "tf_keras": "tf-keras",
    "kubeflow_trainer_api": "kubeflow-trainer-api",
    "kubeflow_katib_api": "kubeflow-katib-api",
    "kubeflow": "kubeflow-training",
}


def imports_of(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_folder_a_config_and_a_target(recipe):
    for name in ("main.py", "settings.py", "requirements.in", "requirements.txt", "test_recipe.py", "README.md"):
        assert (ROOT / "recipes" / recipe / name).is_file(), name
    assert (ROOT / f"conf/recipe/{recipe}.yaml").is_file()
    text = subprocess.run(
        ["make", "-n", f"recipe-{recipe}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"recipe={recipe}" in text


def test_every_config_has_a_folder():
    configs = sorted(path.stem for path in ROOT.glob("conf/recipe/*.yaml"))
    assert configs == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_imports_only_what_it_may(recipe):
    folder = ROOT / "recipes" / recipe
    wanted = set()
    for file in folder.glob("requirements*.in"):
        wanted |= set(re.findall(r"^([A-Za-z0-9_-]+)", file.read_text(), re.MULTILINE))
    installed = {path.stem for path in (ROOT / "runrecord").glob("*.py")}
    allowed = set(sys.stdlib_module_names) | installed | {"pytest"} | {path.stem for path in folder.glob("*.py")}
    files = sorted(folder.glob("*.py"))
    assert files
    for path in files:
        strange = {name for name in imports_of(path) - allowed if not {name, PACKAGES.get(name)} & wanted}
        assert not strange, f"{path.name} imports {strange}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_distributed_is_tagged(recipe):
    programs = sorted((ROOT / "recipes" / recipe).glob("main*.py"))
    for program in programs:
        count = program.read_text().count("# Distributed:")
        # main_single.py is the same program without anything distributed: what the others are compared with.
        assert count == 0 if program.name == "main_single.py" else count >= 5, program.name
        assert len(program.read_text().splitlines()) <= 260, f"{program.name} is longer than a ten-minute read"


def test_copies_of_a_module_are_equal():
    """A recipe's folder is whole in itself, so what two recipes share is in both. Modules of one name that say the same
    of themselves are copies.
    """
    alike = {}
    for path in sorted(ROOT.glob("recipes/*/*.py")):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        if not path.name.startswith(("main", "single", "settings", "test_")):
            alike.setdefault((path.name, said.partition("\n")[0]), []).append(path)
    copies = {name: paths for (name, _), paths in alike.items() if len(paths) > 1}
    assert copies.keys() == {"data.py", "model.py", "workers.py"}
    for name, paths in copies.items():
        assert len({path.read_bytes() for path in paths}) == 1, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_in_the_readme_exist(recipe):
    text = (ROOT / "recipes" / recipe / "README.md").read_text()
    targets = set(re.findall(r"(?:^    |`|=\S+ )make ([a-z][a-z_-]*)", text, re.MULTILINE))  # in code, not in prose
    assert f"recipe-{recipe}" in targets
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {
        f"recipe-{name}" for name in RECIPES
    }
    assert targets <= known
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    for key in re.findall(r"\brecipe\.([a-z0-9_]+)", text):
        assert key in own, f"the README names recipe.{key}, which conf/recipe/{recipe}.yaml lacks"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_proves_that_it_was_distributed(recipe, undisturbed):
    content, folder, output = undisturbed(f"recipe={recipe}", *SHORT[recipe])
    assert content["status"] == "ok"
    assert content["world_size"] == 2
    assert [worker["rank"] for worker in content["workers"]] == [0, 1]
    assert len({worker["pid"] for worker in content["workers"]}) == 2
    assert all(worker["samples"] > 0 for worker in content["workers"])
    assert set(content["seconds"]) == {"environment", "data", "launch", "run", "total"}
    assert content["objective"]["value"] == content["metrics"][content["objective"]["name"]]
    assert content["objective"]["direction"] in ("maximize", "minimize")
    assert content["versions"]
    assert content["command"].startswith(".venv/bin/python -m cookbook "), "it can be typed as it is"
    typed = [f"recipe={recipe}", *SHORT[recipe], f"output_root={folder.parent.parent}"]
    assert content["overrides"][-len(typed) :] == typed, "before them stands what mode and scale bring"
    for text in (
        "result               ok",
        "workers              2",
        "report ",
        "workers by hand",
        content["objective"]["name"],
    ):
        assert text in output
    page = (folder / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert not re.search(r'(src|href)="https?:', page), "the report must not need the network"


# The command is the launcher's, so one recipe of each launcher shows it.
@pytest.mark.parametrize("recipe", quick(OF_EACH_LAUNCHER, "pytorch"))
def test_the_printed_command_does_the_same_by_hand(recipe, undisturbed, tmp_path):
    content, folder, _ = undisturbed(f"recipe={recipe}", *SHORT[recipe])
    before = {path: path.read_bytes() for path in folder.glob("workers/*")}
    done = subprocess.run(
        ["bash", "-c", content["workers_command"]], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=CLEAN
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_records(folder / "by-hand")
    assert {events[-1]["digest"] for events in records if events[0]["role"] == "worker"} == digests(content)
    assert {path: path.read_bytes() for path in folder.glob("workers/*")} == before, (
        "the run's own record stays as it was"
    )


@pytest.mark.parametrize("recipe", quick(DATA_PARALLEL, "pytorch"))
def test_a_checkpoint_of_other_batches_is_refused(recipe, undisturbed, tmp_path):
    content, folder, _ = undisturbed(f"recipe={recipe}", *SHORT[recipe])
    mine = shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    folders = f" seed=7 output_dir={tmp_path} checkpoint_dir={mine}"
    command = re.sub(r" output_dir=\S+ checkpoint_dir=\S+", folders, content["workers_command"])
    assert command != content["workers_command"]
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=CLEAN)
    assert done.returncode, "it went on with the checkpoints of another seed"
    assert "was made with other settings: seed=7 (0 there)" in done.stdout + done.stderr


@pytest.mark.parametrize("recipe", quick(DATA_PARALLEL, "pytorch"))
def test_one_worker_and_two_reach_the_same_loss(recipe, undisturbed):
    """Same global batches, so the same steps: what differs is the order of float32 sums.

    That is about 1e-7 a step, and an epoch from the start it must still be tiny:
    a wrong average or a row too many shows at once.
    Training then amplifies it (the loss surface is not convex), so at the end the losses agree to a few hundredths,
    not bit for bit.
    """
    two, one = (undisturbed(f"recipe={recipe}", *SHORT[recipe], *more)[0] for more in ((), ("cluster.num_workers=1",)))
    losses = [dict(map(tuple, content["curves"]["train/loss"])) for content in (one, two)]
    first, final = min(losses[0]), max(losses[0])
    assert losses[1][first] == pytest.approx(losses[0][first], rel=1e-4)
    assert losses[1][final] == pytest.approx(losses[0][final], abs=0.05)
    assert one["world_size"] == 1
    assert one["num_rows"] == two["num_rows"]


def check_same_result(recipe, content, here):
    """Of a run at another place and of one on this machine with the same settings (run.json of both)."""
    assert content["num_rows"] == here["num_rows"]
    if recipe in DATA_PARALLEL:
        losses = [dict(map(tuple, one["curves"]["train/loss"])) for one in (here, content)]
        assert losses[1][min(losses[0])] == pytest.approx(losses[0][min(losses[0])], rel=1e-4)
    elif content["account"]:
        assert content["account"] == here["account"], "lines read, good and quarantined"
    else:
        name = content["objective"]["name"]
        assert content["metrics"][name] == pytest.approx(here["metrics"][name], abs=0.02)


def digests(content):
    return {worker["digest"] for worker in content["workers"]}


def in_the_middle_of_an_epoch(driver, epoch=1):
    """True when the workers are some steps into an epoch that follows a checkpoint."""
    events = driver.events()
    return any(e["event"] == "checkpoint" for e in events) and any(
        e["event"] == "rows" and (e["epoch"], e["step"]) >= (epoch, 4) for e in events
    )


@pytest.mark.parametrize("recipe", quick(DATA_PARALLEL, *TRAINING_OF_EACH_LAUNCHER))
def test_a_killed_worker_fails_the_run_and_the_same_command_goes_on(recipe, undisturbed, tmp_path):
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected, _, _ = undisturbed(*words)
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    driver.kill(1)
    status, output = driver.end()
    assert status == 1, output
    killed, folder = latest(tmp_path, recipe)
    assert killed["status"] == "failed"
    assert "rank 1 of 2 started but did not finish" in killed["reason"]
    assert driver.no_process_left()
    content, again, output = run_cookbook(*words, output_root=tmp_path)
    assert again == folder, "the same command goes on in the same run folder"
    # Who speaks first depends on the moment: the rank that is lost, or the other one that waits for it.
    assert f"going on with this run, which stopped: {killed['reason'].splitlines()[0]}" in output
    assert content["status"] == "ok"
    assert digests(content) == digests(expected)
    assert content["num_rows"] == expected["num_rows"]


def step_reached(folder):
    """(epoch, steps of it) that the run in `folder` has taken, and that its last checkpoint holds."""
    events = [event for events in read_records(folder) for event in events]
    taken = max((event["epoch"], event["step"] + 1) for event in events if event["event"] == "rows")
    saved = [event for event in events if event["event"] == "checkpoint"]
    return taken, max((event["epoch"], event["step"]) for event in saved)


@pytest.mark.parametrize("recipe", quick(DATA_PARALLEL, "pytorch"))
def test_a_machine_that_is_taken_away_costs_no_step(recipe, undisturbed, tmp_path):
    """SIGTERM to the driver in the middle of an epoch: the workers save and leave, the same command goes on there."""
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected, _, _ = undisturbed(*words)
    driver = Driver(*words, "cluster.notice_grace_seconds=600", output_root=tmp_path)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    driver.process.terminate()
    status, output = driver.end()
    assert status == 75, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, recipe)
    assert content["status"] == "preempted"
    assert content["resumable"] is True
    taken, saved = step_reached(folder)
    assert taken == saved and saved[1] > 0, "in the middle of an epoch, and every step that was taken is saved"
    where = f"saved at epoch {saved[0] + 1} after step {saved[1]}; the same command goes on from there"
    assert where in content["reason"] and where in output
    content, again, output = run_cookbook(*words, "cluster.notice_grace_seconds=600", output_root=tmp_path)
    assert again == folder
    assert "going on with this run, which stopped: preempted by" in output
    restored = [event for events in read_records(folder) for event in events if event["event"] == "restore"]
    assert (restored[-1]["epoch"], restored[-1]["step"]) == saved
    assert digests(content) == digests(expected)
    assert content["num_rows"] == expected["num_rows"]


def sealed_checkpoints(folder):
    """The folders with a marker of sizes and sums, oldest first."""
    found = [path.parent for path in folder.rglob("checkpoint.json")]
    return sorted(found, key=lambda path: (path / "checkpoint.json").stat().st_mtime_ns)


@pytest.mark.parametrize("recipe", DATA_PARALLEL)
def test_the_last_two_checkpoints_are_kept_with_the_sums_of_their_files(recipe, undisturbed):
    _, folder, _ = undisturbed(f"recipe={recipe}", *SHORT[recipe])
    kept = sealed_checkpoints(folder / "checkpoints")
    assert len(kept) == 2
    for checkpoint in kept:
        parts = json.loads((checkpoint / "checkpoint.json").read_text())["parts"]
        files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
        own = files.pop("checkpoint.json")
        assert own and files.keys() - {".metadata.json"} == parts.keys(), "Ray notes the metrics beside the files"
        for name, facts in parts.items():
            content = files[name].read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"])
        assert max(facts["bytes"] for facts in parts.values()) > 1000, "parameters"


@pytest.mark.full
@pytest.mark.parametrize("recipe", DATA_PARALLEL)
@pytest.mark.parametrize("hurt", ["cut off", "altered"])
def test_of_two_checkpoints_a_damaged_one_is_passed_over(recipe, hurt, undisturbed, tmp_path):
    """The workers by hand, on a copy: from the one before they come to the same parameters."""
    content, folder, _ = undisturbed(f"recipe={recipe}", *SHORT[recipe])
    mine = shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    # kfp keeps the results of its steps there: with them it would not train again.
    shutil.rmtree(mine / "steps", ignore_errors=True)
    newest = sealed_checkpoints(mine)[-1]
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    middle = len(whole) // 2
    largest.write_bytes(whole[:middle] if hurt == "cut off" else whole[:middle] + b"\xff\x00" + whole[middle + 2 :])
    command = re.sub(
        r" output_dir=\S+ checkpoint_dir=\S+",
        f" output_dir={tmp_path} checkpoint_dir={mine}",
        content["workers_command"],
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=CLEAN)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"{newest.name} is damaged: {largest.relative_to(newest)} has" in said
    assert "the one before is taken" in said
    records = [events for events in read_records(tmp_path) if events[0]["role"] == "worker"]
    assert {events[-1]["digest"] for events in records} == digests(content)
    (restored,) = {(e["epoch"], e["step"]) for events in records for e in events if e["event"] == "restore"}
    assert restored == (3, 0), "of four epochs the last one is trained again"


@pytest.mark.full
@pytest.mark.parametrize("recipe", DATA_PARALLEL)
def test_a_driver_killed_after_the_last_checkpoint(recipe, undisturbed, tmp_path):
    """It leaves no process; nothing is left to train then, and the run is whole all the same."""
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected, _, _ = undisturbed(*words)
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["epoch"] == 4 for e in driver.events()))
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, _, output = run_cookbook(*words, output_root=tmp_path)
    assert "its driver was killed" in output
    assert content["status"] == "ok"
    assert digests(content) == digests(expected)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/*/*.py")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_what_is_copied_out_does_not_speak_of_where_it_was(path):
    assert "cookbook" not in path.read_text().lower() and str(ROOT) not in path.read_text()


@pytest.mark.parametrize("recipe", quick(RECIPES, "pytorch"))
def test_an_ejected_recipe_runs_by_itself(recipe, recipe_python, tmp_path):
    """In an empty folder, with the repository out of reach, and its own test passes."""
    check_ejected(recipe, recipe_python(recipe).parent.parent, tmp_path)


@pytest.mark.full
def test_an_ejected_recipe_makes_its_own_environment(tmp_path):
    check_ejected(FROM_NOTHING, None, tmp_path)


def check_ejected(recipe, environment, tmp_path):
    # Spark's own test looks at every step and model: on a small input, with a Java that starts fast.
    kept = ("recipe.java_options=", "recipe.model_rows=")
    words = (
        ["data.parameters.num_lines=20000", *(word for word in SHORT[recipe] if word.startswith(kept))]
        if recipe == "spark"
        else []
    )
    done, texts = run_ejected(recipe, tmp_path, environment, words)
    assert [path.name for path, text in texts.items() if "cookbook" in text.lower()] == []
    assert [path.name for path, text in texts.items() if str(ROOT) in text] == []
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert re.search(r"\d+ passed", done.stdout)


def run_ejected(recipe, tmp_path, environment_folder, words=()):
    """(the finished `make setup test` of an ejected copy with these settings, its files' texts before).

    `environment_folder`: an environment of this recipe's lock to work in; None: the copy makes its own, by pip.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.tools.eject", recipe, tmp_path / "mine", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mine"
    texts = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    environment = {
        name: value for name, value in CLEAN.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "COOKBOOK_CACHE")
    }
    folders = [p for p in environment["PATH"].split(os.pathsep) if not p.startswith(str(ROOT))]
    environment["PATH"] = os.pathsep.join(p for p in folders if not Path(p, "uv").exists())
    words = ["make", "setup", "test", *([f"ENVIRONMENT={environment_folder}"] if environment_folder else [])]
    words = [*hide_repository(), *words]
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    finally:
        if not (folder / ".venv").is_symlink():
            shutil.rmtree(folder / ".venv", ignore_errors=True)
    return done, texts


def hide_repository():
    """Words before a command that make the repository an empty folder for it; none, and a warning,
    where the system does not let us."""
    script = f'mount -t tmpfs none "{ROOT}" && exec "$@"'
    words = ["unshare", "-m", *([] if os.geteuid() == 0 else ["-r"]), "sh", "-c", script, "sh"]
    if shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
        return words
    warnings.warn(
        "the repository was not hidden from the copy: that needs root, or user namespaces, on Linux", stacklevel=2
    )
    return []


def test_eject_overwrites_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.tools.eject", RECIPES[0], str(tmp_path / "mine")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is not an empty folder; choose another one" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_links_in_the_documents_lead_somewhere():
    documents = [path for path in [*ROOT.glob("*.md"), *ROOT.glob("recipes/*/*.md")]]
    assert documents
    for document in documents:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
