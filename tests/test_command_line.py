"""The command line: values are taken as they are, names exist, numbers make sense, and make hands on what was typed."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cookbook import ROOT, UserError, run_folder
from cookbook.programs import argv_of_make
from cookbook.report import console, pages, summary, tracking
from cookbook.settings import compose_recipe, files, overrides
from cookbook.tools import compare, diagnose, watch
from cookbook.tools.eject import eject
from tests.helpers import CLEAN

REGEX = r"^(?<time>\S+) \[(?<level>\w+)\] (?<message>.*)$"


@pytest.mark.parametrize(
    "value",
    [
        "/tmp/lr=0.1",
        "/tmp/ümlaut",
        "/tmp/week#3",
        "/tmp/Bilder (1)",
        "/tmp/a, b",
        "/logs/{a,b}.log",
        "/x/[1].log",
        "it's",
        "a\\",
        "C:x\\'y",
        "50%",
        "~/x",
        "/tmp/日本 語",
        "a:b",
        "2024",
        "1e3",
        "true",
        '"quoted" text',
        "a'b'c",
        "*.log",
        "!x",
        "&x",
        "a;b",
        "a|b",
        "@x",
        REGEX,
        "\t",
        "a$5",
    ],
)
@pytest.mark.parametrize("name", ["output_root", "data.path", "data.format"])
def test_a_text_is_taken_as_it_is(name, value):
    if name == "output_root":
        expected = os.path.expanduser(value)  # the home folder, in settings that are folders
        assert compose_recipe("pytorch", [f"output_root={value}"])[0]["output_root"] == expected
    else:
        config, _ = compose_recipe("spark", ["data=log_files", f"{name}={value}"])
        assert config["data"][name.split(".")[1]] == value
        assert config["data"]["parameters"][name.split(".")[1]] == value


@pytest.mark.parametrize(
    "value", ["${HOME}/logs", "x${seed}", "a\\${b}", r"^\${x} '\\${y}$", "${oc.env:HOME}", "${", "it's ${x}\\"]
)
def test_nothing_is_filled_in(value):
    config, _ = compose_recipe("spark", ["data=log_files", f"data.path={value}", f"data.format={value}"])
    assert config["data"]["path"] == config["data"]["format"] == value
    assert config["data"]["parameters"]["path"] == config["data"]["parameters"]["format"] == value
    config, _ = compose_recipe("dask", ["data=flights_files", f"data.columns.dest={value}"])
    assert config["data"]["columns"]["dest"] == config["data"]["parameters"]["columns"]["dest"] == value


@pytest.mark.parametrize(
    ("typed", "name"),
    [('"Arr Delay"', "Arr Delay"), ("'Arr Delay'", "Arr Delay"), ("Arr's", "Arr's"), ("'\"x\"'", '"x"')],
)
def test_quotes_around_the_name_of_a_column_are_not_part_of_it(typed, name):
    config, _ = compose_recipe("dask", ["data=flights_files", f"data.columns.arr_delay={typed}"])
    assert config["data"]["columns"]["arr_delay"] == name


@pytest.mark.parametrize(
    "word", ["output_root=${HOME}/out", "cache_dir=/x/${oc.env:HOME}", "seed=${x}", "recipe.learning_rate=${seed}"]
)
def test_what_would_have_to_be_filled_in_is_refused(word):
    with pytest.raises(UserError) as raised:
        compose_recipe("pytorch", [word])
    assert f"{word}: nothing is filled in for ${{...}} here; write the value itself" in str(raised.value)


def test_eject_takes_braces_in_a_path_and_a_column_called_true(tmp_path):
    words = ["data=store_files", "data.path=/x/${y}", "data.label=true", "data.features=[1,null]"]
    makefile = (eject("petastorm", tmp_path / "mine", words) / "Makefile").read_text()
    assert "'path=/x/$${y}' 'label=\"true\"' 'features=[\"1\", \"null\"]'" in makefile


@pytest.mark.parametrize("word", ["output_root='/tmp/x y'", 'output_root="/tmp/x y"'])
def test_who_quotes_for_hydra_may_go_on(word):
    assert compose_recipe("pytorch", [word])[0]["output_root"] == "/tmp/x y"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("recipe.lerning_rate=0.5", "there is no setting recipe.lerning_rate; did you mean recipe.learning_rate?"),
        ("+recipe.lerning_rate=0.5", "there is no setting recipe.lerning_rate; did you mean recipe.learning_rate?"),
        ("++recipe.lerning_rate=0.5", "did you mean recipe.learning_rate?"),
        ("num_epochs=3", "did you mean recipe.num_epochs?"),
        ("cluster.num_worker=3", "did you mean cluster.num_workers?"),
        ("sed=3", "did you mean seed?"),
        ("scale.max_row=3", "did you mean scale.max_rows?"),
        ("data.parameters.test_fractoin=0.1", "did you mean data.parameters.test_fraction?"),
        ("~recipe.momentum", "no setting can be taken away"),
        ("(1)", "is no setting: expected key=value. A value with blanks needs quotes"),
        ("data=digits,images", "several values make a sweep: say -m"),
        ("recipe.num_epochs=1,2", "several values make a sweep, which takes -m"),
    ],
)
def test_what_is_no_setting_is_refused(word, text):
    with pytest.raises(UserError) as raised:
        compose_recipe("pytorch", [word])
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("seed=-1", "seed=-1: expected a whole number from 0 to 4294967295"),
        ("seed=4294967296", "expected a whole number from 0"),
        ("cluster.port=99999", "cluster.port=99999: expected a whole number from 1 to 65535"),
        ("cluster.port=0", "cluster.port=0: expected a whole number from 1 to 65535"),
        ("cluster.num_threads_per_worker=0", "cluster.num_threads_per_worker=0: expected a whole number"),
        ("cluster.start_timeout_seconds=-5", "cluster.start_timeout_seconds=-5: expected a whole number from 1 to"),
        ("cluster.inherit=[5]", "cluster.inherit has 5 in it: expected names of environment variables"),
        ("cache_dir=", "cache_dir=: expected a folder"),
        ("output_root=", "output_root=: expected a folder"),
        ("resume=null", "resume=None: expected auto or never"),
        ("data=flights", "data=flights holds flights, and recipe=pytorch recipe.mode=ddp takes images: choose data="),
        ("data=none", "data=none holds nothing, and recipe=pytorch recipe.mode=ddp takes images: choose data=cifar10"),
        ("recipe.learning_rate=inf", "recipe.learning_rate=inf: expected a finite number"),
        ("recipe.learning_rate=nan", "recipe.learning_rate=nan: expected a finite number"),
        ("recipe.momentum=1.5", "recipe.momentum=1.5: expected a number from 0 to 1"),
        ("data.parameters.test_fraction=20", "test_fraction=20: expected a share between 0 and 1 (0.2 for 20 %)"),
        ("data.parameters.test_fraction=35", "expected a share between 0 and 1 (0.35 for 35 %)"),
        ("recipe.warmup_share=-1", "recipe.warmup_share=-1: expected a share between 0 and 1 (0.2 for 20 %)"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(word, text):
    with pytest.raises(UserError) as raised:
        compose_recipe("pytorch", [word])
    assert text in str(raised.value)


def test_every_default_is_within_its_range():
    for recipe in sorted(path.stem for path in (files.CONF / "recipe").glob("*.yaml")):
        for cluster in ("local", "slurm", "kubernetes"):
            compose_recipe(recipe, [f"cluster={cluster}"])  # raises where not


def test_a_mapping_of_the_user_s_own_keys():
    prefix = "recipe.spark_conf.spark"
    words = [f"{prefix}.ui.port=4050", f"{prefix}.ui.enabled=true", f'{prefix}.a="-Xss8m -ea"', f"{prefix}.b='5'"]
    conf = compose_recipe("spark", words)[0]["recipe"]["spark_conf"]
    assert (conf["spark.ui.port"], conf["spark.ui.enabled"], conf["spark.log.level"]) == (4050, True, "ERROR")
    assert (conf["spark.a"], conf["spark.b"]) == ("-Xss8m -ea", "5"), "what stands in quotes is a text"


def test_one_text_given_twice_was_made_two_by_a_shell():
    with pytest.raises(UserError, match=r"data.path is given twice, as /l/a.log and as /l/b.log: say one"):
        compose_recipe("spark", ["data=log_files", "data.path=/l/a.log", "data.path=/l/b.log"])


def test_a_sweep_stays_one():
    words = ["-m", "recipe=pytorch", "recipe.learning_rate=0.1,0.2", "recipe.precision=float32,bfloat16"]
    assert overrides.prepared([*words, "output_root=/a,b"]) == [*words, "output_root='/a,b'"]


def test_what_was_typed_reaches_the_driver_through_make(tmp_path):
    """make, its shell and `argv_of_make`: a program that prints its words stands for the driver's Python."""
    for name in ("Makefile", "requirements.txt", "cookbook/bootstrap.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    show = "import json, os, sys; from cookbook.programs import argv_of_make; "
    show += "print(json.dumps([argv_of_make(sys.argv[1:]), sorted(n for n in os.environ if n.startswith(chr(80)))]))"
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -c '{show}' \"$@\"\n")
    python.chmod(0o755)
    (python.parent.parent / ".complete").touch()
    asked = r"""data.path=/logs/{a,b}.log 'data.path=/tmp/Bilder (1)' data.format='^(?<a>\S+) (?<b>.*)$' x=#3 y=*"""
    paths = ["data.path=/logs/{a,b}.log", "data.path=/tmp/Bilder (1)"]
    expected = [*paths, r"data.format=^(?<a>\S+) (?<b>.*)$", "x=#3", "y=*"]
    environment = CLEAN | {"PYTHONPATH": "/elsewhere", "PYTHONSAFEPATH": "1"}
    for target in ("recipe-spark", "report", "compare", "eject"):
        make = ["make", "-s", target, f"PYTHON={python}", f"ARGS={asked}"]
        done = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            words, variables = json.loads(line)
            assert words[-5:] == expected
            assert "PYTHONPATH" not in variables and "PYTHONSAFEPATH" not in variables and "PYTHONUTF8" in variables


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale=smoke"], 'scale: settings stand in ARGS: make ... ARGS="scale=smoke"'),
        (["ARGS=scale=smoke", "recipe.num_epochs=3"], 'ARGS="recipe.num_epochs=3"'),
        (["data.path=/my pictures"], 'ARGS="data.path=/my pictures"'),
        (["args=seed=1"], 'ARGS="seed=1"'),
        (["ARGS=scale=smoke recipe.num_epochs=3", "CXX=clang++", "PYTHON=python3"], None),
    ],
)
def test_a_setting_beside_args_is_no_variable_of_make_s(words, said):
    environment = CLEAN | {"scale": "1", "seed": "2", "data": "3"}  # of the shell's own: no word of this command line
    words = ["make", "-n", "recipe-pytorch", *words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (said or "") in done.stderr and bool(done.returncode) == bool(said), done.stderr


def test_make_in_another_folder_says_how(tmp_path):
    words = ["make", "-f", ROOT / "Makefile", "recipe-pytorch"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 2 and f"works in its own folder: make -C {ROOT}/ recipe-pytorch" in done.stderr


def test_make_takes_the_first_python_that_starts(tmp_path):
    """A shim of pyenv is on PATH for each version that it has, and fails where another one was chosen."""
    (tmp_path / "python3.11").write_text("#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2; exit 127\n")
    (tmp_path / "python3.11").chmod(0o755)
    environment = CLEAN | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name in ("PYTHON", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    words = ["make", "--eval", "show: ; @echo '$(PYTHON)'", "show"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment).stdout.strip()
    assert found and not found.startswith(str(tmp_path))
    assert subprocess.run([found, "-c", ""]).returncode == 0


def test_a_sweep_s_table_shows_what_was_typed(capsys):
    failed = {"status": "failed"}
    summary.print_sweep(
        [(["recipe=spark", "data.features=[a,b]"], failed), (["recipe=dask", "x=[/y] a:100:b"], failed)]
    )
    shown = capsys.readouterr().out
    assert "recipe=spark data.features=[a,b]" in shown and "recipe=dask x=[/y] a:100:b" in shown


def test_progress_on_a_terminal_is_no_markup(monkeypatch):
    """A compiler's line, say: only a terminal shows progress as a bar."""
    terminal = console.Plain(force_terminal=True, width=120, file=io.StringIO())
    monkeypatch.setattr(console, "console", terminal)
    with console.Stage("environment") as stage:
        stage.update("[/usr/bin/c++] [bold]linking")
        stage.done("[/tmp/x] made")
    assert "[/usr/bin/c++] [bold]linking" in terminal.file.getvalue() and "[/tmp/x] made" in terminal.file.getvalue()


def test_quotes_that_do_not_close():
    with pytest.raises(UserError, match="No closing quotation"):
        argv_of_make(["@ARGS"], {"COOKBOOK_ARGS": "data.path='/x"})
    assert argv_of_make(["a=b"], {}) == ["a=b"]
    assert argv_of_make(["@ARGS"], {"COOKBOOK_ARGS": "data.format='x$$'"}) == ["data.format=x$"]


def test_eject_with_a_regex_that_ends_in_a_dollar_sign(tmp_path):
    folder = eject("spark", tmp_path / "mine", ["data=log_files", f"data.path={tmp_path}", f"data.format={REGEX}"])
    makefile = folder / "Makefile"
    done = subprocess.run(["make", "-n", "-o", ".venv/.stamp", "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert REGEX in done.stdout
    assert "$PATH" in done.stdout and str(folder) in done.stdout
    assert REGEX.replace("$", "$$") in makefile.read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["output_dir"] == "outputs/run"


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("ray_train", ["recipe.num_data_cpus=3"], "--num-cpus 8 --object-store-mb 500 --temp-dir"),
        ("ray_tune", ["cluster.num_threads_per_worker=2"], "--num-cpus 10 --object-store-mb 200"),
        ("ray_train", ["recipe.elastic=true"], "--num-cpus 5 --object-store-mb 500 --slots 3 --node 2:2"),
        ("spark", [], "--master 'local-cluster[5,1,1024]'"),
        ("pytorch", [], "--nproc-per-node 5 --rdzv-backend"),
    ],
)
def test_an_ejected_command_has_as_much_as_its_workers_need(recipe, words, expected, tmp_path):
    folder = eject(recipe, tmp_path / "my copy", words)  # a blank in the name: the command still has it as one word
    make = ["make", "-n", "-o", "setup", "run", "NUM_WORKERS=5"]
    done = subprocess.run(make, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert any(f"{folder}/main" in word for word in shlex.split(done.stdout))


@pytest.mark.parametrize(
    ("recipe", "word", "status"),
    [
        ("pytorch", "mode=fsdp", 1),
        ("pytorch", "max_restarts=2", 1),
        ("ray_tune", "num_workers=2", 1),
        ("pytorch", "num_epochs=2", 0),
    ],
)
def test_an_ejected_copy_refuses_what_is_in_its_command(recipe, word, status, tmp_path):
    folder = eject(recipe, tmp_path / "mine")
    (folder / ".setup").touch()
    (folder / "Makefile").write_text((folder / "Makefile").read_text().replace("\tPATH=", "\t: PATH="))
    make = ["make", "-o", "setup", "run", f"ARGS={word}"]
    done = subprocess.run(make, cwd=folder, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(status), done.stderr
    assert (f"error: {word}: not by ARGS" in done.stderr) == bool(status)
    name = word.partition("=")[0]
    comments = [line for line in (folder / "config.yaml").read_text().splitlines() if line.startswith(f"{name}:")]
    assert ["[in the command" in line for line in comments] == [bool(status)]
    done = subprocess.run(["make", "-n", "run", "seed=3"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and 'seed: settings stand in ARGS: make run ARGS="seed=3"' in done.stderr


def test_an_ejected_copy_has_the_settings_that_it_reads(tmp_path):
    settings = yaml.safe_load((eject("spark", tmp_path / "logs") / "config.yaml").read_text())
    assert {"seed", "window_minutes", "data_dir", "checkpoint_dir"} <= settings.keys()
    assert not {"max_rows", "max_steps", "spark_conf", "java_options"} & settings.keys()
    readme = (tmp_path / "logs/README.md").read_text()
    assert "are in the command that the Makefile has: memory_mb, spark_conf." in readme
    assert 'ARGS="num_clusters=3"' in readme and "num_epochs" not in readme
    game = eject("ray_rllib", tmp_path / "game")
    assert "dataset" not in (game / "README.md").read_text() and not (game / "dataset").exists()
    assert "data_dir" not in yaml.safe_load((game / "config.yaml").read_text())


def run_of(root, name, started, recipe="pytorch"):
    folder = root / recipe / name
    folder.mkdir(parents=True)
    content = {"recipe": recipe, "status": "ok", "started": started, "curves": {}, "choices": {}}
    (folder / "run.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def test_a_folder_that_is_no_run_s(tmp_path):
    newest = [run_of(tmp_path, name, 1.0) for name in ("2026-11-27_04-00-00", "2026-11-27_19-00-00")][1]
    parent, latest = newest.parent, newest.parent / "latest"
    latest.symlink_to(newest.name)
    assert run_folder.no_run("RUN", parent) == f"RUN={parent}: expected the folder of a run, such as {newest}"
    assert run_folder.no_run("RUN", "").endswith("such as outputs/pytorch/latest")
    newest.rename(tmp_path / "elsewhere")
    expected = f"this link leads to {newest.name}, which is not there any more"
    assert expected in run_folder.no_run("RUN", latest)
    for main, word in ((diagnose.diagnose, latest), (tracking.main, [str(latest)])):
        with pytest.raises(UserError, match=expected):
            main(word)
    with pytest.raises(UserError, match=expected):
        watch.server(latest, 0)
    with pytest.raises(UserError, match=rf"resume={latest}: .*{expected}.*\(or auto, or never\)"):
        compose_recipe("pytorch", [f"resume={latest}"])


def test_the_newest_run_is_the_one_that_began_last(tmp_path):
    """Not the one with the largest name: that is local time, which a change of zone sets back."""
    for name, started in (("2026-11-27_19-00-00", 1000.0), ("2026-11-27_04-00-00", 2000.0)):
        folder = tmp_path / "pytorch" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.pt").touch()
        content = {"identity": "x", "resumable": started == 2000.0, "started": started, "reason": "cut off"}
        (folder / "run.json").write_text(json.dumps(content))
    assert [folder.name for folder, _ in run_folder.load_all(tmp_path)] == [
        "2026-11-27_19-00-00",
        "2026-11-27_04-00-00",
    ]
    run = run_folder.open_run(tmp_path, "pytorch", "x", "auto")
    assert (run.path.name, run.resumed_from) == ("2026-11-27_04-00-00", "cut off")
    run.close()


def test_report_heeds_output_root(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(pages, "write_overview", lambda root: (seen.append(root), (root, 3, []))[1])
    pages.main([f"output_root={tmp_path}"])
    pages.main([str(tmp_path)])
    assert seen == [str(tmp_path)] * 2
    with pytest.raises(UserError, match="there are no runs in '/nowhere' yet"):
        pages.main(["output_root=/nowhere"])
    monkeypatch.undo()
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"there are no runs in .*: expected .*/<recipe>/<time>/run\.json"):
        pages.main([str(tmp_path / "moved")])
    with pytest.raises(UserError, match="expected output_root=FOLDER"):
        pages.main(["seed=3"])


@pytest.mark.parametrize("text", ['{"recipe": "pytorch", "status": "ok", "started": 1}', "null", "[]", "{"])
def test_a_run_json_of_another_version_or_of_no_run(tmp_path, capsys, text):
    (tmp_path / "pytorch/other").mkdir(parents=True)
    (tmp_path / "pytorch/other/run.json").write_text(text)
    with pytest.raises(UserError, match="there are no runs in"):
        pages.main([str(tmp_path)])
    with pytest.raises(UserError, match="expected the folder of a run"):
        tracking.main([str(tmp_path / "pytorch/other")])
    good = dict.fromkeys(pages.SHOWN, "") | {"objective": {"name": "x", "value": None}, "metrics": {}, "seconds": {}}
    (tmp_path / "pytorch/good").mkdir()
    (tmp_path / "pytorch/good/run.json").write_text(json.dumps(good | {"recipe": "pytorch", "worlds": []}))
    pages.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "1 run: " in said
    assert ("other/run.json is of another version" in said) == text.startswith('{"')


def test_compare_heeds_output_root(tmp_path, monkeypatch):
    started = []

    def run(words, **options):
        started.append(words)
        root = next(word for word in words if word.startswith("output_root=")).removeprefix("output_root=")
        run_of(run_folder.Path(root), "2026-01-01_00-00-00", 1.0)

    monkeypatch.setattr(compare.subprocess, "run", run)
    monkeypatch.setattr(compare, "show", lambda *args: None)
    monkeypatch.setattr(compare.pages, "write_compare_page", lambda folder, members, *rest: [m[1] for m in members])
    folders, _ = compare.compare(["pytorch", "pytorch:recipe.num_epochs=2"], [f"output_root={tmp_path}/out"])
    assert [str(folder).startswith(f"{tmp_path}/out/compare/") for folder in folders] == [True, True]
    assert all(sum(word.startswith("output_root=") for word in words) == 1 for words in started)
    started.clear()
    for word, text in (
        ("recipe.num_epoch=2", r"did you mean recipe.num_epochs\?"),
        ("recipe.mode=foo", "recipe.mode='foo' is unknown"),
        ("recipe.num_epochs=x", "recipe.num_epochs='x': expected a whole number"),
        ("data=flights", "data=flights holds flights"),
    ):
        with pytest.raises(UserError, match=text):
            compare.compare(["pytorch", f"pytorch:{word}"], [f"output_root={tmp_path}/out"])
    assert started == [], "a mistake is said before the first run"


def test_a_disk_without_links_has_runs_without_latest(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(run_folder.Path, "symlink_to", refused)
    run = run_folder.open_run(tmp_path, "pytorch", "x", "never")
    run.write({"recipe": "pytorch", "started": 1.0})
    run.close()
    assert [path.name for path in (tmp_path / "pytorch").iterdir()] == [run.path.name]
    assert run_folder.newest(tmp_path, "pytorch") == run.path


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", refused)
    with pytest.raises(OSError, match="No locks available"):
        run_folder.open_run(tmp_path, "pytorch", "x", "never")
    assert list((tmp_path / "pytorch").iterdir()) == []


def test_latest_that_is_a_real_folder_stays_and_nothing_is_left_beside_it(tmp_path):
    """`cp -rL` and `scp -r` make a copy of the run that the link leads to."""
    (tmp_path / "pytorch/latest").mkdir(parents=True)
    run = run_folder.open_run(tmp_path, "pytorch", "x", "never")
    run.close()
    assert {path.name for path in (tmp_path / "pytorch").iterdir()} == {"latest", run.path.name}


def test_a_program_of_make_s_whose_reader_is_gone_or_whose_folder_cannot_be_made():
    script = (
        "from cookbook.programs import run_program; run_program(lambda argv: [print('x' * 9000) for _ in range(99)])"
    )
    words = ["bash", "-c", '"$0" -c "$1" | head -c 10; exit ${PIPESTATUS[0]}', sys.executable, script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, "x" * 10, "")
    script = "from cookbook.programs import run_program; run_program(lambda argv: open('/proc/none/x', 'w'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: /proc/none/x: No such file or directory\n")


def test_another_user_s_run_in_a_shared_folder_is_not_in_the_way(tmp_path, monkeypatch):
    folder = tmp_path / "pytorch/theirs"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.pt").touch()
    (folder / "run.json").write_text(json.dumps({"identity": "x", "resumable": True, "started": 1.0}))
    acquire = run_folder.FileLock.acquire

    def only_mine(lock, *args, **kwargs):
        if Path(lock.lock_file).parent == folder:
            raise PermissionError(13, "Permission denied")
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(run_folder.FileLock, "acquire", only_mine)
    run = run_folder.open_run(tmp_path, "pytorch", "x", "auto")
    assert run.path != folder and run.resumed_from is None
    run.close()
