"""How runs end: nothing outlives its driver, signals are heeded at safe points, and the reason
is the worker's own error."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest

from cookbook import ROOT, UserError, evidence, processes
from cookbook.evidence import causes
from cookbook.evidence.watch import Watcher
from cookbook.files import read_log
from runrecord import Diverged, RunRecord, read_records
from tests.helpers import CLEAN, Driver, Silent, latest, wait_for

CLUSTER = {"start_timeout_seconds": 60, "stall_timeout_seconds": 300}


DRIVER = """
import sys, time
from cookbook import processes
with processes.Watchdog(sys.argv[1], 1):
    # A launcher whose worker leaves its group and session, and heeds no SIGTERM, as mpirun's may.
    worker = "trap : TERM; while :; do sleep 0.2; done"
    processes.start(["sh", "-c", f"touch $TMPDIR/left; setsid sh -c '{worker}' & sleep 60"], sys.argv[1])
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_driver(number):
    run_id = uuid.uuid4().hex
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, run_id], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "started\n"
    assert len(wait_for(lambda: len(found := processes.of_run(run_id)) >= 3 and found)) >= 3
    driver.send_signal(number)
    driver.wait()
    wait_for(lambda: not processes.of_run(run_id) and not Path(tempfile.gettempdir(), f"cb-{run_id[:8]}").exists())


def test_the_watchdog_ends_with_its_driver_and_harms_nothing_before():
    run_id = uuid.uuid4().hex
    with processes.Watchdog(run_id, 1) as watchdog:
        child = processes.start(["sh", "-c", "mktemp; exec sleep 60"], run_id)
        made = Path(child.stdout.readline().strip())
        assert made.exists() and made.parent.name == f"cb-{run_id[:8]}" and made.parent.stat().st_mode & 0o777 == 0o700
        folder = made.parent.resolve()  # where TMPDIR has a long name, what is used is a link to it
        os.killpg(child.pid, 0)
        assert os.getpgid(watchdog.process.pid) not in (os.getpgid(0), os.getpgid(child.pid))
        assert watchdog.process.pid not in [process.pid for process in processes.of_run(run_id)]
    assert watchdog.process.wait(5) == 0
    assert not made.parent.exists() and not folder.exists() and folder.parent == Path(tempfile.gettempdir())
    assert child.poll() is None, "who has said that all is done, has ended his processes himself"
    processes.stop(run_id, 1)
    child.wait()


def test_a_resume_ends_what_is_left_of_the_earlier_try():
    run_id = uuid.uuid4().hex
    child = processes.start(["sleep", "60"], run_id, output=subprocess.DEVNULL)
    wait_for(lambda: psutil.Process(child.pid).name() == "sleep")
    assert processes.end_leftovers(run_id, 1) == [f"sleep (pid {child.pid})"]
    child.wait()
    assert processes.end_leftovers(run_id, 1) == []


LISTENER = """
import sys, time
from cookbook import signals
signals.PATIENCE_SECONDS = 1
signals.listen()
print("ready", flush=True)
began = time.monotonic()
try:
    try:
        while sys.argv[1] == "safe" and time.monotonic() - began < 30:
            with open("/dev/null"):  # a place where an exception would do harm
                time.sleep(0.2)
            signals.check()
        time.sleep(30)
    finally:
        print(f"in {time.monotonic() - began:.1f}", flush=True)
except signals.Interrupted as error:
    print("interrupted by", error, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("place", ["safe", "stuck"])
def test_a_signal_ends_a_run_at_a_safe_point_or_when_patience_ends(name, place):
    # The suite itself may have been started by nohup.
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, place],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    seconds, said = process.communicate(timeout=15)[0].splitlines()
    assert said == f"interrupted by {name}"
    assert (float(seconds.split()[1]) < 0.9) == (place == "safe")


def test_a_reader_that_goes_away_interrupts_the_run_in_order():
    """`make recipe-x | head`: what is written then goes nowhere, and the next safe point ends the run."""
    script = """
from cookbook import signals
from cookbook.report.console import console
for number in range(1000):
    console.print("x" * 1000, markup=False)
try:
    signals.check()
except signals.Interrupted as error:
    open(__import__("sys").argv[1], "w").write(str(error))
"""
    with tempfile.NamedTemporaryFile("r") as file:
        words = ["bash", "-c", '"$0" -c "$1" "$2" | head -c 10', sys.executable, script, file.name]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert (done.stdout, done.stderr, file.read()) == ("x" * 10, "", "SIGPIPE")


def test_a_pipe_that_does_not_wait_for_its_reader_is_made_one_that_does():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "import os; from cookbook import signals; signals.listen(); print(os.get_blocking(1), os.get_blocking(2))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writing, stderr=writing, check=True)
    assert os.read(reading, 99) == b"True True\n"
    os.close(reading)
    os.close(writing)


def test_nohup_is_heeded():
    words = ["nohup", sys.executable, "-c", LISTENER, "safe"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert "interrupted by SIGTERM" in process.communicate(timeout=15)[0]


HOROVOD = """\
[0]<stdout>:loading
[1]<stderr>:Traceback (most recent call last):
[1]<stderr>:  File "main.py", line 3, in <module>
[1]<stderr>:    import nothing
[1]<stderr>:ModuleNotFoundError: No module named 'nothing'
[0]<stderr>:Traceback (most recent call last):
[0]<stderr>:  File "main.py", line 30, in <module>
[0]<stderr>:horovod.common.exceptions.HorovodInternalError: Connection closed by peer
Traceback (most recent call last):
  File "horovodrun", line 8, in <module>
RuntimeError: Horovod detected that one or more processes exited with non-zero status
"""
TORCHRUN = """\
[default0]:[rank0]: Traceback (most recent call last):
[default0]:[rank0]:   File "main.py", line 3, in <module>
[default0]:[rank0]: ValueError: first
[default0]:[rank0]:
[default0]:[rank0]: During handling of the above exception, another exception occurred:
[default0]:[rank0]:
[default0]:[rank0]: Traceback (most recent call last):
[default0]:[rank0]:   File "main.py", line 5, in <module>
[default0]:[rank0]: OSError: [Errno 28] No space left on device: '/x/last.partial'
Traceback (most recent call last):
  File "torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
TORCHRUN_EXIT = """\
[default0]:going on from last.pt
[default1]:momentum is missing in config.yaml
------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_10:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 3)
"""
TORCHRUN_REFUSED = """\
[default1]:backend=nccl needs NVIDIA GPUs, and this machine shows none to PyTorch: set backend=gloo or auto
[default0]:backend=nccl needs NVIDIA GPUs, and this machine shows none to PyTorch: set backend=gloo or auto
W1127 11:07:34.800000 22603 api.py:1028] Sending process 22611 closing signal SIGTERM
Traceback (most recent call last):
  File "torchrun", line 10, in <module>
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 22611)  (SIGTERM)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-27_11:07:34
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 22612)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""
TORCHRUN_KILLED = """\
[default0]:[rank0]: Traceback (most recent call last):
[default0]:[rank0]:     return Variable._execution_engine.run_backward(
[default0]:[rank0]: RuntimeError: [pair.cc:537] Read error [127.0.0.1]:35033: Connection reset by peer
Traceback (most recent call last):
  File "torchrun", line 10, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 27335)  (SIGKILL)
"""
HOROVOD_REFUSED = """\
[0]<stderr>:data_dir=/x/flights cannot be read: there is no train_images.npy
[1]<stderr>:data_dir=/x/flights cannot be read: there is no train_images.npy
Process 0 exit with status code 1.
[1]<stderr>:Terminated
Traceback (most recent call last):
  File "horovodrun", line 6, in <module>
RuntimeError: Horovod detected that one or more processes exited with non-zero status. The first process to do so was:
Process name: 0
Exit code: 1
"""
HOROVOD_KILLED = """\
[0]<stderr>:Traceback (most recent call last):
[0]<stderr>:  File "main.py", line 117, in train_epoch
[0]<stderr>:horovod.common.exceptions.HorovodInternalError: Horovod has been shut down.
Process 1 exit with status code 137.
[0]<stderr>:Terminated
Traceback (most recent call last):
  File "horovodrun", line 6, in <module>
RuntimeError: Horovod detected that one or more processes exited with non-zero status. The first process to do so was:
Process name: 1
Exit code: 137
"""
HOROVOD_ITSELF = """\
[0]<stderr>:a warning
Traceback (most recent call last):
  File "horovodrun", line 6, in <module>
TimeoutError: Horovodrun was unable to start all tasks
"""
TFRUN = """\
[worker:0] started
[worker:1] data_dir=/x cannot be read: it is gone
tfrun: worker:1 (pid 12) ended with exit status 1; the others are ended
"""
MPI = """\
[1,0]<stderr>:checkpoint /x/last.pt is from another model
prterun has detected that one process exited with status 1
"""
PLAIN = """\
starting
Traceback (most recent call last):
  File "main.py", line 5, in <module>
    x
pyspark.errors.AnalysisException: [UNRESOLVED_COLUMN] A column `x` cannot be resolved
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (HOROVOD, "rank 1: ModuleNotFoundError: No module named 'nothing'"),
        (TORCHRUN, "rank 0: OSError: [Errno 28] No space left on device: '/x/last.partial'"),
        (TORCHRUN_EXIT, "rank 1: momentum is missing in config.yaml"),
        (
            TORCHRUN_REFUSED,
            "rank 1: backend=nccl needs NVIDIA GPUs, and this machine shows none to PyTorch: set backend=gloo or auto",
        ),
        (TORCHRUN_KILLED, "rank 1 was ended by SIGKILL: it may have needed more memory than there is"),
        (HOROVOD_REFUSED, "data_dir=/x/flights cannot be read: there is no train_images.npy"),
        (
            TORCHRUN_KILLED.replace("-9 (pid", "-24 (pid"),
            "rank 1 was ended by SIGXCPU: this shell limits the time that a process may compute (ulimit -t)",
        ),
        (
            TORCHRUN_KILLED.replace("-9 (pid", "-7 (pid"),
            "rank 1 was ended by SIGBUS: shared memory (/dev/shm) may be full",
        ),
        (HOROVOD_KILLED, "rank 1 was ended by SIGKILL: it may have needed more memory than there is"),
        (HOROVOD_ITSELF, "TimeoutError: Horovodrun was unable to start all tasks"),
        (TFRUN, "worker:1: data_dir=/x cannot be read: it is gone"),
        (MPI, "checkpoint /x/last.pt is from another model"),
        (PLAIN, "pyspark.errors.AnalysisException: [UNRESOLVED_COLUMN] A column `x` cannot be resolved"),
        ("all is well\n", None),
        ("", None),
    ],
)
def test_the_cause_is_what_a_worker_said(text, cause):
    assert causes.error_in(text) == cause


def test_of_a_very_long_log_the_begin_and_the_end_are_read(tmp_path):
    (tmp_path / "a.log").write_text("begin" + "x" * 9_990 + "tail!")
    assert read_log(tmp_path / "a.log", most=10) == "begin\n[9,990 bytes are left out]\ntail!"
    assert read_log(tmp_path / "a.log", start=9_995, most=10) == "tail!"


def test_words_of_an_earlier_try_are_no_cause(tmp_path):
    (tmp_path / "horovodrun.log").write_text(HOROVOD)
    before = causes.sizes(tmp_path)
    assert causes.cause_of(tmp_path, before) is None
    with open(tmp_path / "horovodrun.log", "a") as file:
        file.write(MPI)
    assert causes.cause_of(tmp_path, before) == "checkpoint /x/last.pt is from another model"


def watcher_of(folder, sees_processes=True, **cluster):
    (folder / "workers").mkdir()
    (folder / "logs").mkdir()
    return Watcher(folder, uuid.uuid4().hex, Silent(), 2, CLUSTER | cluster, sees_processes)


def test_a_worker_that_came_and_went_while_the_driver_was_held_up_is_noted(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cookbook.evidence.watch.time.monotonic", lambda: now[0])
    watcher = watcher_of(tmp_path)
    for pid, pause in ((2**22 + 1, 0.1), (2**22 + 2, 60.0)):  # larger than any process has
        with RunRecord(tmp_path, pid % 2, 2, pid=pid):
            pass
        now[0] += pause
        watcher()
    assert (watcher.seen_pids, watcher.unwatched_pids) == (set(), {2**22 + 2})


def test_a_start_that_never_comes_ends_at_its_bound_and_says_why(tmp_path):
    watcher = watcher_of(tmp_path, start_timeout_seconds=0.2)
    (tmp_path / "logs/torchrun.log").write_text(TORCHRUN)
    watcher(waiting=True)
    time.sleep(0.3)
    watcher(waiting=True)  # a job in the queue has not begun to start
    time.sleep(0.3)
    with pytest.raises(
        UserError, match=r"none of 2 workers has started within 0 s: rank 0: OSError: \[Errno 28\]"
    ) as error:
        watcher()
    assert "cluster.start_timeout_seconds" in str(error.value)
    assert "stall" not in str(error.value)


def test_who_never_started_needs_no_more_patience(tmp_path):
    watcher = watcher_of(tmp_path, stall_timeout_seconds=0.2)
    with RunRecord(tmp_path, 0, 1, role="driver"):
        watcher()
        time.sleep(0.3)
        (tmp_path / "logs/ray.log").write_text("waiting for a node\n")
        with pytest.raises(UserError, match="none of 2 ever started: ray: waiting for a node") as error:
            watcher()
    assert "stall_timeout_seconds" not in str(error.value)


@pytest.mark.parametrize("pids", [(1, 1), (2**22 + 1, 2**22 + 2)])
def test_a_hang_of_workers_on_other_machines_names_the_slowest(tmp_path, pids):
    """Their process numbers mean nothing here: one of this machine's processes may have the same, or none."""
    watcher = watcher_of(tmp_path, sees_processes=False, stall_timeout_seconds=0.2)
    with (
        RunRecord(tmp_path, 0, 2, host="first", pid=pids[0]) as ahead,
        RunRecord(tmp_path, 1, 2, host="second", pid=pids[1]) as behind,
    ):
        ahead.rows(0, 4, np.arange(8))
        behind.rows(0, 3, np.arange(8))
        watcher()
        time.sleep(0.3)
        with pytest.raises(UserError) as error:
            watcher()
    slowest = f"rank 1 (pid {pids[1]} on second): epoch 1, step 4; rank 0 (pid {pids[0]} on first): epoch 1, step 5"
    assert f"slowest first: {slowest}." in str(error.value)


def test_a_loss_that_is_no_number_ends_the_run_there(tmp_path):
    with RunRecord(tmp_path, 0, 2) as run:
        assert run.finite(0.5, 0, 0) == 0.5
        run.checkpoint("/run/checkpoints/last.pt", 1, 0)
    with pytest.raises(Diverged), RunRecord(tmp_path, 1, 2) as run:
        run.finite(float("nan"), 1, 6)
    verdict = evidence.judge(read_records(tmp_path), evidence.Asked(num_workers=2))
    assert "Diverged: train/loss is nan at epoch 2, step 7 on rank 1" in verdict.diverged
    assert "the last good checkpoint is /run/checkpoints/last.pt (epoch 1, step 0)" in verdict.diverged


def test_a_first_step_that_diverges_has_no_checkpoint(tmp_path):
    with RunRecord(tmp_path, 0, 1) as run, pytest.raises(Diverged, match="no checkpoint was written before"):
        run.finite(float("inf"), 0, 0)


@pytest.mark.full
@pytest.mark.parametrize("words", [("recipe=horovod", "recipe.controller=mpi"), ("recipe=kubeflow",)])
def test_kill_9_of_the_driver_while_workers_train(tmp_path, words):
    driver = Driver(*words, output_root=tmp_path)
    driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()), 200)
    driver.kill_driver()
    driver.process.wait()
    assert driver.no_process_left(20)


@pytest.mark.full
def test_a_rate_that_is_far_too_high_stops_at_its_step(tmp_path):
    driver = Driver("recipe=pytorch", "recipe.learning_rate=1e9", output_root=tmp_path)
    status, output = driver.end()
    assert status == 1, output
    content, _ = latest(tmp_path, "pytorch")
    assert "Diverged: train/loss is " in content["reason"]
    assert content["resumable"] is False


@pytest.mark.full
def test_a_closed_terminal(tmp_path):
    """The driver's terminal is a pseudo-terminal that is closed while workers train."""
    master, slave = os.openpty()
    words = [sys.executable, "-m", "cookbook", "recipe=horovod", f"output_root={tmp_path}"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=CLEAN, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    os.set_blocking(master, False)

    def training():
        with contextlib.suppress(BlockingIOError):
            os.read(master, 1 << 16)
        return [path for path in tmp_path.glob("horovod/*/workers/*") if '"rows"' in path.read_text()]

    wait_for(training, 120)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 130
    content = json.loads((tmp_path / "horovod/latest/run.json").read_text())
    assert content["reason"] == "interrupted by SIGHUP during stage 'run'"
    assert content["interrupted_by"] == "SIGHUP"
