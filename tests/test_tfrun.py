"""The launcher of TensorFlow's processes, with tiny programs that know nothing of TensorFlow."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from cookbook import ROOT
from tests.requirements import skip

BEGIN = """
import json, os, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
kind, index = config["task"]["type"], config["task"]["index"]
attempt = int(os.environ["TFRUN_ATTEMPT"])
def once():  # True in the first process of this task only
    path = os.path.join(os.path.dirname(__file__), f"{kind}{index}.seen")
    seen = os.path.exists(path)
    open(path, "w").close()
    return not seen
"""
SERVE = """
if kind != "chief":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    once()
    signal.sigwait({signal.SIGTERM})
    print("served", flush=True)
    sys.exit(0)
"""


def words_of(folder, program, *options):
    path = folder / "program.py"
    path.write_text(BEGIN + program)
    return [sys.executable, str(ROOT / "runrecord/tfrun.py"), *options, str(path), "config.yaml", "key=value"]


def tfrun(folder, program, *options, environment=None):
    """Runs to the end; returns (exit status, output)."""
    done = subprocess.run(
        words_of(folder, program, *options),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, done.stdout + done.stderr


def test_every_process_gets_its_task_and_the_same_cluster(tmp_path):
    program = 'print("SAYS", json.dumps([config, sys.argv[1:], attempt]))\n'
    # A real chief has work for its services; this one only waits until all of them are there.
    wait = """
while len([name for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".seen")]) < 3:
    time.sleep(0.02)
"""
    status, output = tfrun(tmp_path, program + SERVE + wait, "--num-workers", "2", "--chief", "--num-ps", "1")
    assert status == 0, output
    said = {name: json.loads(text) for name, text in re.findall(r"^\[(\S+)\] SAYS (.*)$", output, re.MULTILINE)}
    assert sorted(said) == ["chief:0", "ps:0", "worker:0", "worker:1"]
    clusters = [config["cluster"] for config, *_ in said.values()]
    assert all(cluster == clusters[0] for cluster in clusters)
    addresses = [address for members in clusters[0].values() for address in members]
    assert len(set(addresses)) == 4
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    for name, (config, words, attempt) in said.items():
        assert f"{config['task']['type']}:{config['task']['index']}" == name
        assert (words, attempt) == (["config.yaml", "key=value"], 0)
    assert output.count("served") == 3, "the chief is done: the services are ended in order"


def test_a_worker_that_fails_ends_the_others(tmp_path):
    begun = time.monotonic()
    program = "os.kill(os.getpid(), signal.SIGKILL) if index == 1 else time.sleep(60)"
    status, output = tfrun(tmp_path, program, "--num-workers", "3")
    assert status == 1
    assert re.search(r"tfrun: worker:1 \(pid \d+\) died of SIGKILL; the others are ended", output)
    assert time.monotonic() - begun < 20


def test_all_workers_start_anew(tmp_path):
    program = 'print("attempt", attempt, config["cluster"]["worker"])\nsys.exit(3 if index == 0 and attempt < 2 else 0)'
    status, output = tfrun(tmp_path, program, "--num-workers", "2", "--max-restarts", "2")
    assert status == 0, output
    assert re.findall(r"worker:0\] attempt (\d)", output) == ["0", "1", "2"]
    assert "ended with exit status 3" in output
    assert "restart 2 of 2" in output
    status, output = tfrun(tmp_path, program, "--num-workers", "2", "--max-restarts", "1")
    assert status == 1, output


def test_a_worker_of_a_chief_is_replaced_at_its_address(tmp_path):
    program = """
print("address", config["cluster"]["worker"][index] if kind == "worker" else "", flush=True)
if kind == "worker" and index == 1 and once():
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "chief":
    time.sleep(4)
"""
    options = ["--num-workers", "2", "--chief", "--num-ps", "1", "--max-restarts"]
    status, output = tfrun(tmp_path, program + SERVE, *options, "1")
    assert status == 0, output
    addresses = re.findall(r"worker:1\] address (\S+)", output)
    assert len(addresses) == 2
    assert addresses[0] == addresses[1]
    (tmp_path / "worker1.seen").unlink()
    status, output = tfrun(tmp_path, program + SERVE, *options, "0")
    assert status == 1
    assert "worker:1" in output
    assert "allows no further replacement" in output


def test_a_ps_that_dies_and_a_chief_that_fails_end_the_run(tmp_path):
    options = ["--num-workers", "1", "--chief", "--num-ps", "2", "--max-restarts", "5"]
    dies = 'os.kill(os.getpid(), signal.SIGSEGV) if (kind, index) == ("ps", 1) else None\n'
    dies += 'time.sleep(60 * (kind == "chief"))'
    status, output = tfrun(tmp_path, dies + SERVE, *options)
    assert status == 1
    assert re.search(r"ps:1 \(pid \d+\) died of SIGSEGV, and the variables that it held are lost", output)
    status, output = tfrun(tmp_path, 'sys.exit(7) if kind == "chief" else None' + SERVE, *options)
    assert status == 1
    assert re.search(r"chief:0 \(pid \d+\) ended with exit status 7", output)


def test_a_stale_tf_config_is_ignored_and_said(tmp_path):
    stale = {"TF_CONFIG": json.dumps({"cluster": {"worker": ["elsewhere:1"]}, "task": {"type": "worker", "index": 9}})}
    status, output = tfrun(tmp_path, "print('I am', index)", "--num-workers", "1", environment=stale)
    assert status == 0
    assert "TF_CONFIG of the caller's environment is ignored" in output
    assert "[worker:0] I am 0" in output


def test_given_ports_are_taken_and_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output = tfrun(tmp_path, "pass", "--num-workers", "1", "--port", str(port))
        assert status == 1
        assert f"port {port} on 127.0.0.1 cannot be used" in output
    status, output = tfrun(tmp_path, "print(config['cluster']['worker'])", "--num-workers", "2", "--port", str(port))
    assert status == 0 or "cannot be used" in output, "the next port may belong to somebody"
    if status == 0:
        assert f"['127.0.0.1:{port}', '127.0.0.1:{port + 1}']" in output


@pytest.mark.parametrize(
    "options, text",
    [
        (["--num-workers", "0"], "expected at least 1"),
        (["--num-workers", "1", "--chief"], "--num-ps"),
        (["--num-workers", "1", "--num-ps", "1"], "--chief"),
        (["--num-workers", "1", "--max-restarts", "-1"], "expected at least 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, text):
    status, output = tfrun(tmp_path, "pass", *options)
    assert status == 2
    assert text in output


def test_servers_cannot_be_reached_from_elsewhere(tmp_path):
    """TensorFlow's servers listen on all interfaces: here one like them, looked for from outside."""
    program = """
import socket
server = socket.create_server(("0.0.0.0", int(config["cluster"]["worker"][index].split(":")[1])))
print("PORT", server.getsockname()[1], flush=True)
for address in config["cluster"]["worker"]:
    host, port = address.split(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            break
        except OSError:
            time.sleep(0.05)
print("met", flush=True)
time.sleep(2)
"""
    words = words_of(tmp_path, program, "--num-workers", "2")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(4)]
    if "no network of its own" in lines[0]:
        process.kill()
        skip("namespaces", lines[0].strip())
    assert sum("met" in line for line in lines) == 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(re.search(r"PORT (\d+)", "".join(lines))[1])))
    assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_tfrun(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends the children of a killed process")
    words = words_of(tmp_path, 'print("here", flush=True)\ntime.sleep(60)', "--num-workers", "2")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(2):
        assert "here" in process.stdout.readline()
    until = time.monotonic() + 30
    while len(children := psutil.Process(process.pid).children(recursive=True)) != 2:
        assert time.monotonic() < until, children
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
