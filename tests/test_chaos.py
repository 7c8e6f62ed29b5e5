"""`make chaos`: the language of faults, their moments, the harm itself, and what is said of a run that was hurt."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest

from cookbook import ROOT, UserError, recipes
from cookbook.tools.chaos import __main__ as command
from cookbook.tools.chaos import disturbance, inject, outcome, plans, report, run, victim
from cookbook.tools.chaos.fault import Scene, Undisturbed
from cookbook.tools.chaos.faults import FAULTS
from cookbook.tools.chaos.plans import parse, plans_of
from cookbook.tools.chaos.record import RunSoFar, newest_checkpoint, steps_of
from runrecord import RunRecord
from storage import Checkpoints
from tests.helpers import CLEAN, Silent
from tests.requirements import needs
from tests.test_contracts import DRIVER

HERE = Scene("pytorch", "local", 2)
HOSTS = Scene("pytorch", "hosts", 2, own_hosts=True)
SHOWN = Undisturbed(num_steps=40, num_checkpoints=5, seconds=10.0)


# ---- the language


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("kill", "kill@step=50%,rank=1,role=worker"),
        ("kill@step=7,rank=0", "kill@step=7,rank=0,role=worker"),
        ("kill=40%", "kill@step=40%,rank=1,role=worker"),
        ("stop@step=9,seconds=20", "stop@step=9,rank=1,role=worker,seconds=20"),
        ("stop=500ms", "stop@step=50%,rank=1,role=worker,seconds=500ms"),
        ("delay=100ms", "delay@step=50%,host=2,time=100ms,seconds=20"),
        ("preempt=worker", "preempt@step=50%,to=worker,rank=1"),
        ("corrupt_checkpoint=cut", "corrupt_checkpoint@step=70%,how=cut,checkpoints=2"),
    ],
)
def test_a_fault_is_read_and_shown_with_all_its_parameters(word, text):
    assert parse(word).text == text
    assert parse(text) == parse(word), "what is shown can be typed again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("kil", "the fault 'kil' is unknown; did you mean kill? There are: kill, stop, driver_kill"),
        ("meteor", "the fault 'meteor' is unknown. There are: kill, stop"),
        ("kill@stp=3", "kill has no parameter 'stp'; did you mean step? It has: step, rank, role"),
        ("kill@step=0", "step=0 is none: expected a number of steps from 1, or a share"),
        ("kill@step=100%", "step=100% is none"),
        ("kill@step=3,step=4", "step is given twice"),
        ("kill@step", "step= is none"),
        ("kill@rank=-1", "rank=-1 is none: expected a whole number from 0 to 1,023"),
        ("stop@seconds=5h", "seconds=5h is none: expected seconds from 100ms to 3600"),
        ("kill@role=boss", "role=boss is none: expected worker or ps or chief"),
        ("kill@rank=2", "kill cannot happen to this run: there are 2 workers, ranks 0 to 1: no rank 2"),
        ("link_cut", "link_cut cannot happen to this run: cluster=local: it happens to hosts"),
        ("random:3 kill", "random:3 is a plan of its own: leave out kill"),
        ("each kill", "each is a plan of its own: leave out kill"),
        ("", "which faults?"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(words, message):
    with pytest.raises(UserError) as error:
        plans_of(words, [0], HERE)
    assert message in str(error.value)


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_processes_of_other_machines_are_not_signalled(place):
    far = Scene("pytorch", place, 2)
    for name in ("kill", "stop", "preempt=worker", "disk_full", "corrupt_checkpoint", "link_cut"):
        with pytest.raises(UserError, match=f"cluster={place}"):
            plans_of(name, [0], far)
    assert [fault.name for fault in plans_of("driver_kill preempt", [0], far)[0]] == ["driver_kill", "preempt"]
    of_slurm = ["requeue"] if place == "slurm" else []
    assert [plan[0].name for plan in plans_of("each", [0], far)] == ["driver_kill", "preempt", *of_slurm]


def test_the_help_lists_every_fault_with_an_example_that_works():
    text = plans.help_text()
    for name, kind in FAULTS.items():
        assert f"\n  {name}\n" in text
        assert f"for example: {kind.example}\n" in text
        assert parse(kind.example).name == name
        for parameter in kind.parameters():
            assert f"{parameter} [" in text
    assert len(FAULTS) == len({kind for kind in FAULTS.values()}) >= 10


def test_the_same_seed_makes_the_same_plan():
    among = [FAULTS[name] for name in ("kill", "stop", "driver_kill", "preempt", "corrupt_checkpoint")]
    drawn = [[fault.text for fault in plans.plan_by_chance(5, seed, HERE, among)] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == PLAN_OF_SEED_3, "a plan that was noted must mean the same tomorrow"
    many = [fault for seed in range(200) for fault in plans.plan_by_chance(3, seed, HERE, among)]
    assert {fault.name for fault in many} == {kind.name for kind in among}
    assert all(4 <= fault.step.of(40) <= 36 for fault in many)
    assert all(fault.step.of(40) >= 24 for fault in many if fault.name == "corrupt_checkpoint")
    assert {fault.rank for fault in many if fault.name == "kill"} == {0, 1}
    assert [parse(fault.text) for fault in many] == many


PLAN_OF_SEED_3 = [
    "stop@step=18%,rank=0,role=worker,seconds=3",
    "kill@step=47%,rank=0,role=worker",
    "kill@step=67%,rank=1,role=worker",
    "driver_kill@step=10%",
    "driver_kill@step=77%",
]


def test_faults_happen_in_the_order_of_their_steps():
    plan = [parse(word) for word in ("kill@step=90%", "stop@step=3", "driver_kill@step=20")]
    assert [fault.name for fault in plans.in_order(plan, 40)] == ["stop", "driver_kill", "kill"]
    assert [parse(f"kill@step={text}").step.of(5) for text in ("1", "1%", "50%", "99%")] == [1, 1, 3, 5]
    assert parse("kill@step=41").too_early(SHOWN) == "kill@step=41: the undisturbed run has 40 steps"
    assert "checkpoints=6: the undisturbed run writes 5" in parse("corrupt_checkpoint@checkpoints=6").too_early(SHOWN)


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("1-4", [1, 2, 3, 4]), ("0", [0])])
def test_seeds(text, seeds):
    assert command.seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["x", "4-1", "1-200", "-1", ""])
def test_seeds_that_are_none(text):
    with pytest.raises(UserError, match="expected a number, or two such as 1-10"):
        command.seeds_of(text)


# ---- the moment


class Victim:
    """A run of which only the record is real."""

    def __init__(self, folder):
        self.so_far, self.driver_pid, self.disk = RunSoFar(folder), 0, None

    def pid_of(self, rank, role):
        start = self.so_far.alive(rank, role)
        return start["pid"] if start else None


def test_a_fault_waits_until_its_worker_has_begun_the_step(tmp_path):
    victim, rows = Victim(tmp_path), np.arange(8)
    kill, everybody = parse("kill@step=3,rank=1"), parse("driver_kill@step=4")

    def due():
        victim.so_far.read()
        return kill.is_due(victim, SHOWN), everybody.is_due(victim, SHOWN)

    with RunRecord(tmp_path, 0, 2, pid=11) as first, RunRecord(tmp_path, 1, 2, pid=12) as second:
        for step in range(3):
            assert due() == (False, False)
            first.rows(0, step, rows)
            second.rows(0, step, rows)
        assert due() == (True, False), "three steps are begun"
        first.rows(1, 0, rows)
        assert due() == (True, True), "a step of another epoch is another step"
        assert victim.pid_of(1, "worker") == 12
    assert due() == (False, True), "a worker that has ended cannot be killed"


def test_an_earlier_try_s_record_does_not_hurt_the_one_that_starts(tmp_path):
    with RunRecord(tmp_path, 1, 2, pid=12) as earlier:
        earlier.rows(0, 8, np.arange(8))
    victim = Victim(tmp_path)
    victim.so_far.began = time.time()
    victim.so_far.read()
    fault = parse("driver_kill@step=1")
    assert not fault.is_due(victim, SHOWN)
    with RunRecord(tmp_path, 1, 2, pid=13) as later:
        victim.so_far.read()
        assert not fault.is_due(victim, SHOWN), "it has started, and done nothing yet"
        later.rows(0, 9, np.arange(8))
        victim.so_far.read()
        assert fault.is_due(victim, SHOWN)
        assert victim.so_far.step() == 2


def test_where_no_rows_are_noted_the_progress_counts(tmp_path):
    so_far = RunSoFar(tmp_path)
    with RunRecord(tmp_path, 0, 1, role="driver") as record:
        record.progress(2, 5, "stage")
        so_far.read()
        assert (so_far.step(), so_far.step(rank=1), so_far.num_checkpoints) == (2, 2, 0)
        record.checkpoint("/x", 0, 3)
        so_far.read()
        assert so_far.num_checkpoints == 1
    assert steps_of([tmp_path]) is None


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    (tmp_path / "workers").mkdir()
    file, so_far = tmp_path / "workers/rank0-h-1.jsonl", RunSoFar(tmp_path)
    file.write_text('{"event": "start", "time": 1, "rank": 0, "pid": 1}\n{"event": "rows", "ti')
    so_far.read()
    assert (len(so_far.events), so_far.step()) == (1, 0)
    with open(file, "a") as more:
        more.write('me": 2, "epoch": 0, "step": 0}\n')
    so_far.read()
    assert (len(so_far.events), so_far.step()) == (2, 1)


def test_steps_that_were_taken_again_are_lost(tmp_path):
    for pid, steps in ((1, range(6)), (2, range(4, 10))):
        with RunRecord(tmp_path, 0, 1, pid=pid) as record:
            for step in steps:
                record.rows(0, step, np.arange(4))
    assert steps_of([tmp_path]) == (12, 10)


# ---- the harm


def test_signals_reach_the_process_and_the_mark_finds_it():
    mark = uuid.uuid4().hex
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, inject.MARK: mark})
    try:
        assert [process.pid for process in inject.marked(mark)] == [child.pid]
        assert inject.marked("another") == []
        inject.stop(child.pid)
        deadline = time.monotonic() + 10
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.01)
        assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
        inject.go_on(child.pid)
        while psutil.Process(child.pid).status() == psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.01)
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
        inject.kill(child.pid)
        assert child.wait(10) == -signal.SIGKILL
        inject.go_on(child.pid)  # it is gone: no error
        with pytest.raises(ProcessLookupError):
            inject.kill(child.pid)
    finally:
        if child.poll() is None:
            child.kill()


@pytest.mark.parametrize("harm", [inject.alter, inject.cut])
def test_a_damaged_checkpoint_is_the_newest_one_and_is_noticed(tmp_path, harm, capsys):
    with RunRecord(tmp_path, 0, 1) as record:
        checkpoints = Checkpoints(tmp_path / "checkpoints", tmp_path, record)
        for number in (1, 2):
            with checkpoints.save(number, 0) as folder:
                (folder / "state.pt").write_bytes(bytes(range(256)) * number)
                (folder / "small.json").write_text("{}")
    so_far = RunSoFar(tmp_path)
    so_far.read()
    path = newest_checkpoint(so_far)
    assert path == tmp_path / "checkpoints/epoch-00002-step-00000000/state.pt"
    before = path.read_bytes()
    said = harm(path)
    assert path.read_bytes() != before
    assert "epoch-00002-step-00000000/state.pt" in said and "512" in said
    assert (len(path.read_bytes()) == 512) == (harm is inject.alter)
    assert Checkpoints(tmp_path / "checkpoints", tmp_path).last().name == "epoch-00001-step-00000000"
    assert "epoch-00002-step-00000000 is damaged" in capsys.readouterr().out


def lacking(reason):
    return [reason] if reason else []


@needs("root", lacking(inject.cannot_mount()))
def test_a_disk_is_full_until_there_is_room(tmp_path):
    disk = inject.Disk(tmp_path / "image", tmp_path / "disk", megabytes=16)
    try:
        assert disk.fill().startswith("the run's disk is full: ")
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk/file").write_bytes(b"x" * 100_000)
        disk.make_room()
        (tmp_path / "disk/file").write_bytes(b"x" * 100_000)
    finally:
        disk.close(keep=tmp_path / "kept")
    assert (tmp_path / "kept/file").stat().st_size == 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "kept"]
    assert list((tmp_path / "disk").iterdir()) == []


@needs("root", lacking(inject.cannot_slow_disks()))
def test_a_slow_disk_is_slow_for_those_who_are_to_feel_it(tmp_path):
    disk = inject.Disk(tmp_path / "image", tmp_path / "disk", megabytes=16, slow=True)
    write = ["dd", "if=/dev/zero", f"of={tmp_path}/disk/file", "bs=64k", "count=4"]
    seconds = []
    try:
        for is_slow in (False, True):
            # The shell waits until it is in the group: what it starts is in it, too.
            shell = subprocess.Popen(["sh", "-c", f"read go; {' '.join(write)}"], stdin=subprocess.PIPE, stderr=-3)
            if is_slow:
                disk.slow_down(128, [shell.pid])
            began = time.monotonic()
            shell.communicate(b"go\n")
            seconds.append(time.monotonic() - began)
            assert shell.returncode == 0
    finally:
        disk.close()
    assert seconds[0] < 1.0 < 1.5 < seconds[1], "256 KiB at 128 KiB/s"
    assert not disk.group.exists()


def hosts_missing():
    there = {"root": os.geteuid() == 0, "ip (iproute2)": shutil.which("ip"), "tc": shutil.which("tc")}
    return [what for what, found in there.items() if not found]


@needs("hosts", hosts_missing())
def test_a_host_is_cut_off_slowed_down_and_ended(tmp_path):
    place = victim.LocalHosts(tmp_path / "hosts", 2)
    place.up()
    try:
        address = re.findall(r"address: (10[.\d]+)", (tmp_path / "hosts/inventory.yaml").read_text())[1]

        def answers(timeout=30):
            with contextlib.suppress(OSError), socket.create_connection((address, 22), timeout) as connection:
                return connection.recv(4) == b"SSH-"
            return False

        def seconds_to_send(count):
            """From the second host to this machine."""
            with socket.create_server(("0.0.0.0", 0)) as server:
                here = address.rpartition(".")[0] + ".254"
                target = f"/dev/tcp/{here}/{server.getsockname()[1]}"
                words = [
                    "ip",
                    "netns",
                    "exec",
                    place.namespace(2),
                    "bash",
                    "-c",
                    f"head -c {count} /dev/zero > {target}",
                ]
                sender = subprocess.Popen(words)
                connection, began = server.accept()[0], time.monotonic()
                with connection:
                    while connection.recv(1 << 16):
                        pass
                assert sender.wait(10) == 0
                return time.monotonic() - began

        assert answers()
        inject.cut_link(place.link(2))
        assert not answers(timeout=1)
        inject.mend_link(place.link(2))
        assert answers()
        inject.narrow(place.namespace(2), 1)
        assert seconds_to_send(200_000) > 1.0, "1.6 Mbit at 1 Mbit/s"
        inject.undo_traffic(place.namespace(2))
        assert seconds_to_send(20_000_000) < 100, "at 1 Mbit/s it would take 160"
        assert place.strangers() == []
        stranger = subprocess.Popen(["ip", "netns", "exec", place.namespace(2), "sleep", "60"])
        while "sleep" not in " ".join(psutil.Process(stranger.pid).cmdline()[:1]):
            time.sleep(0.01)
        assert place.strangers() == [f"host 2: sleep 60 (pid {stranger.pid})"]
        assert inject.kill_host(place.namespace(2)) == f"2 processes of {place.namespace(2)} ended"
        assert stranger.wait(5) == -signal.SIGKILL
        assert not answers(timeout=1)
        place.up()
        assert answers(), "whoever mends hosts has done so"
    finally:
        place.down()
    assert place.namespace(2) not in inject.sh("ip", "netns", "list")


# ---- a whole disturbance, with a program in the driver's place

PROGRAM = '''
import json, os, pathlib, subprocess, sys, time

def worker(rank, folder):
    """20 steps; a checkpoint after each fifth."""
    path = folder / "workers" / f"rank{rank}-h-{os.getpid()}.jsonl"
    note = folder / f"checkpoint{rank}"
    first = int(note.read_text()) if note.exists() else 0
    driver = os.getppid()
    with open(path, "x", buffering=1) as file:
        def write(event, **more):
            file.write(json.dumps({"event": event, "time": time.time(), **more}) + "\\n")
        write("start", rank=rank, world_size=2, pid=os.getpid(), role="worker", host="h")
        for step in range(first, 20):
            write("rows", epoch=step // 10, step=step % 10, count=1, sum=0, sum_sq=0)
            time.sleep(0.05)
            if os.getppid() != driver:
                sys.exit(1)
            if step % 5 == 4:
                partial = note.with_suffix(".partial")
                partial.write_text(str(step + 1))
                partial.replace(note)
                write("checkpoint", path=str(note), epoch=0, step=step)
        write("end", samples=20)

def main(words):
    options = dict(word.split("=", 1) for word in words)
    how = os.environ.get("HOW", "")
    above = pathlib.Path(options["output_root"], options["recipe"])
    again = (above / "one").exists()
    folder = above / ("two" if again and how == "afresh" else "one")
    (folder / "workers").mkdir(parents=True, exist_ok=True)
    latest = above / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    content = {"recipe": options["recipe"], "started": time.time(), "run_id": "none", "status": "running",
               "seconds": {}, "metrics": {}, "num_rows": 40, "account": {}, "findings": []}
    def write(**more):
        (folder / "partial").write_text(json.dumps(content | more))
        (folder / "partial").replace(folder / "run.json")
    write()
    if again and how == "never":
        write(status="failed", reason="the checkpoint cannot be read")
        sys.exit(1)
    children = [subprocess.Popen([sys.executable, __file__, "worker", str(rank), str(folder)]) for rank in (0, 1)]
    while any(child.poll() is None for child in children):
        if any(child.poll() for child in children):
            for child in children:
                child.kill()
                child.wait()
            write(status="failed", reason="rank 1 of 2 started but did not finish")
            sys.exit(1)
        time.sleep(0.01)
    digest = "other" if again and how == "other" else "same"
    num_rows = 39 if again and how == "rows" else 40
    if again and how == "leaves":
        subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pathlib.Path(os.environ["TMPDIR"], "left").touch()
    write(status="ok", num_rows=num_rows, workers=[{"rank": rank, "digest": digest} for rank in (0, 1)])

if sys.argv[1] == "worker":
    worker(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
else:
    main(sys.argv[1:])
'''


@pytest.fixture
def session(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for module in (disturbance, victim):
        monkeypatch.setattr(module, "END_SECONDS", 1.0)
    for module in (disturbance, run):
        monkeypatch.setattr(module, "Stage", lambda name: Quiet())
    made = run.Session("pytorch", [], tmp_path / "chaos")
    made.program = [sys.executable, str(program)]
    return made


@pytest.mark.parametrize("inventory", [".", "inventory.yaml", "hosts", "hosts/inventory.yaml"])
def test_the_hosts_of_infra_local_are_known_by_its_folder_and_by_theirs(tmp_path, inventory):
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts/state.json").write_text(json.dumps({"num_hosts": 3, "namespaces": True}))
    for folder in (tmp_path, tmp_path / "hosts"):
        (folder / "inventory.yaml").write_text("hosts:\n  - {name: host1, address: 10.77.0.1, slots: 1}\n")
    made = run.Session("pytorch", ["cluster=hosts", f"cluster.inventory={tmp_path / inventory}"], tmp_path / "chaos")
    assert (made.hosts.hosts.folder, made.hosts.num_hosts, made.scene.own_hosts) == (tmp_path / "hosts", 3, True)
    (tmp_path / "hosts/state.json").write_text(json.dumps({"num_hosts": 3, "namespaces": False}))
    assert victim.LocalHosts.of_inventory(tmp_path / inventory) is None, "sshd processes on loopback share all else"


@pytest.mark.parametrize(("words", "count"), [([], 2), (["cluster.num_workers=3"], 3)])
def test_hosts_without_an_inventory_are_made(tmp_path, monkeypatch, words, count):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made = run.Session("pytorch", ["cluster=hosts", *words], tmp_path / "chaos")
    assert made.makes_hosts and made.scene == Scene("pytorch", "hosts", count, own_hosts=True)
    assert [fault.text for plan in plans_of("kill link_cut", [0], made.scene) for fault in plan] == [
        "kill@step=50%,rank=1,role=worker",
        "link_cut@step=50%,host=2,seconds=5",
    ]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="made on this machine as root; or give a cluster.inventory"):
        run.Session("pytorch", ["cluster=hosts", *words], tmp_path / "chaos")


class Quiet(Silent):
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return

    line = done = Silent.update


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


def test_a_killed_run_goes_on_and_what_it_cost_is_said(session, capsys):
    shown, calm = session.undisturbed()
    assert (shown.num_steps, shown.num_checkpoints) == (20, 4)
    began = calm.stat().st_mtime
    assert session.undisturbed() == (shown, calm) and calm.stat().st_mtime == began, "it ran once"
    out = session.disturbed([parse("kill@step=8"), parse("stop@step=9,seconds=300ms")], None, shown, calm)
    assert (out.recovered, out.problems) == (True, [])
    assert [(one.status, one.afresh) for one in out.tries] == [("failed", False), ("ok", False)]
    assert [(hit.fault.partition("@")[0], hit.in_try) for hit in out.hits] == [("kill", 1), ("stop", 2)]
    assert 8 <= out.hits[0].at_step < 20 and 9 <= out.hits[1].at_step < 20
    assert "SIGKILL for worker 1 (pid " in out.hits[0].says
    assert 0 <= out.steps_lost <= 5 and out.steps_taken == 20 + out.steps_lost, "there is a checkpoint each five steps"
    assert out.goodput == pytest.approx(shown.seconds / out.seconds, abs=1e-4)
    assert out.seconds_lost == pytest.approx(out.seconds - shown.seconds, abs=0.1)
    assert out.result == "equal digest same"
    kept = json.loads((Path(out.folder) / "chaos.json").read_text())
    assert kept == json.loads(json.dumps(asdict(out)))
    report.write_page(Path(out.folder), [out])
    page = (Path(out.folder) / "report.html").read_text()
    assert "Everything recovered" in page and "kill@step=8,rank=1,role=worker" in page
    report.show(out)
    assert "outcome              recovered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "fault", "problem"),
    [
        ("never", "driver_kill", "it did not recover: the checkpoint cannot be read"),
        ("leaves", "driver_kill", "left behind: process "),
        full("other", "driver_kill", "another result: digest other instead of same"),
        full("rows", "driver_kill", "rows: num_rows is 39 instead of 40"),
        full("afresh", "driver_kill", ""),
        full("", "kill@step=20,rank=0", "kill@step=20,rank=0,role=worker did not happen: the run had ended before"),
    ],
)
def test_what_is_wrong_with_a_run_is_found(session, monkeypatch, how, fault, problem):
    shown, calm = session.undisturbed()
    monkeypatch.setenv("HOW", how)
    if not how:  # whoever looks too late
        monkeypatch.setattr(RunSoFar, "alive", lambda *_: None)
    out = session.disturbed([parse(fault)], None, shown, calm)
    assert out.recovered == (not problem)
    assert (out.problems or [""])[0].startswith(problem), out.problems
    if how == "leaves":
        process, file = out.left
        assert process.endswith(": sleep 60") and file.endswith("/left in TMPDIR")
        ended = int(process.split()[1].rstrip(":"))
        assert not psutil.pid_exists(ended) or psutil.Process(ended).status() == psutil.STATUS_ZOMBIE
    if how == "afresh":
        assert out.tries[1].afresh and out.steps_lost >= 10
        assert out.notes == ["the same command began afresh: there was nothing to go on with"]


ENDED = """
import sys
from pathlib import Path
from cookbook.tools.chaos import __main__ as command, plans, run
command.listen()
session = run.Session("pytorch", [], Path(sys.argv[1]))
session.program = [sys.executable, sys.argv[2]]
shown, calm = session.undisturbed()
Path(sys.argv[2]).write_text(Path(sys.argv[2]).read_text().replace("time.sleep(0.05)", "time.sleep(60)"))
print("ready", flush=True)
session.disturbed([plans.parse("slow_disk@step=1"), plans.parse("stop@step=1,seconds=60")], None, shown, calm)
"""


@pytest.mark.full
@needs("root", lacking(inject.cannot_slow_disks()))
def test_who_ends_the_command_ends_the_run_and_what_was_done_to_it(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, "-c", ENDED, str(tmp_path / "chaos"), str(tmp_path / "program.py")]
    mine = uuid.uuid4().hex
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**CLEAN, "MINE": mine})

    def relatives():
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if each.environ().get("MINE") == mine and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    lines = iter(process.stdout.readline, "")
    assert next(line for line in lines if "SIGSTOP for worker 1" in line)
    assert len(relatives()) == 4, "this program, the driver's stand-in and two workers"
    assert str(tmp_path) in Path("/proc/mounts").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert relatives() == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert list(inject.BLKIO.glob(f"cookbook-chaos-{process.pid}*")) == []
    assert list((tmp_path / "chaos").rglob("disk.img")) == []


# ---- what is said


def content(digest="d", **more):
    return {"workers": [{"digest": digest}], "metrics": {"loss": 1.0, "ingest/seconds": 3.0}, **more}


def test_results_are_compared_as_exactly_as_the_recipe_repeats_itself():
    assert outcome.compared(content(), content(), "bits") == ("equal digest d", [])
    assert outcome.compared(content(), content("e"), "bits")[1] == ["another result: digest e instead of d"]
    assert outcome.compared(content(None), content(None), "bits")[1][0].startswith("the undisturbed run has no digest")
    near, far = ({"metrics": {"loss": value, "ingest/seconds": 9.0}, "workers": []} for value in (1.0 + 1e-9, 1.1))
    assert outcome.compared(content(), near, 1e-6) == ("1 metrics within 1e-06", [])
    assert outcome.compared(content(), far, 1e-6)[1] == ["another result: loss is 1.1 instead of 1.0"]
    assert outcome.compared(content(), {"metrics": {}, "workers": []}, 1e-6)[1] == [
        "another result: loss is None instead of 1.0"
    ]
    assert outcome.compared(content(), far, "rules")[1] == []


def test_rows_are_counted():
    calm = {"num_rows": 5, "account": {"read": 5}, "findings": []}
    held = {"rule": "rows_once_per_epoch", "outcome": "held", "says": "5 rows"}
    assert outcome.rows_of(calm, calm | {"findings": [held]}) == ("rows_once_per_epoch: 5 rows", [])
    broken = held | {"outcome": "not applied"}
    assert outcome.rows_of(calm, calm | {"findings": [broken], "num_rows": 6})[1] == [
        "rows: num_rows is 6 instead of 5",
        "rows: rows_once_per_epoch is not applied: 5 rows",
    ]


def test_every_recipe_says_how_exactly_it_repeats_itself():
    """A recipe whose proof does not compare parameters needs another way to compare: bits would find no digest."""
    assert sorted(DRIVER) == recipes()
    for recipe, driver in DRIVER.items():
        repeats = driver.get("repeats", "bits")
        assert repeats in ("bits", "rules") or 0 < repeats < 1e-3, recipe
        assert (repeats == "bits") == ("same_parameters" in driver["proof"]), recipe


def result(names, recipe="pytorch", place="local", seed=None, **more):
    plain = {"recovered": True, "cannot": "", "problems": [], "seconds_lost": 12.4, "steps_lost": 4, "hits": [1]}
    about = {"machine": "M", "commit": "0123456789abc", "time": 5.0, "command": "make chaos"}
    return {"names": names, "recipe": recipe, "place": place, "seed": seed, **about, **plain, **more}


def test_the_table_says_what_was_run_and_what_was_not():
    found = [
        result(["kill"], recovered=False, problems=["old"]),
        result(["kill"]),
        result(["stop"], recovered=False, problems=["another result"]),
        result(["corrupt_checkpoint"], recovered=False, cannot="it writes 1"),
        result(["link_cut"], place="hosts", steps_lost=None),
        result(["driver_kill"], place="hosts"),
        result(["kill", "preempt"]),
        result(["stop", "slow_disk"], recovered=False, problems=["left behind: a file"]),
        result(["kill", "disk_full"], seed=1, hits=[1, 2]),
        result(["kill"], recipe="spark", steps_lost=1),
    ]
    text = report.table(found, ["dask", "pytorch", "spark"])
    lines = text.splitlines()
    assert lines[0].startswith("| recipe | kill | stop | driver_kill | preempt | corrupt_checkpoint |")
    cells = dict(zip(report.COLUMNS, lines[2].split(" | ")[1:], strict=True))
    assert lines[2].startswith("| `pytorch` | ") and lines[3].startswith("| `spark` | +12 s, 1 | not run | not run |")
    assert cells["kill"] == "+12 s, 4", "the newest result of a cell counts"
    assert cells["stop"] == "**not**"
    assert cells["corrupt_checkpoint"] == "–"
    assert cells["link_cut"] == "+12 s", "no worker notes steps there"
    assert cells["driver_kill"] == "not run", "on hosts is another place"
    assert (cells["preempt"], cells["disk_full"], cells["slow_disk"]) == ("in a plan", "in a plan", "not run")
    assert "Plans of several faults: 1 of 2 recovered." in lines
    assert "- `make chaos`: left behind: a file" in lines
    assert "3 of 4 runs with one fault recovered." in lines and "Not run: `dask`." in lines
    assert "Random plans: 1 of 1 recovered, with 2 faults, over `pytorch`." in lines
    assert "- `stop`, `pytorch`: another result" in lines
    assert "- `corrupt_checkpoint`, `pytorch`: it writes 1" in lines
    assert lines[-1] == "Run on 1970-01-01 on: M. Commits: 0123456789."


def test_rows_of_earlier_results_stay_and_are_called_so():
    before = report.table([result(["kill"], recipe="dask"), result(["kill"])], ["dask", "pytorch", "spark"])
    text = report.table([result(["kill"], steps_lost=9)], ["dask", "pytorch", "spark"], before)
    lines = text.splitlines()
    assert lines[2:4] == [before.splitlines()[2], before.splitlines()[3].replace("+12 s, 4", "+12 s, 9")]
    assert "Not run: `spark`." in lines
    assert lines[-1].startswith("Of earlier results, which are not on this disk: `dask`. Run on 1970-01-01 on: M. Comm")
    assert report.table([result(["kill"], steps_lost=9)], ["dask", "pytorch", "spark"], text) == text, (
        "as often as one likes"
    )
    other = before.replace("| kill |", "| slap |")
    assert "`dask` |" not in report.table([result(["kill"])], ["dask", "pytorch"], other), "of other faults"


BEGIN, END = "<!-- chaos-table: made by `make chaos-table` -->", "<!-- end of chaos-table -->"


def test_the_table_is_put_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        text = report.write_table(tmp_path, page)
    assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(UserError, match="there are no lines"):
        report.write_table(tmp_path, page)


def test_the_page_of_the_documents_has_the_marks():
    text = (ROOT / "docs/chaos.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    for name in report.COLUMNS:
        assert f" {name} |" in text, "each fault of this machine and its hosts is in the documents' table"
    assert set(FAULTS) - set(report.COLUMNS) == {"requeue"}


# ---- real runs


def chaos(tmp_path, recipe, words):
    argv = [sys.executable, "-m", "cookbook.tools.chaos", recipe, f"--faults={words}", "--root", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    (path,) = tmp_path.glob(f"{recipe}/*/chaos.json")
    return done, json.loads(path.read_text())


@pytest.mark.full
def test_pytorch_is_killed_and_stopped_and_ends_with_the_same_parameters(tmp_path):
    done, out = chaos(tmp_path, "pytorch", "kill@step=20,rank=1 stop@step=30,rank=0,seconds=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert out["recovered"], out["problems"]
    assert [one["status"] for one in out["tries"]] == ["failed", "ok"]
    assert [hit["fault"].partition("@")[0] for hit in out["hits"]] == ["kill", "stop"]
    assert 1 <= out["steps_lost"] <= 10 and out["steps_taken"] == 40 + out["steps_lost"]
    assert out["result"].startswith("equal digest ")
    assert out["rows"] == "rows_once_per_epoch: 2,560 rows in 5 epochs, each once"
    assert out["left"] == []
    assert "outcome              recovered" in done.stdout


@pytest.mark.full
def test_spark_loses_an_executor_and_comes_to_the_same_figures(tmp_path):
    done, out = chaos(tmp_path, "spark", "kill@step=2,rank=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert out["recovered"], out["problems"]
    assert [one["status"] for one in out["tries"]] == ["ok"], "Spark itself replaces an executor"
    assert "metrics within 1e-06" in out["result"]
    assert out["rows"].startswith("every_row_accounted_for: ")
    assert out["left"] == []
