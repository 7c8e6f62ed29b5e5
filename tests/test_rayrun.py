"""The launcher of Ray instances that live as long as a program, with tiny programs; with Ray itself,
from a recipe's environment."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.requirements import skip

ASKS = """
import os, socket, sys, ray
ray.init(logging_level="error")
pid = ray.get(ray.remote(lambda: os.getpid()).remote())
interfaces = [name for _, name in socket.if_nameindex()]
local, secret = os.environ["RAY_ADDRESS"].startswith("127.0.0.1:"), len(os.environ["RAY_AUTH_TOKEN"]) >= 32
seconds, cpus = float(os.environ["RAYRUN_SECONDS"]), int(ray.cluster_resources()["CPU"])
print("ASKED", pid != os.getpid(), local, secret, seconds > 0, cpus, sys.argv[1:], interfaces, flush=True)
"""


@pytest.fixture
def words_of(recipe_python, tmp_path):
    def make(program, *options):
        path = tmp_path / "program.py"
        path.write_text(program)
        return [
            recipe_python("ray_train"),
            "-m",
            "rayrun",
            "--num-cpus",
            "3",
            "--temp-dir",
            tmp_path / "temp",
            *options,
            path,
            "config.yaml",
        ]

    return make


def descendants(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_RAYRUN") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def nobody_left(mark, seconds=15):
    deadline = time.monotonic() + seconds
    while descendants(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return descendants(mark) == []


def test_a_program_gets_a_ray_instance_of_its_own(words_of, tmp_path):
    environment = {
        **os.environ,
        "TEST_RAYRUN": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
    done = subprocess.run(words_of(ASKS), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = "rayrun: no network of its own" not in done.stdout
    assert f"ASKED True {alone} True True 3 ['config.yaml']" in done.stdout
    assert ("['config.yaml'] ['lo']\n" in done.stdout) == alone
    assert not (tmp_path / "temp").exists(), "Ray's files are gone"
    assert not (tmp_path / "home/.ray").exists(), "and no token was left in the user's home"
    links = [link for link in Path(tempfile.gettempdir()).glob("rayrun-link-*") if link.is_symlink()]
    assert not [link for link in links if str(tmp_path) in os.readlink(link)]
    assert nobody_left(str(tmp_path))
    if not alone:
        skip("namespaces", done.stdout.splitlines()[0])


def test_the_programs_status_is_rayruns(words_of):
    assert subprocess.run(words_of("import sys; sys.exit(7)"), capture_output=True).returncode == 7
    done = subprocess.run(words_of("import os; os.kill(os.getpid(), 9)"), capture_output=True, text=True)
    assert done.returncode == 128 + 9
    assert "rayrun: the program died of SIGKILL" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_ray_and_the_program(words_of, tmp_path, number):
    program = "import time; print('here', flush=True); time.sleep(600)"
    environment = {**os.environ, "TEST_RAYRUN": str(tmp_path)}
    with subprocess.Popen(
        words_of(program), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if line.strip() == "here":
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == 128 + number, rest
    assert f"rayrun: ended by {number.name}" in rest
    assert not (tmp_path / "temp").exists()
    assert nobody_left(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--num-cpus", "0"], "--num-cpus 0: expected at least 1"),
        (["--object-store-mb", "10"], "Ray wants at least 80"),
        (["--node", "2"], "'2': expected CPUS:SLOTS, such as 2:2"),
        (["--node", "0:1"], "'0:1': expected CPUS:SLOTS"),
    ],
)
def test_options_that_make_no_sense(words_of, options, text):
    done = subprocess.run(words_of("pass", *options), capture_output=True, text=True)
    assert done.returncode == 2
    assert text in done.stderr
