"""A slow or hung run explains itself: who is behind, in which line, and what the others wait for."""

import contextlib
import gzip
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cookbook import UserError
from cookbook.evidence import diagnosis, diagnosis_page, inspector, probe, stragglers
from cookbook.evidence.doing import IN_BACKWARD, exchange_of
from cookbook.evidence.seen import Frame, Thread, parse_faulthandler
from cookbook.evidence.watch import Watcher
from cookbook.places.local import probe_here
from cookbook.places.slurm import look_at
from cookbook.report import pages
from cookbook.tools import diagnose
from cookbook.tools.chaos import inject
from runrecord import RunRecord, read_records
from tests.helpers import ROOT, Driver, copy_checkout, latest
from tests.test_hosts import Place, needs_hosts

PY_SPY = Path(sys.executable).with_name("py-spy")
MARK = "# the fault"
STEP = "        loss = train_step(training.model, training.optimizer, images, labels, batch_size, config)\n"
# fault -> (file of the recipe, what is replaced there, by what)
FAULTS = {
    "stopped": ("main.py", "", ""),
    "endless loop in the data": (
        "data.py",
        "        return self.images[ids].astype(np.float32) / self.max_value, np.asarray(self.labels[ids])\n",
        "        self.num_reads = getattr(self, 'num_reads', 0) + 1\n"
        f"        while os.environ['RANK'] == '1' and self.num_reads > 5: pass  {MARK}\n"
        "        return self.images[ids].astype(np.float32) / self.max_value, np.asarray(self.labels[ids])\n",
    ),
    "different exchanges": (
        "main.py",
        STEP,
        "        if step == 5 and rank == 0:\n"
        "            dist.barrier()\n"
        "        if step == 5 and rank == 1:\n"
        f"            dist.broadcast(torch.zeros(1), src=0)  {MARK}\n" + STEP,
    ),
    "deadlock": (
        "main.py",
        STEP,
        "        if step == 5 and rank == 1:\n"
        "            import threading\n"
        "            first_lock, second_lock = threading.Lock(), threading.Lock()\n"
        "            def other():\n"
        "                with second_lock:\n"
        "                    time.sleep(1)\n"
        "                    with first_lock:\n"
        "                        pass\n"
        "            threading.Thread(target=other, name='other', daemon=True).start()\n"
        "            with first_lock:\n"
        "                time.sleep(1)\n"
        f"                with second_lock:  {MARK}\n"
        "                    pass\n" + STEP,
    ),
    "ten times slower": (
        "main.py",
        STEP,
        "        if rank == 1:\n"
        "            until = time.perf_counter() + 0.6\n"
        "            while time.perf_counter() < until:\n"
        f"                sum(range(20000))  {MARK}\n" + STEP,
    ),
}


def broken(fault, to):
    """A copy of the checkout with a fault in the pytorch recipe. Returns (copy, `file:line` of the fault or "")."""
    file, old, new = FAULTS[fault]
    path = copy_checkout(to) / "recipes/pytorch" / file
    text = path.read_text()
    if new:
        assert text.count(old) == 1
        text = text.replace(old, new)
        text = text.replace("import json\n", "import json\nimport os\n", 1) if file == "data.py" else text
        path.write_text(text)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if MARK in line]
    return to, f"{file}:{lines[0]} in " if lines else ""


def hang(fault, tmp_path, *words):
    """Runs with a fault until the driver ends the run. Returns (diagnosis.json, page, output, line of the fault)."""
    checkout, place = broken(fault, tmp_path / "checkout")
    stall = "cluster.stall_timeout_seconds=20"
    driver = Driver("recipe=pytorch", stall, *words, output_root=tmp_path / "out", checkout=checkout)
    if fault == "stopped":
        driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()), 1200)
        inject.stop(driver.pid_of(1))
    status, output = driver.end(1200)
    assert status == 1, output
    assert driver.no_process_left(30)
    content, folder = latest(tmp_path / "out", "pytorch")
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["says"].rstrip(".") in content["reason"], output
    assert "diagnosis.html" in (folder / "report.html").read_text()
    return found, (folder / "diagnosis.html").read_text(), output, place


@pytest.mark.full
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "ten times slower"])
def test_a_hang_names_rank_and_line(fault, tmp_path):
    found, page, output, place = hang(fault, tmp_path)
    says = found["says"]
    assert place in says, output
    if fault == "different exchanges":
        assert found["behind"] == [0, 1], says
        assert "rank 0 is in barrier" in says
        assert "rank 1 is in broadcast" in says
    else:
        assert found["behind"] == [1], says
        assert "Who waits: rank 0 in the exchange of gradients at main.py:" in says
    assert {"stopped": "it is stopped", "deadlock": "they look like a deadlock"}.get(fault, "") in says
    assert "Flight Recorder" in page
    assert "MainThread" in page


@needs_hosts
@pytest.mark.full
@pytest.mark.parametrize("fault", ["stopped", "endless loop in the data"])
def test_a_hang_on_hosts_with_process_numbers_of_their_own(fault, tmp_path):
    hosts = Place(tmp_path / "hosts", own_processes=True)
    try:
        found, _, output, place = hang_on_hosts(fault, tmp_path, hosts)
        assert found["behind"] == [1], output
        assert place in found["says"]
        assert "on host2) holds the others up" in found["says"]
        assert "Who waits: rank 0 in the exchange of gradients" in found["says"]
    finally:
        hosts.hosts.down()


def hang_on_hosts(fault, tmp_path, hosts):
    if fault != "stopped":
        return hang(fault, tmp_path, *hosts.words)
    checkout, place = broken(fault, tmp_path / "checkout")
    words = ["recipe=pytorch", "cluster.stall_timeout_seconds=20", *hosts.words]
    driver = Driver(*words, output_root=tmp_path / "out", checkout=checkout)
    driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()), 1200)
    inject.stop(process_of(driver.pid_of(1), hosts.pids(2)))
    status, output = driver.end(1200)
    assert status == 1, output
    folder = latest(tmp_path / "out", "pytorch")[1]
    return json.loads((folder / "diagnosis.json").read_text()), "", output, place


def process_of(inner, pids):
    """The process that has the number `inner` in its own namespace."""
    for pid in pids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if status.partition("NSpid:")[2].splitlines()[0].split()[-1] == str(inner):
                return pid
    raise AssertionError(f"no process is number {inner} there")


@pytest.mark.full
def test_one_rank_ten_times_slower_is_named_while_the_run_goes_on_and_afterwards(tmp_path):
    checkout, place = broken("ten times slower", tmp_path / "checkout")
    words = ["recipe=pytorch", "scale=smoke"]
    driver = Driver(*words, output_root=tmp_path / "out", checkout=checkout)
    driver.wait_until(lambda: sum(event["event"] == "rows" for event in driver.events()) > 6, 1200)
    run = tmp_path / "out/pytorch/latest"
    asked = subprocess.run(["make", "diagnose", f"RUN={run}"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert asked.returncode == 0, asked.stderr
    found = json.loads((run / "diagnosis.json").read_text())
    assert found["behind"] == [1], asked.stdout
    assert "The run goes on, but rank 1 (pid" in asked.stdout
    assert place in found["says"], found["says"]
    status, output = driver.end(1200)
    assert status == 0, output
    content, folder = latest(tmp_path / "out", "pytorch")
    assert content["paces"]["slow_rank"] == 1
    fast, slow = content["paces"]["ranks"]
    assert fast["waiting_seconds"] > 0.5 > 5 * slow["waiting_seconds"]
    assert f"rank 1 on {slow['host']} is the slowest in" in output
    assert "Who was slow" in (folder / "report.html").read_text()
    with pytest.raises(UserError, match=r"does not go on at this moment \(status: ok\); the diagnosis that was made"):
        diagnose.diagnose(folder)


# Everything below needs no run.

LOOPS = """
import os, sys, threading, time
sys.path[:0] = [sys.argv[1]]
from runrecord import RunRecord
def spin():
    while True: pass
def sleep():
    time.sleep(1000)
with RunRecord(sys.argv[2], int(sys.argv[3]), 2):
    print("ready", flush=True)
    {"0": sleep, "1": spin}[sys.argv[3]]()
"""


@pytest.fixture
def two_workers(tmp_path):
    """Two processes below recipes/demo/: rank 0 sleeps, rank 1 is in an endless loop."""
    program = tmp_path / "recipes/demo/main.py"
    program.parent.mkdir(parents=True)
    program.write_text(LOOPS)
    started = []
    for rank in "01":
        argv = [sys.executable, str(program), str(ROOT / "runrecord"), str(tmp_path / "run"), rank]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
    for process in started:
        assert process.stdout.readline() == "ready\n"
    yield tmp_path / "run", started
    for process in started:
        process.kill()
        process.wait()


def answers_of(folder, **changes):
    asker = inspector.Inspector(folder, "no-such-run", "demo", lambda spec: {})
    return probe_here({**asker._spec(), "seconds": 0.5, **changes})


def test_what_a_probe_sees_of_real_processes(two_workers):
    folder, (asleep, spinning) = two_workers
    found = diagnosis.make(read_records(folder), answers_of(folder), "demo", time.time())
    first, second = found.workers
    assert (first.pid, second.pid) == (asleep.pid, spinning.pid)
    assert (first.doing.kind, second.doing.kind) == ("idle", "busy")
    assert first.doing.frame.where == "main.py:8 in sleep"
    assert first.doing.frame.source == "time.sleep(1000)"
    assert second.doing.frame.function == "spin"
    assert first.seen.how == "py-spy"
    assert second.seen.cpu_share > 2 * first.seen.cpu_share
    asleep.send_signal(signal.SIGSTOP)
    spinning.kill()
    spinning.wait()
    found = diagnosis.make(read_records(folder), answers_of(folder), "demo", time.time())
    assert [one.doing.kind for one in found.workers] == ["stopped", "gone"]
    assert found.workers[0].doing.frame.function == "sleep", "stacks of a stopped process can be read, too"
    assert found.behind == (1,), "a process that is gone is worse than one that is stopped"


def test_without_py_spy_a_process_writes_its_stacks_itself(two_workers):
    folder, (asleep, spinning) = two_workers
    found = diagnosis.make(read_records(folder), answers_of(folder, py_spy=""), "demo", time.time())
    assert [one.seen.how for one in found.workers] == ["faulthandler"] * 2
    assert [one.doing.frame.function for one in found.workers] == ["sleep", "spin"]
    assert [process.poll() for process in (asleep, spinning)] == [None, None], "the signal has ended nobody"
    assert len(list(folder.glob("workers/*.stacks"))) == 2


def test_the_file_for_stacks_goes_when_it_is_empty(tmp_path):
    with RunRecord(tmp_path, 0, 1):
        assert len(list(tmp_path.glob("workers/*.stacks"))) == 1
    assert [path.suffix for path in tmp_path.glob("workers/*")] == [".jsonl"]
    with RunRecord(tmp_path, 0, 1, pid=1):
        assert not list(tmp_path.glob("workers/*.stacks")), "another process's record"


def test_stacks_that_python_writes():
    text = (
        'Thread 0x00007f1 (most recent call first):\n  File "/x/queue.py", line 3 in get\n\n'
        'Current thread 0x00007f2 (most recent call first):\n  File "/a b/recipes/demo/main.py", line 12 in <module>\n'
    )
    first, second = parse_faulthandler(text)
    assert (first.name, first.frames) == ("0x00007f1", (Frame("get", "/x/queue.py", 3),))
    assert (second.name, second.frames) == ("MainThread", (Frame("<module>", "/a b/recipes/demo/main.py", 12),))
    assert parse_faulthandler("Fatal Python error") == ()


PACKAGES = "/env/lib/python3.11/site-packages"
OWN = Frame("step", "/code/recipes/demo/main.py", 7)
ALL_REDUCE = Frame("all_reduce", f"{PACKAGES}/torch/distributed/distributed_c10d.py", 3000)
BACKWARD = Frame("_engine_run_backward", f"{PACKAGES}/torch/autograd/graph.py", 800)


@pytest.mark.parametrize(
    ("frames", "active", "expected"),
    [
        ([ALL_REDUCE, OWN], False, "all_reduce"),
        ([ALL_REDUCE, OWN], True, "all_reduce"),
        ([BACKWARD, OWN], False, IN_BACKWARD),
        ([BACKWARD, OWN], True, ""),
        ([OWN], False, ""),
    ],
)
def test_exchanges_by_their_stacks(frames, active, expected):
    assert exchange_of(Thread("MainThread", active, tuple(frames)), active) == expected


def process(pid, frames, state="S", active=False, number=None, samples=()):
    """A process in probe.py's words."""
    stack = [{"name": "MainThread", "active": active, "frames": [[f.function, f.file, f.line] for f in frames]}]
    last = {"number": number, "name": "gloo:all_reduce", "sizes": [[4]], "done": False}
    return {
        **{"pid": pid, "ppid": 1, "name": "python", "words": "python main.py", "state": state, "cpu_share": 0.1},
        **{"cpu_seconds": 3.0, "waits_in": "futex", "rank": None, "stacks": stack, "written": "", "why": ""},
        **{"samples": list(samples), "exchanges": {"last": [last]} if number else None},
    }


def made(tmp_path, *found, moving=False):
    """The diagnosis of a run whose ranks are these processes of the host `one`."""
    for rank, one in enumerate(found):
        run = RunRecord(tmp_path, rank, len(found), host="one", pid=one["pid"])
        run._file.close()
    return diagnosis.make(
        read_records(tmp_path), {"one": {"host": "one", "processes": found}}, "demo", time.time() + 60, moving
    )


def test_who_is_in_no_exchange_holds_the_others_up(tmp_path):
    busy = Frame("read", "/code/recipes/demo/data.py", 30)
    waiting = [process(10 + rank, [ALL_REDUCE, OWN]) for rank in range(3)]
    found = made(tmp_path, *waiting, process(20, [busy, OWN], active=True))
    assert found.behind == (3,)
    assert found.says.startswith("rank 3 (pid 20 on one) holds the others up: it computes, at data.py:30 in read")
    assert found.says.endswith("Who waits: ranks 0, 1, 2 in all_reduce at main.py:7 in step.")


def test_all_in_exchanges(tmp_path):
    same = [process(pid, [ALL_REDUCE, OWN], number=9) for pid in (1, 2, 3)]
    found = made(tmp_path / "same", *same)
    assert found.behind == ()
    assert "none of them is behind. Look at the network" in found.says
    other = replace(OWN, line=9)
    found = made(tmp_path / "other", *same[:2], process(3, [ALL_REDUCE, other], number=9))
    assert found.behind == (2,), "the majority is held to be right"
    assert "number 9, gloo:all_reduce of [[4]], not over" in found.says
    found = made(tmp_path / "number", *same[:2], process(3, [ALL_REDUCE, OWN], number=8))
    assert found.behind == (2,)
    assert "rank 2 came to exchange number 8 only, others to number 9" in found.says


def test_where_no_exchange_is_known_nobody_is_blamed_by_a_guess(tmp_path):
    loop = Frame("select", "/usr/lib/python3.11/selectors.py", 468)
    found = made(tmp_path / "idle", process(1, [loop]), process(2, [loop]))
    assert found.behind == ()
    assert found.says.startswith("No rank is in an exchange that is known here, and none is clearly behind. rank 0: it")
    found = made(tmp_path / "alone", process(1, [OWN], active=True))
    assert found.says.startswith("rank 0 (pid 1 on one) has stopped writing: it computes, at main.py:7 in step")
    found = made(tmp_path / "one", process(1, [loop]), process(2, [OWN], active=True))
    assert found.behind == (1,)


def test_while_the_run_goes_on_the_one_that_waits_least_is_slow(tmp_path):
    """What a rank does at one moment blames nobody then."""
    waits, works = process(1, [ALL_REDUCE, OWN])["stacks"], process(1, [replace(OWN, line=30)], active=True)["stacks"]
    first = process(1, [replace(OWN, line=30)], active=True, samples=[waits] * 7 + [works])
    second = process(2, [ALL_REDUCE, OWN], samples=[works] * 7 + [waits])
    found = made(tmp_path / "slow", first, second, moving=True)
    assert found.behind == (1,)
    assert "it was in exchanges at 12% of the moments at which it was looked at, the others at 88%" in found.says
    assert "Most often it is at main.py:30 in step" in found.says
    found = made(tmp_path / "equal", first, {**first, "pid": 2}, moving=True)
    assert (found.behind, "no rank makes the others wait clearly" in found.says) == ((), True)


def test_a_recipe_s_own_function_is_no_exchange():
    frame = Frame("broadcast_state", "/code/recipes/horovod/main.py", 3)
    assert exchange_of(Thread("MainThread", False, (frame,)), False) == ""
    library = Frame("synchronize", f"{PACKAGES}/horovod/torch/mpi_ops.py", 3)
    assert exchange_of(Thread("MainThread", False, (library, frame)), False) == "synchronize"


def test_a_worker_that_waits_for_its_data_loader(tmp_path):
    loader = Frame("_try_get_data", f"{PACKAGES}/torch/utils/data/dataloader.py", 1200)
    stuck = process(30, [Frame("read", "/code/recipes/demo/data.py", 5)], active=True) | {"ppid": 11}
    for rank, pid in enumerate((10, 11)):
        RunRecord(tmp_path, rank, 2, host="one", pid=pid)._file.close()
    processes = [process(10, [ALL_REDUCE, OWN]), process(11, [loader, OWN]), stuck]
    found = diagnosis.make(
        read_records(tmp_path), {"one": {"host": "one", "processes": processes}}, "demo", time.time() + 60
    )
    assert found.behind == (1,)
    assert "it waits for a process of its data loader (pid 30), and that computes, at data.py:5 in read" in found.says


DUMP = """2026-01-31 12:00:00
Full thread dump OpenJDK 64-Bit Server VM (17.0.15 mixed mode, sharing):

"main" #1 prio=5 os_prio=0 cpu=900.00ms elapsed=60.00s tid=0x00007f01 nid=0x2f waiting on condition  [0x00007f00]
   java.lang.Thread.State: WAITING (parking)
\tat jdk.internal.misc.Unsafe.park(java.base@17.0.15/Native Method)
\t- parking to wait for  <0x00000000e0c1f7b0> (a java.util.concurrent.CountDownLatch$Sync)
\tat org.apache.spark.rpc.netty.NettyRpcEnv.awaitTermination(NettyRpcEnv.scala:356)

"Executor task launch worker for task 0.0 in stage 3.0 (TID 5)" #57 daemon prio=5 os_prio=0 tid=0x01 nid=0x5 runnable
   java.lang.Thread.State: RUNNABLE
\tat %s
\tat org.apache.spark.%s

"VM Thread" os_prio=0 cpu=20.00ms elapsed=60.00s tid=0x00007f03 nid=0x3 runnable
"""
COMPUTES = DUMP % (
    "java.util.regex.Pattern$Loop.match(java.base@17.0.15/Pattern.java:4900)",
    "sql.catalyst.expressions.RegExpUtils$.replace(regexpExpressions.scala:60)",
)
IN_PYTHON = DUMP % (
    "sun.nio.ch.EPoll.wait(java.base@17.0.15/Native Method)",
    "api.python.BasePythonRunner$ReaderInputStream.read(PythonRunner.scala:1002)",
)
NO_TASK = COMPUTES.replace("Executor task launch worker", "another thread")


@pytest.mark.parametrize(
    ("dumps", "behind", "says"),
    [
        (
            (COMPUTES, NO_TASK),
            (0,),
            "it works on task 0.0 in stage 3.0 (TID 5), at regexpExpressions.scala:60 in RegExpUtils$.replace",
        ),
        ((IN_PYTHON, NO_TASK), (0,), "the Python process of task 0.0 in stage 3.0 (TID 5) (pid 30), and that computes"),
        ((NO_TASK, NO_TASK), (), "All ranks are in the same exchange, no task: it waits until the driver has one"),
    ],
)
def test_executors_of_spark_by_their_thread_dumps(tmp_path, monkeypatch, dumps, behind, says):
    texts = dict(zip((10, 11), dumps, strict=True))
    monkeypatch.setattr(probe, "written_on", lambda number, pid, path: texts[pid])
    processes = [process(pid, []) | {"name": "java", "stacks": None, "dump": probe.thread_dump(pid)} for pid in texts]
    daemon = process(20, []) | {"ppid": 10, "stacks": None}
    python = process(30, [Frame("score", "/run/userFiles/models.py", 5)], active=True) | {"ppid": 20}
    for rank, pid in enumerate(texts):
        RunRecord(tmp_path, rank, 2, host="one", pid=pid)._file.close()
    answers = {"one": {"host": "one", "processes": [*processes, daemon, python]}}
    found = diagnosis.make(read_records(tmp_path), answers, "spark", time.time() + 60)
    assert found.behind == behind
    assert says in found.says


def test_a_machine_that_does_not_answer_is_a_note_and_nobody_is_blamed(tmp_path):
    RunRecord(tmp_path, 0, 1, host="far", pid=5)._file.close()
    found = diagnosis.make(read_records(tmp_path), {"far": "Connection refused"}, "demo", time.time())
    assert (found.behind, found.notes) == ((), ("far could not be looked at: Connection refused",))
    assert found.workers[0].doing.kind == "unknown"


def test_the_page_and_the_text(tmp_path):
    evil = Frame("step", "/code/recipes/demo/<b>.py", 7)
    found = made(tmp_path, process(1, [ALL_REDUCE, OWN], number=9), process(2, [evil], state="T"))
    text = diagnosis_page.write(tmp_path, "demo", found)
    page = (tmp_path / "diagnosis.html").read_text()
    assert "&lt;b&gt;.py:7" in page and "<b>.py" not in page
    assert page.count("<pre>") == 2
    assert text.splitlines()[1].startswith("  rank 1 (pid 2 on one), stopped, 10% of a core: it is stopped: SIGCONT")
    assert text.splitlines()[-1] == f"page: {tmp_path}/diagnosis.html"


def test_requests_are_answered_and_old_ones_are_not(tmp_path):
    (tmp_path / inspector.REQUEST).write_text("old")
    asker = inspector.Inspector(tmp_path, "id", "demo", lambda spec: {"here": "nothing runs"})
    asker.poll(0.0)
    assert not asker.busy
    (tmp_path / inspector.REQUEST).write_text("new")
    asker.poll(0.0)
    asker.close()
    assert json.loads((tmp_path / inspector.ANSWER).read_text())["word"] == "new"
    assert "note: here could not be looked at: nothing runs" in asker.news()
    assert asker.news() is None


def test_a_place_that_fails_does_not_end_the_run(tmp_path):
    def fail(spec):
        raise ValueError("no such cluster")

    asker = inspector.Inspector(tmp_path, "id", "demo", fail)
    asker.begin()
    asker.close()
    assert "the run's machines could not be looked at: ValueError: no such cluster" in asker.news()


class Lines:
    """A stage that keeps what it shows."""

    def __init__(self):
        self.lines = []

    def update(self, *args):
        return

    def line(self, text):
        self.lines.append(text)


def test_a_silent_run_is_looked_at_once_and_a_stalled_one_says_what_was_seen(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "workers").mkdir()
    looked, stage = [], Lines()

    def probe(spec):
        looked.append(spec["workers"])
        return {"far": "no answer"}

    asker = inspector.Inspector(tmp_path, "id", "demo", probe)
    seconds = {"start_timeout_seconds": 60, "diagnose_after_seconds": 0.2, "stall_timeout_seconds": 1.5}
    watcher = Watcher(tmp_path, "id", stage, 1, seconds, sees_processes=False, inspector=asker)
    with RunRecord(tmp_path, 0, 1, host="far", pid=7), pytest.raises(UserError) as error:
        while True:
            watcher()
            time.sleep(0.02)
    assert looked == [[["far", 7]]] * 2, "once when it fell silent, once before its end"
    assert "looking at them" in stage.lines[0]
    assert "note: far could not be looked at: no answer" in stage.lines
    assert "No rank is in an exchange that is known here, and none is clearly behind" in str(error.value)
    assert "cluster.stall_timeout_seconds" in str(error.value)


def test_runs_that_cannot_be_diagnosed(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a run"):
        diagnose.diagnose(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "failed"}')
    with pytest.raises(UserError, match=r"does not go on at this moment \(status: failed\)$"):
        diagnose.diagnose(tmp_path)


def test_slurm_runs_the_probe_on_each_node_of_the_job():
    argv = look_at("17", 3, Path("/env/bin/python"))
    assert argv[:6] == ["srun", "--jobid=17", "--overlap", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]
    assert argv[-3:-1] == ["/env/bin/python", "-c"]


def paces(tmp_path, ranks, steps=20):
    """Records of ranks {rank: (seconds of a step, its waiting or None, seconds later than the first, host)}."""
    folder = tmp_path / "workers"
    folder.mkdir(parents=True)
    for rank, (seconds, waited, late, host) in ranks.items():
        events = [{"event": "start", "time": 0.0, "rank": rank, "host": host, "pid": rank}]
        for step in range(steps):
            event = {"event": "rows", "epoch": 0, "step": step, "time": 1 + step * seconds + late, "cpu": step * 0.01}
            events.append(
                {**event, "count": 1, "sum": 0, "sum_sq": 0, **({} if waited is None else {"waited": waited})}
            )
        (folder / f"rank{rank}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return stragglers.find(read_records(tmp_path))


def test_waiting_names_the_slow_rank_on_any_host(tmp_path):
    found = paces(tmp_path, {0: (1.0, 0.8, 0, "a"), 1: (1.0, 0.01, 5.0, "b"), 2: (1.0, 0.7, 0, "c")})
    assert found.slow_rank == 1
    says = "rank 1 on b is the slowest in 19 of 19 steps: the others wait for it for 750.0 ms of the 1.00 s that a step"
    assert found.says.startswith(says)
    assert [one.late_seconds for one in found.ranks] == [None] * 3, "clocks of hosts are not compared"
    assert [one.slowest_in for one in found.ranks] == [0, 19, 0]


def test_a_late_begin_names_the_slow_rank_on_one_host(tmp_path):
    found = paces(tmp_path, {0: (1.0, None, 0, "a"), 1: (1.0, None, 0.6, "a")})
    assert found.slow_rank == 1
    assert "the others begin each step before it by 600.0 ms of the 1.00 s" in found.says


def test_what_a_record_cannot_tell_is_said(tmp_path):
    found = paces(tmp_path / "one", {0: (1.0, None, 0, "a"), 1: (1.0, None, 0.0, "a")})
    assert found.slow_rank is None
    assert "cannot be told from this record" in found.says
    found = paces(tmp_path / "several", {0: (1.0, None, 0, "a"), 1: (1.0, None, 9.0, "b")})
    assert found.slow_rank is None
    assert "the clocks of several hosts differ" in found.says


def test_ranks_that_do_not_wait_for_each_other(tmp_path):
    found = paces(tmp_path, {0: (0.1, None, 0, "a"), 1: (0.9, None, 0, "a"), 2: (0.1, None, 0, "a")})
    assert (found.slow_rank, found.says) == (1, "rank 1 on a takes 900.0 ms for a step, the others 100.0 ms")


def test_equal_ranks_and_short_runs_blame_nobody(tmp_path):
    found = paces(tmp_path / "equal", {0: (1.0, 0.1, 0, "a"), 1: (1.0, 0.12, 0, "a")})
    assert found.slow_rank is None
    assert "none is clearly slower" in found.says
    found = paces(tmp_path / "short", {0: (1.0, 0.9, 0, "a"), 1: (1.0, 0.0, 0, "a")}, steps=4)
    assert (found.slow_rank, found.ranks) == (None, ())


def profiles_of_pytorch():
    """The module of the recipe, without torch: only its sums are looked at."""
    text = (ROOT / "recipes/pytorch/profiles.py").read_text()
    found = {"__name__": "profiles"}
    exec(compile(text.replace("import torch\nimport torch.distributed as dist\n", ""), "profiles.py", "exec"), found)
    return found


def test_shares_of_a_profile():
    module = profiles_of_pytorch()
    assert module["length"]([(0, 10), (5, 20), (30, 31), (30, 30.5)]) == 21
    ranges = [("ProfilerStep#5", 0, 1000), ("ProfilerStep#6", 1000, 3000), ("aten::mm", 100, 200)]
    ranges += [("enumerate(DataLoader)#_Single", 0, 400), ("gloo:all_reduce", 500, 900), ("gloo:all_reduce", 800, 1500)]
    shares = module["shares_of"](ranges, [0.0003, 0.0003])
    assert shares == {
        "steps": 2,
        "ms for a step": 1.5,
        "data": 13.3,
        "computing and the rest": 66.7,
        "waiting for the others": 20.0,
        "an exchange under way": 33.3,
    }
    assert module["shares_of"]([("aten::mm", 0, 1)], []) == {}


def test_the_report_links_to_a_profile_or_says_that_there_is_none(tmp_path):
    assert pages.traces_of(tmp_path) is None
    (tmp_path / "config.yaml").write_text("profile: false\n")
    assert pages.traces_of(tmp_path) is None
    (tmp_path / "config.yaml").write_text("profile: true\n")
    assert pages.traces_of(tmp_path) == []
    for name in ("rank0.json.gz", "a&b #1.html"):
        (tmp_path / "traces").mkdir(exist_ok=True)
        (tmp_path / "traces" / name).touch()
    assert pages.traces_of(tmp_path) == ["traces/a%26b%20%231.html", "traces/rank0.json.gz"]


@pytest.mark.full
def test_a_profile_is_kept_with_the_run_and_says_who_was_slow(tmp_path):
    checkout, _ = broken("ten times slower", tmp_path / "checkout")
    driver = Driver(
        "recipe=pytorch", "scale=smoke", "recipe.profile=true", output_root=tmp_path / "out", checkout=checkout
    )
    status, output = driver.end(1200)
    assert status == 0, output
    _, folder = latest(tmp_path / "out", "pytorch")
    name = "where the time of a step goes, in percent"
    fast, slow = json.loads((folder / f"tables/{name}.json").read_text())["rows"]
    assert fast["steps"] == slow["steps"] == 20
    assert fast["waiting for the others"] > 40 > 20 > slow["waiting for the others"]
    assert slow["computing and the rest"] > 60
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((folder / f"traces/rank{rank}.json.gz").read_bytes()))
        names = {event.get("name") for event in trace["traceEvents"]}
        assert "gloo:all_reduce" in names, "what Perfetto shows"
    assert "Where the time of a step goes" in (folder / "report.html").read_text()
