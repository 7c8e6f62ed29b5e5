"""The launcher for TF_CONFIG, with small programs that need no TensorFlow."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.helpers import CLEAN, ROOT

SHOW = "import os, json, sys; print('SHOWN', json.dumps([json.loads(os.environ['TF_CONFIG']), os.environ['TFRUN_ATTEMPT']]), flush=True)"
TASK = "; task = json.loads(os.environ['TF_CONFIG'])['task']; name = f\"{task['type']}:{task['index']}\""


def tfrun(tmp_path, program, *options, environment=None, timeout=60):
    """Runs a program under tfrun; returns (exit status, output)."""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "tfrun", *options, str(tmp_path / "program.py")], cwd=ROOT / "runrecord", capture_output=True,
        text=True, timeout=timeout, env={**CLEAN, **(environment or {})},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def configs(output):
    return [json.loads(line.partition("SHOWN ")[2]) for line in output.splitlines() if "SHOWN " in line]


def test_each_worker_gets_its_own_config(tmp_path):
    status, output = tfrun(tmp_path, SHOW, "--num-workers", "3", environment={"TF_CONFIG": "stale"})
    assert status == 0
    found = [config for config, _ in configs(output)]
    assert sorted(config["task"]["index"] for config in found) == [0, 1, 2]
    assert all(config["cluster"] == found[0]["cluster"] for config in found)
    addresses = found[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert "the TF_CONFIG of this environment is ignored" in output
    assert "[worker:2] SHOWN" in output


def test_a_worker_that_fails_ends_the_others(tmp_path):
    program = SHOW + TASK + "; import time; sys.exit(3) if name == 'worker:1' else time.sleep(50)"
    status, output = tfrun(tmp_path, program, "--num-workers", "2", timeout=30)
    assert status == 1
    assert "worker:1 (pid" in output
    assert "ended with exit status 3; the others are ended" in output


def test_all_start_anew(tmp_path):
    program = SHOW + TASK + "; sys.exit(name == 'worker:0' and os.environ['TFRUN_ATTEMPT'] == '0')"
    status, output = tfrun(tmp_path, program, "--num-workers", "2", "--max-restarts", "1")
    assert status == 0
    assert sorted(attempt for _, attempt in configs(output)) in (["0", "0", "1", "1"], ["0", "1", "1"])
    assert "all start anew (1 restarts left)" in output


SERVE = SHOW + TASK + "\nimport signal, time\nif name != 'chief:0':\n    signal.signal(signal.SIGTERM, lambda *a: (print('bye', flush=True), os._exit(0)))\n    time.sleep(50)\n"  # fmt: skip


def test_those_who_serve_end_with_the_chief(tmp_path):
    program = SERVE + "time.sleep(1)\n"
    status, output = tfrun(tmp_path, program, "--num-workers", "2", "--chief", "--num-ps", "1", timeout=30)
    assert status == 0
    assert {f"{c['task']['type']}:{c['task']['index']}" for c, _ in configs(output)} == {
        "chief:0", "ps:0", "worker:0", "worker:1",
    }  # fmt: skip
    assert output.count("bye") == 3


def test_a_dead_worker_is_replaced_and_a_dead_ps_is_not(tmp_path):
    mark = tmp_path / "died"
    dies = f"if name == 'worker:0' and not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w'); os._exit(9)\n"
    head = SHOW + TASK + "\n"
    status, output = tfrun(
        tmp_path, head + dies + SERVE + "time.sleep(2)\n", "--num-workers", "1", "--chief", "--num-ps", "1", "--max-restarts", "1"
    )  # fmt: skip
    assert status == 0, output
    assert "worker:0 (pid" in output
    assert "it is replaced (0 restarts left)" in output
    status, output = tfrun(
        tmp_path, head + "if name == 'ps:0':\n    os._exit(9)\n" + SERVE + "time.sleep(20)\n",
        "--num-workers", "1", "--chief", "--num-ps", "1",
    )  # fmt: skip
    assert status == 1
    assert "ps:0" in output
    assert "the variables that it kept are lost" in output


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, output = tfrun(tmp_path, SHOW, "--num-workers", "1", "--port", str(port))
    assert status == 1
    assert f"port {port}, for worker:0, is taken" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_task_outlives_the_launcher(tmp_path, number):
    (tmp_path / "program.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    argv = [sys.executable, "-m", "tfrun", "--num-workers", "2", str(tmp_path / "program.py")]
    launcher = subprocess.Popen(argv, cwd=ROOT / "runrecord", stdout=subprocess.PIPE, text=True, env=CLEAN)
    lines = [launcher.stdout.readline(), launcher.stdout.readline()]
    assert all(line.rstrip().endswith("up") for line in lines)
    children = psutil.Process(launcher.pid).children()
    assert len(children) == 2
    os.kill(launcher.pid, number)
    launcher.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while any(child.is_running() and child.status() != "zombie" for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
