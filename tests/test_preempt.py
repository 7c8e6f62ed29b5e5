"""A machine that is taken away: notices, wishes, and what the driver makes of them. Real runs: the contract tests."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import storage
from cookbook import ROOT, evidence, signals
from cookbook.evidence import Asked
from cookbook.notice import Notice as DriversNotice
from preempt import LEAVE, SAVE, Notice, Preempted
from runrecord import GO_ON_LATER, RunRecord, read_records
from tests.helpers import Silent


@pytest.fixture(autouse=True)
def own_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    signals.NOTICED.clear()
    signals.CAME.clear()


@pytest.fixture
def notice(tmp_path, monkeypatch):
    monkeypatch.setattr("preempt.LOOK_SECONDS", 0)
    monkeypatch.delenv("NOTICE_FILE", raising=False)
    return lambda *settings: Notice(tmp_path, *settings)


def test_a_checkpoint_by_steps_and_by_seconds(notice, monkeypatch):
    steps = notice(4)
    assert [steps.wish(step, last=step == 8) for step in range(1, 10)] == [0, 0, 0, SAVE, 0, 0, 0, 0, 0]
    now = [100.0]
    monkeypatch.setattr("preempt.time.monotonic", lambda: now[0])
    clock = notice(0, 30.0)
    wishes = []
    for seconds in (10, 10, 10, 10):
        now[0] += seconds
        wishes.append(clock.wish(1))
        if wishes[-1]:
            clock.saved(wishes[-1])
    assert wishes == [0, 0, SAVE, 0], "30 seconds after the start, and not again until 30 more have passed"
    assert notice().wish(1) == 0


def test_sigterm_is_a_notice_and_not_the_end(notice, capsys):
    mine = notice()
    assert mine.wish(7) == 0
    os.kill(os.getpid(), signal.SIGTERM)
    assert mine.wish(8, last=True) == LEAVE, "also after the last step of an epoch"
    with pytest.raises(Preempted) as left:
        mine.saved(mine.wish(8))
    assert left.value.code == GO_ON_LATER == 75
    assert "preempted by SIGTERM: all is saved" in capsys.readouterr().out


def test_in_elastic_training_sigterm_is_for_one_worker(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    Notice(tmp_path, signals=False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_takes_no_signals_but_files(notice, tmp_path):
    wishes = []

    def work():
        mine = notice()
        wishes.append(mine.wish(1))
        (tmp_path / "preempt").touch()
        wishes.append(mine.wish(2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert wishes == [0, LEAVE]


def test_a_file_of_the_machine(notice, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTICE_FILE", str(tmp_path / "spot"))
    mine = notice()
    assert mine.wish(1) == 0
    (tmp_path / "spot").touch()
    assert mine.wish(2) == LEAVE
    assert mine.reason == str(tmp_path / "spot")
    (tmp_path / "spot").write_text("spot instance-action: terminate\n")
    told = notice()
    assert (told.wish(1), told.reason) == (LEAVE, "spot instance-action: terminate")


@pytest.mark.parametrize("combine", [sum, max])
@pytest.mark.parametrize(
    ("wishes", "leaves"),
    [([SAVE] * 10_000, False), ([0, SAVE, LEAVE], True), ([LEAVE] * 1000, True), ([0, SAVE], False)],
)
def test_a_sum_of_wishes_says_as_much_as_the_largest(notice, combine, wishes, leaves):
    agreed = float(np.float32(combine(wishes)))  # some recipes send them as float32
    assert agreed
    if leaves:
        with pytest.raises(Preempted):
            notice().saved(agreed)
    else:
        notice().saved(agreed)


def preempted_run(folder, positions, error=None):
    for rank, (epoch, step) in enumerate(positions):
        try:
            with RunRecord(folder, rank, len(positions), pid=1000 + rank) as run:
                run.rows(epoch, step - 1, np.arange(rank, 8, len(positions)))
                if rank == 0:
                    run.checkpoint(folder / "checkpoints/epoch-00001-step-00000005", epoch, step)
                raise error if error and rank else Preempted("SIGTERM" if rank else "another worker's notice")
        except (SystemExit, RuntimeError):
            pass


def test_a_preempted_run_is_no_failure_and_no_success(tmp_path):
    preempted_run(tmp_path, [(1, 5), (1, 5)])
    verdict = evidence.judge(read_records(tmp_path), Asked(num_workers=2, proof=("rows_once_per_epoch",), num_rows=8))
    assert verdict.preempted == (
        "preempted by SIGTERM: saved at epoch 2 after step 5; the same command goes on from there"
    )
    assert verdict.problems == []
    assert {finding.outcome for finding in verdict.findings} == {"not applied"}
    assert "rows_once_per_epoch" in {finding.rule for finding in verdict.findings}


def test_a_worker_that_fails_meanwhile_fails_the_run(tmp_path):
    preempted_run(tmp_path, [(1, 5), (1, 5)], RuntimeError("no space"))
    verdict = evidence.judge(read_records(tmp_path), Asked(num_workers=2))
    assert verdict.preempted == ""
    assert any("RuntimeError: no space" in problem for problem in verdict.problems)


def test_an_earlier_try_that_was_preempted_does_not_count_now(tmp_path):
    preempted_run(tmp_path, [(0, 1), (0, 1)])
    earlier = evidence.process_keys(read_records(tmp_path))
    for rank in range(2):
        with RunRecord(tmp_path, rank, 2, pid=2000 + rank) as run:
            run.rows(0, 1, np.arange(rank, 8, 2))
    verdict = evidence.judge(read_records(tmp_path), Asked(num_workers=2, earlier=earlier, resumed=True))
    assert (verdict.preempted, verdict.problems) == ("", [])


def test_workers_that_came_after_the_preempted_ones_count(tmp_path):
    """Slurm puts a job back into the queue, and one driver sees both starts."""
    preempted_run(tmp_path, [(0, 1), (0, 1)])
    for rank in range(2):
        with RunRecord(tmp_path, rank, 2, pid=2000 + rank) as run:
            run.rows(0, 1, np.arange(rank, 8, 2))
    verdict = evidence.judge(read_records(tmp_path), Asked(num_workers=2))
    assert (verdict.preempted, verdict.problems) == ("", [])
    assert [worker["pid"] for worker in verdict.workers] == [2000, 2001]
    assert sorted(worker["pid"] for worker in verdict.lost) == [1000, 1001]


class Place:
    def __init__(self):
        self.told = 0

    def give_notice(self, reason):
        assert reason == "SIGTERM"
        self.told += 1


class Lines(Silent):
    def line(self, text):
        self.text = text


def test_the_first_sigterm_of_the_driver_is_a_notice_the_second_one_an_end():
    place, stage = Place(), Lines()
    signal.signal(signal.SIGTERM, signals.note)
    notice = DriversNotice(place, stage, 60)
    with signals.expect_notice(True):
        notice.look()
        assert place.told == 0
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
        notice.look()
        notice.look()
        assert place.told == 1, "once"
        assert "save and leave within 60 s" in stage.text
        os.kill(os.getpid(), signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert signals.CAME == ["SIGTERM"]


def test_workers_that_do_not_leave_in_time_are_ended():
    signal.signal(signal.SIGTERM, signals.note)
    notice = DriversNotice(Place(), Lines(), 0.05)
    with signals.expect_notice(True):
        os.kill(os.getpid(), signal.SIGTERM)
        notice.look()
        time.sleep(0.1)
        with pytest.raises(signals.Interrupted, match="SIGTERM"):
            notice.look()


def test_where_nobody_saves_sigterm_ends_the_run_at_once():
    signal.signal(signal.SIGTERM, signals.note)
    with signals.expect_notice(False):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert (signals.NOTICED, signals.CAME) == ([], ["SIGTERM"])


def test_a_host_makes_the_file_that_its_workers_see(tmp_path):
    argv = [sys.executable, ROOT / "cookbook/places/hosts/remote.py"]
    subprocess.run([*argv, "notice", tmp_path / "preempt", "SIGTERM"], check=True)
    assert (tmp_path / "preempt").read_text() == "SIGTERM"
    # At the run's end it goes, or the next try would stop at once.
    subprocess.run([*argv, "sweep", "no such run", "0", tmp_path / "preempt"], check=True)
    assert not (tmp_path / "preempt").exists()


def sealed(folder):
    (folder / "sub").mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes(range(256)) * 64)
    (folder / "sub/position.json").write_text("{}")
    storage.seal(folder)
    return folder


def test_a_seal_holds_sizes_and_sums(tmp_path):
    folder = sealed(tmp_path / "checkpoint")
    storage.check_seal(folder)
    parts = json.loads((folder / "checkpoint.json").read_text())["parts"]
    assert parts["state.pt"] == {
        "bytes": 16384,
        "sha256": hashlib.sha256(bytes(range(256)) * 64).hexdigest(),
    }
    assert set(parts) == {"state.pt", "sub/position.json"}


@pytest.mark.parametrize(
    ("hurt", "text"),
    [
        (lambda folder: os.truncate(folder / "state.pt", 100), "state.pt has 100 bytes, expected 16,384"),
        (lambda folder: (folder / "state.pt").write_bytes(b"\0" * 16384), "state.pt has other content"),
        (lambda folder: (folder / "sub/position.json").unlink(), "sub/position.json is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json is not on"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"parts"'), "checkpoint.json cannot be read"),
    ],
)
def test_what_is_cut_off_or_altered_breaks_the_seal(tmp_path, hurt, text):
    folder = sealed(tmp_path / "checkpoint")
    hurt(folder)
    with pytest.raises(storage.Damaged, match=text):
        storage.check_seal(folder)


TFRUN = "import sys; sys.exit(75)"


def test_tfrun_hands_the_status_on_and_starts_nobody_anew(tmp_path):
    (tmp_path / "leave.py").write_text(TFRUN)
    argv = [sys.executable, "-m", "tfrun", "--num-workers", "2", "--max-restarts", "3", tmp_path / "leave.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runrecord"), "TFRUN_NETWORK": "host"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "started anew" not in done.stdout
