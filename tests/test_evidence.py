"""Each rule of evidence fails the run that breaks it: records as workers write them, spoilt in one place at a time."""

import itertools
import time

import numpy as np
import pytest

from cookbook import UserError, evidence
from cookbook.evidence.rules import RULES
from runrecord import RunRecord, damaged_records, read_records

NUM_ROWS, BATCH, NUM_EPOCHS = 50, 8, 3
STEPS = -(-NUM_ROWS // BATCH)


def write_run(folder, monkeypatch, num_workers=2, spoil=None):
    """Writes the record of a run as it should be; `spoil(event, fields)` may change or drop
    (None) what a worker writes."""
    spoil = spoil or (lambda event, fields: fields)
    plain_write = RunRecord._write
    pids = itertools.count(1000)
    for rank in range(num_workers):
        pid = next(pids)
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)

        def write(self, event, rank=rank, **fields):
            changed = spoil(
                event, {"rank": rank, **fields} if event in ("start", "world") else {"of_rank": rank, **fields}
            )
            if changed is not None:
                changed.pop("of_rank", None)
                plain_write(self, event, **changed)

        monkeypatch.setattr(
            RunRecord,
            "_write",
            lambda self, event, write=write, **fields: write(
                self, event, **{k: v for k, v in fields.items() if k != "rank"}
            ),
        )
        with RunRecord(folder, rank, num_workers) as run:
            run.restore(0, 0, generation=1.0)
            for epoch in range(NUM_EPOCHS):
                order = np.random.default_rng(epoch).permutation(NUM_ROWS)
                for step in range(STEPS):
                    run.rows(epoch, step, order[step * BATCH : (step + 1) * BATCH][rank::num_workers])
                run.metric("train/loss", 1.0 / (epoch + 1), step=(epoch + 1) * STEPS, epoch=epoch)
            run.digest([np.arange(4.0)])
    monkeypatch.setattr(RunRecord, "_write", plain_write)


def judge(folder, **asked):
    rules = ("rows_once_per_epoch", "same_parameters")
    wanted = {
        "num_workers": 2,
        "proof": rules,
        "num_rows": NUM_ROWS,
        "global_batch_size": BATCH,
        "num_epochs": NUM_EPOCHS,
    }
    return evidence.judge(read_records(folder), evidence.Asked(**wanted | asked))


def everybody(folder):
    return evidence.process_keys(read_records(folder))


def test_a_run_as_it_should_be_counts(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    verdict = judge(tmp_path, seen_pids=frozenset({1000, 1001}))
    assert verdict.problems == []
    assert verdict.num_rows == NUM_ROWS * NUM_EPOCHS
    assert verdict.worlds == [2]
    assert [worker["samples"] for worker in verdict.workers] == [25 * NUM_EPOCHS, 25 * NUM_EPOCHS]
    assert verdict.metrics == {"train/loss": pytest.approx(1 / 3)}


def test_no_record_at_all(tmp_path):
    verdict = judge(tmp_path, proof=tuple(RULES))
    assert verdict.problems == ["rank 0 of 2 never started", "rank 1 of 2 never started"]


def test_a_rank_that_did_not_start(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    next(tmp_path.glob("workers/rank1-*")).unlink()
    assert judge(tmp_path).problems == ["rank 1 of 2 never started"]


def test_a_rank_that_did_not_finish(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch, spoil=lambda event, f: None if event == "end" and f["of_rank"] == 1 else f)
    assert judge(tmp_path).problems == ["rank 1 of 2 started but did not finish"]


def test_workers_of_an_earlier_try_do_not_count(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    assert "rank 0 of 2 never started" in judge(tmp_path, earlier=everybody(tmp_path)).problems


def test_a_rule_that_does_not_exist_is_refused():
    evidence.check_rules(tuple(RULES))
    with pytest.raises(UserError, match="rule 'no_such_rule' is unknown; there are: rows_once_per_epoch, "):
        evidence.check_rules(("no_such_rule",))


def test_clocks_that_differ_are_no_matter(tmp_path, monkeypatch):
    """Hosts' clocks differ, and one that is set back during a run must not make a worker look like an earlier try's."""
    write_run(tmp_path, monkeypatch)
    earlier = frozenset((host, pid, time + 3600) for host, pid, time in everybody(tmp_path))
    assert judge(tmp_path, earlier=earlier).problems == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"num_workers": 3}, "rank 2 of 3 never started"),
        ({"num_workers": 1}, "ranks [1] worked although only 1 workers were expected"),
        (
            {"seen_pids": frozenset({1000})},
            "rank 1 claims process 1001, which the operating system never showed in this run",
        ),
        ({"num_rows": NUM_ROWS + 2}, "epoch 1: 2 of 52 rows were lost"),
        ({"num_epochs": 2}, "rows were trained on in epoch 3, which nobody asked for"),
        ({"max_steps": 1}, "epoch 1: 42 rows were counted twice (50 instead of 8)"),
    ],
)
def test_another_run_than_was_asked_for(tmp_path, monkeypatch, asked, problem):
    write_run(tmp_path, monkeypatch)
    assert problem in judge(tmp_path, **asked).problems


def test_one_process_that_plays_two_ranks(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch, spoil=lambda event, f: f | {"pid": 7} if event == "start" else f)
    assert "2 ranks, but only 1 processes" in judge(tmp_path).problems


def test_ranks_that_each_believe_to_be_alone(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch, spoil=lambda event, f: f | {"world_size": 1, "rank": 0} if event == "start" else f)
    problems = judge(tmp_path).problems
    assert "rank 0 was taken by 2 processes" in problems
    assert "the workers saw world sizes [1], expected 2" in problems


def test_a_worker_without_work(tmp_path, monkeypatch):
    write_run(
        tmp_path, monkeypatch, spoil=lambda event, f: f | {"samples": 0} if event == "end" and f["of_rank"] == 1 else f
    )
    assert judge(tmp_path).problems == ["rank 1 did no work (0 samples)"]


def test_ranks_that_diverge(tmp_path, monkeypatch):
    write_run(
        tmp_path, monkeypatch, spoil=lambda event, f: f | {"digest": f"{f['of_rank']:064d}"} if event == "end" else f
    )
    (problem,) = judge(tmp_path).problems
    assert problem.startswith("the ranks ended with different parameters: rank 0 0000")


def test_a_missing_digest(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch, spoil=lambda event, f: f | {"digest": None} if event == "end" else f)
    assert judge(tmp_path).problems == ["a worker reported no digest of its final parameters"]


def test_lost_rows(tmp_path, monkeypatch):
    write_run(
        tmp_path,
        monkeypatch,
        spoil=lambda e, f: None if e == "rows" and (f["of_rank"], f["epoch"], f["step"]) == (1, 1, 2) else f,
    )
    assert judge(tmp_path).problems == ["epoch 2: 4 of 50 rows were lost"]


def test_every_rank_takes_all_rows(tmp_path, monkeypatch):
    """What happens without a sampler: nothing crashes, but each row is trained on twice."""
    write_run(tmp_path, monkeypatch, spoil=lambda event, f: f | {"count": 2 * f["count"]} if event == "rows" else f)
    assert judge(tmp_path).problems[0] == "epoch 1: 50 rows were counted twice (100 instead of 50)"


def test_too_few_rows_where_more_than_enough_would_do(tmp_path, monkeypatch):
    """Streams that repeat rows are no problem to this rule; an epoch that fell short is."""
    enough = {"proof": ("enough_rows_per_epoch",)}
    write_run(
        tmp_path / "whole", monkeypatch, spoil=lambda event, fields: fields | ({"sum": 0} if event == "rows" else {})
    )
    assert judge(tmp_path / "whole", **enough).problems == []
    assert judge(tmp_path / "whole", **enough, num_epochs=NUM_EPOCHS - 1).problems == [
        "rows were trained on in epoch 3, which nobody asked for"
    ]

    def lose(event, fields):
        return None if event == "rows" and (fields["epoch"], fields["step"], fields["of_rank"]) == (1, 2, 1) else fields

    write_run(tmp_path / "short", monkeypatch, spoil=lose)
    assert judge(tmp_path / "short", **enough).problems == ["epoch 2: 4 of 50 rows were lost"]


def test_the_right_number_of_the_wrong_rows(tmp_path, monkeypatch):
    def spoil(event, fields):
        return (
            fields | {"sum": fields["sum"] + 1}
            if event == "rows" and fields["epoch"] == 0 and fields["step"] == 0
            else fields
        )

    write_run(tmp_path, monkeypatch, spoil=spoil)
    assert judge(tmp_path).problems == ["epoch 1: 50 rows, but not each one once: some were lost and others doubled"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number(tmp_path, monkeypatch, value):
    write_run(
        tmp_path,
        monkeypatch,
        spoil=lambda event, f: f | {"value": value} if event == "metric" and f["epoch"] == 2 else f,
    )
    assert f"train/loss is {value} at step 21 on rank 0" in judge(tmp_path).problems


def test_a_metric_that_was_not_reduced(tmp_path, monkeypatch):
    write_run(
        tmp_path,
        monkeypatch,
        spoil=lambda event, f: f | {"value": f["value"] + f["of_rank"]} if event == "metric" else f,
    )
    assert judge(tmp_path).problems[0].startswith("the ranks disagree on train/loss at step 7: {0: 1.0, 1: 2.0}")


def write_uneven(folder, steps_of_epochs):
    """One worker; each epoch's steps as lists of row numbers."""
    with RunRecord(folder, 0, 1) as run:
        for epoch, steps in enumerate(steps_of_epochs):
            for step, ids in enumerate(steps):
                run.rows(epoch, step, np.array(ids))


def test_an_epoch_of_more_but_smaller_steps_is_whole_and_the_next_may_be_cut_short(tmp_path):
    """10 rows by 4: three steps, but two shards of unequal size make four."""
    whole = [[0, 1, 2, 3], [4, 5, 6], [7, 8], [9]]
    asked = {"num_workers": 1, "num_rows": 10, "global_batch_size": 4, "proof": ("rows_once_per_epoch",)}
    write_uneven(tmp_path / "good", [whole, whole, [[3, 2], [1, 0]]])
    assert judge(tmp_path / "good", **asked, num_epochs=9, max_steps=10).problems == []
    write_uneven(tmp_path / "fewer", [whole, whole, [[3, 2]]])
    assert judge(tmp_path / "fewer", **asked, num_epochs=9, max_steps=10).problems == [
        "epoch 3: 6 of 8 rows were lost",
    ]
    write_uneven(tmp_path / "lost", [whole, [*whole[:3], []], [[3, 2], [1, 0]]])
    assert "epoch 2: 1 of 10 rows were lost" in judge(tmp_path / "lost", **asked, num_epochs=9, max_steps=10).problems
    write_uneven(tmp_path / "all", [whole, whole, whole])
    assert judge(tmp_path / "all", **asked, num_epochs=3).problems == []
    assert judge(tmp_path / "all", **asked, num_epochs=4).problems == ["epoch 4: 10 of 10 rows were lost"]


def test_an_exception_in_a_worker_is_the_reason(tmp_path):
    with pytest.raises(ZeroDivisionError), RunRecord(tmp_path, 0, 1):
        raise ZeroDivisionError("no such luck")
    verdict = judge(tmp_path, num_workers=1)
    assert any(problem.endswith("ended with ZeroDivisionError: no such luck") for problem in verdict.problems)


def test_steps_that_were_taken_again_count_once(tmp_path, monkeypatch):
    """Rank 1 dies after epoch 2, step 3; the survivor goes back to step 2 and takes all the rest alone."""
    write_run(
        tmp_path,
        monkeypatch,
        spoil=lambda event, f: None if (event == "rows" and (f["epoch"], f["step"]) > (1, 3)) or event == "end" else f,
    )
    with RunRecord(tmp_path, 0, 1) as run:
        run.restore(1, 2, generation=2.0)
        for epoch in (1, 2):
            order = np.random.default_rng(epoch).permutation(NUM_ROWS)
            for step in range(2 if epoch == 1 else 0, STEPS):
                run.rows(epoch, step, order[step * BATCH : (step + 1) * BATCH])
        run.metric("train/loss", 0.5, step=21)
        run.digest([np.arange(4.0)])
    verdict = judge(tmp_path, elastic=True)
    assert verdict.problems == []
    assert verdict.worlds == [2, 1]
    assert verdict.num_rows == NUM_ROWS * NUM_EPOCHS
    assert len(verdict.lost) == 2


def start_anew(folder, attempt, num_workers, first, last, done=True):
    """All workers are started anew, in another number, and take the steps from `first` to before `last`."""
    for rank in range(num_workers):
        run = RunRecord(folder, rank, num_workers, attempt=attempt, pid=2000 + 10 * attempt + rank)
        run.restore(*divmod(first, STEPS), generation=2.0 + attempt)
        for epoch, step in (divmod(number, STEPS) for number in range(first, last)):
            order = np.random.default_rng(epoch).permutation(NUM_ROWS)
            run.rows(epoch, step, order[step * BATCH : (step + 1) * BATCH][rank::num_workers])
        if done:
            with run:
                run.metric("train/loss", 0.5, step=21)
                run.digest([np.arange(4.0)])


def resized(folder, sizes=(2, 1, 2)):
    """Each world but the last one is lost two steps after a checkpoint, which is at steps 0, 8 and 16."""
    for attempt, size in enumerate(sizes):
        last = attempt == len(sizes) - 1
        start_anew(folder, attempt, size, 8 * attempt, STEPS * NUM_EPOCHS if last else 8 * attempt + 10, last)


def test_a_world_that_is_started_anew_in_another_size(tmp_path):
    resized(tmp_path)
    verdict = judge(tmp_path, elastic=True, max_restarts=3, min_workers=1)
    assert verdict.problems == []
    assert verdict.worlds == [2, 1, 2]
    assert verdict.restarts == 2
    assert verdict.num_rows == NUM_ROWS * NUM_EPOCHS
    assert [worker["world_size"] for worker in verdict.lost] == [2, 2, 1]


def test_only_the_settings_allow_another_size(tmp_path):
    resized(tmp_path)
    assert "world sizes 2 -> 1 -> 2 in a run that is not elastic" in judge(tmp_path, max_restarts=3).problems
    fewer = judge(tmp_path, elastic=True, max_restarts=3, min_workers=2)
    assert fewer.problems == ["a world of 1 workers, although 2 to 2 were asked for"]


def test_more_workers_than_an_elastic_run_may_have(tmp_path):
    resized(tmp_path, sizes=(2, 3))
    verdict = judge(tmp_path, elastic=True, max_restarts=3, min_workers=1)
    assert "a world of 3 workers, although 1 to 2 were asked for" in verdict.problems


def test_an_elastic_run_that_was_never_distributed(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch, num_workers=1)
    alone = "one process did all the work, although 2 workers were asked for"
    assert f"{alone}: no other one ever joined it" in judge(tmp_path, elastic=True).problems


def test_a_search_that_one_process_did_on_a_slow_machine(tmp_path, monkeypatch):
    """Whether the second process is ready before the first has done all trials is a question of speed:
    no verdict hangs on it."""
    write_run(tmp_path, monkeypatch, num_workers=1)
    verdict = judge(tmp_path, elastic=True, on_demand=True)
    assert verdict.problems == []
    assert verdict.warnings[0].startswith("one process did all the work, although 2 workers were asked for")


def test_workers_one_after_the_other_are_two_workers(tmp_path):
    for pid in (100, 101):
        with RunRecord(tmp_path, 0, 1, pid=pid) as run:
            run.world(pid - 100, 2)
            run.work(1)
    assert not [problem for problem in judge(tmp_path, proof=(), elastic=True).problems if "one process" in problem]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    path = next(tmp_path.glob("workers/rank1-*"))
    path.write_text(path.read_text()[:-20])
    assert judge(tmp_path).problems == ["rank 1 of 2 started but did not finish"]


def write_model_parallel(folder, monkeypatch, held=(30, 40), left_out=None):
    """Two ranks that each take every row and hold a part of 60 parameters; `left_out`: (rank,
    epoch, step) not taken."""
    for rank in range(2):
        monkeypatch.setattr("os.getpid", lambda rank=rank: 2000 + rank)
        with RunRecord(folder, rank, 2) as run:
            run.restore(0, 0, generation=1.0)
            for epoch in range(NUM_EPOCHS):
                order = np.random.default_rng(epoch).permutation(NUM_ROWS)
                for step in range(STEPS):
                    if (rank, epoch, step) != left_out:
                        run.rows(epoch, step, order[step * BATCH : (step + 1) * BATCH])
            run.parameters(held=held[rank], total=60)


MODEL_PARALLEL = ("rows_once_per_epoch_on_each_rank", "parameters_are_divided")


def test_a_divided_model_as_it_should_be(tmp_path, monkeypatch):
    write_model_parallel(tmp_path, monkeypatch)
    verdict = judge(tmp_path, proof=MODEL_PARALLEL)
    assert verdict.problems == []
    assert verdict.num_rows == NUM_ROWS * NUM_EPOCHS, "rows, not rows times ranks"


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        ({"left_out": (1, 2, 0)}, "rank 1, epoch 3: 8 of 50 rows were lost"),
        ({"held": (60, 60)}, "the model is not divided: of 60 parameters the ranks hold {0: 60, 1: 60}"),
        ({"held": (30, 20)}, "the ranks together hold 50 of 60 parameters: {0: 30, 1: 20}"),
    ],
)
def test_a_divided_model_that_is_not(tmp_path, monkeypatch, spoilt, problem):
    write_model_parallel(tmp_path, monkeypatch, **spoilt)
    assert judge(tmp_path, proof=MODEL_PARALLEL).problems == [problem]


def test_a_divided_model_that_nobody_counted(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    assert judge(tmp_path, proof=("parameters_are_divided",)).problems == [
        "only ranks [] reported how many parameters they hold"
    ]


def restarted(folder, monkeypatch):
    """A first attempt that a worker's death ended, and a second one that does all."""
    for pid, rank in ((3000, 0), (3001, 1)):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        record = RunRecord(folder, rank, 2)
        record._file.close()
    write_run(folder, monkeypatch, spoil=lambda event, f: f | {"attempt": 1} if event == "start" else f)


def test_a_restart_replaces_the_attempt_before(tmp_path, monkeypatch):
    restarted(tmp_path, monkeypatch)
    verdict = judge(tmp_path, max_restarts=1)
    assert verdict.problems == []
    assert verdict.restarts == 1
    assert sorted(worker["pid"] for worker in verdict.lost) == [3000, 3001]


def test_what_a_queue_has_started_anew_replaces_what_was_before(tmp_path, monkeypatch):
    """A worker that Slurm ends when it takes a job back may note an error: the next start of the job counts."""
    for rank, error in ((0, "SystemExit: 1"), (1, None)):
        monkeypatch.setattr("os.getpid", lambda rank=rank: 3000 + rank)
        record = RunRecord(tmp_path, rank, 2)
        if error:
            record.__exit__(SystemExit, SystemExit(1), None)
        else:
            record._file.close()
    monkeypatch.setattr("os.getpid", lambda: 3002)
    RunRecord(tmp_path, 0, 2, role="ps")._file.close()
    again = time.time()
    write_run(tmp_path, monkeypatch)
    verdict = judge(tmp_path, again_since=again)
    assert verdict.problems == []
    assert sorted(worker["pid"] for worker in verdict.lost) == [3000, 3001]
    assert verdict.services == []
    assert "rank 0 on" in judge(tmp_path).problems[0]


def write_coordinated(folder, monkeypatch, chief_ends=True, takers=(("a", 4001), ("b", 4002))):
    """A chief that reports what two serving workers told it they took."""
    for rank, (host, pid) in enumerate(takers):
        with RunRecord(folder, rank, 2, host=host, pid=pid):
            pass
    monkeypatch.setattr("os.getpid", lambda: 4000)
    chief = RunRecord(folder, 0, 2, role="chief")
    chief.restore(0, 0, generation=1.0)
    for epoch in range(NUM_EPOCHS):
        for step in range(STEPS):
            rows = np.arange(NUM_ROWS)[step * BATCH : (step + 1) * BATCH]
            chief.rows(epoch, step, rows, taken_by=takers[step % 2])
    if chief_ends:
        chief.__exit__(None, None, None)


@pytest.mark.parametrize("pids", [(4001, 4002), (7, 7)])  # in pods the numbers of processes are alike
def test_rows_that_a_coordinator_reports_are_its_workers_work(tmp_path, monkeypatch, pids):
    write_coordinated(tmp_path, monkeypatch, takers=tuple(zip("ab", pids, strict=True)))
    verdict = judge(tmp_path, proof=("rows_once_per_epoch",))
    assert verdict.problems == []
    assert [worker["samples"] for worker in verdict.workers] == [NUM_EPOCHS * 26, NUM_EPOCHS * 24]
    assert [service["role"] for service in verdict.services] == ["chief"]


def test_a_chief_that_did_not_finish(tmp_path, monkeypatch):
    write_coordinated(tmp_path, monkeypatch, chief_ends=False)
    assert judge(tmp_path, proof=("rows_once_per_epoch",)).problems == ["chief 0 started but did not finish"]


@pytest.mark.parametrize(
    ("account", "problem"),
    [
        ((50, 48, 2), None),
        (None, "no worker recorded how many rows were read (RunRecord.account); call it once the input is read"),
        ((50, 47, 2), "50 rows were read, but 47 are good and 2 in quarantine"),
        ((49, 47, 2), "49 rows were read of 50"),
        ((50, 49, 1), "1 rows are in quarantine, but 2 are known to be malformed"),
    ],
)
def test_rows_that_nobody_accounts_for(tmp_path, monkeypatch, account, problem):
    write_run(tmp_path, monkeypatch)
    with RunRecord(tmp_path, 0, 1, role="driver") as run:
        if account:
            run.account(*account)
    verdict = judge(tmp_path, proof=("every_row_accounted_for",), num_malformed=2)
    assert verdict.problems == ([problem] if problem else [])
    if not problem:
        assert verdict.account == {"read": 50, "good": 48, "quarantined": 2}
        assert verdict.num_rows == 50


def write_search(folder, trials, workers=((0, 0), (0, 1), (1, 0), (1, 1))):
    """The record of a program that has searched in two phases, with its worker processes [(phase, rank), ...]."""
    with RunRecord(folder, 0, 1, role="driver") as run:
        for phase, name, epochs, score in trials:
            run.trial(phase, name, epochs, score)
    for number, (phase, rank) in enumerate(workers):
        with RunRecord(folder, rank, 2, pid=5000 + number, phase=phase) as run:
            run.work(3)


GOOD_TRIALS = [(0, "a", [1, 2, 3], 0.9), (0, "b", [1, 2, 3], 0.8), (1, "a", [1, 2], 0.7)]


def test_a_search_as_it_should_be_counts(tmp_path):
    write_search(tmp_path, GOOD_TRIALS)
    verdict = judge(tmp_path, proof=("trials_counted_once",))
    assert verdict.problems == []
    assert [(worker["phase"], worker["rank"]) for worker in verdict.workers] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("trials", "problem"),
    [
        ([], "no program recorded its trials (RunRecord.trial); call it when a trial has ended"),
        ([*GOOD_TRIALS, (0, "a", [1], 0.5)], "trial a was counted twice"),
        ([(0, "a", [1, 2, 2], 0.9)], "trial a did not train its epochs one after the other: [1, 2, 2]"),
        ([(0, "a", [1, 3], 0.9)], "trial a did not train its epochs one after the other: [1, 3]"),
        ([(0, "a", [1], float("nan"))], "trial a ended with the score nan"),
    ],
)
def test_trials_that_do_not_count(tmp_path, trials, problem):
    write_search(tmp_path, trials)
    assert judge(tmp_path, proof=("trials_counted_once",)).problems == [problem]


def test_each_phase_has_a_world_of_its_own(tmp_path):
    write_search(tmp_path, GOOD_TRIALS, workers=((0, 0), (0, 1), (1, 1), (1, 1)))
    assert judge(tmp_path, proof=("trials_counted_once",)).problems[:2] == [
        "rank 0 of 2 never started in phase 1",
        "rank 1 was taken by 2 processes in phase 1",
    ]


def test_a_run_that_only_had_to_be_summed_up(tmp_path):
    """All its searches were finished by an earlier try: nobody started, and nothing is missing."""
    write_search(tmp_path, GOOD_TRIALS)
    asked = {"proof": (), "earlier": everybody(tmp_path)}
    assert judge(tmp_path, resumed=True, **asked).problems == []
    assert "rank 0 of 2 never started" in judge(tmp_path, **asked).problems


def test_a_resumed_run_shows_the_workers_of_the_try_that_trained(tmp_path):
    """A pipeline whose training came from its cache: the proof is the earlier try's, and it must be whole."""
    write_search(tmp_path, GOOD_TRIALS, workers=((0, 0), (0, 1)))
    verdict = judge(tmp_path, proof=(), earlier=everybody(tmp_path), resumed=True, seen_pids=frozenset())
    assert verdict.problems == []
    assert [(worker["rank"], worker["earlier"]) for worker in verdict.workers] == [(0, True), (1, True)]


def test_a_resumed_run_whose_earlier_try_was_not_whole(tmp_path):
    write_search(tmp_path, GOOD_TRIALS, workers=((0, 0),))
    asked = {"proof": (), "earlier": everybody(tmp_path), "resumed": True}
    assert "rank 1 of 2 never started" in judge(tmp_path, **asked).problems


def test_workers_of_one_host_where_two_were_asked_for(tmp_path):
    for rank in range(2):
        with RunRecord(tmp_path, rank, 2, host="host1", pid=100 + rank) as run:
            run.work(1)
    assert "only host1 worked, although 2 hosts were asked for" in judge(tmp_path, proof=(), num_hosts=2).problems


def test_a_driver_that_was_held_up_while_a_worker_lived_says_so(tmp_path, monkeypatch):
    """Stopped by Ctrl-Z, or starved: how fast the driver looked is no verdict on the workers."""
    write_run(tmp_path, monkeypatch)
    held_up = {"seen_pids": frozenset({1000}), "unwatched_pids": frozenset({1001})}
    verdict = judge(tmp_path, **held_up)
    assert verdict.problems == []
    found = {one.rule: one for one in verdict.findings}["seen_by_the_operating_system"]
    assert found.outcome == "not applied"
    assert found.says == "the driver was held up, and did not look while processes 1001 worked"
    assert judge(tmp_path, **held_up | {"unwatched_pids": frozenset({7})}).problems


def test_of_an_epoch_that_a_cap_cuts_the_rows_are_only_counted(tmp_path, monkeypatch):
    cut = -(-NUM_ROWS // BATCH) + 2  # one epoch, and two steps of the next

    def spoil(event, fields):
        late = fields.get("epoch", 0) > 1 or (fields.get("epoch") == 1 and fields.get("step", 0) >= 2)
        return None if event == "rows" and late else fields

    write_run(tmp_path, monkeypatch, spoil=spoil)
    verdict = judge(tmp_path, max_steps=cut)
    assert verdict.problems == []
    found = {one.rule: one.says for one in verdict.findings}["rows_once_per_epoch"]
    rows = NUM_ROWS + 2 * BATCH
    assert (
        found
        == f"{rows} rows in 2 epochs: 1 whole, with each row once, and 1 cut by max_steps, whose rows are only counted"
    )


def test_damaged_lines_are_counted_and_a_record_without_its_start_is_nobodys(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    path = next(tmp_path.glob("workers/rank1*.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "\0\0\0\n7\n" + "".join(lines[1:]) + '{"event": "me')
    assert damaged_records(tmp_path) == {path.name: 2}
    assert judge(tmp_path).problems == []
    path.write_text("{\n" + "".join(lines[1:]))
    assert judge(tmp_path).problems[0] == "rank 1 of 2 never started"


def test_each_rule_is_told_with_its_figures(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    found = {one.rule: (one.outcome, one.says) for one in judge(tmp_path).findings}
    assert found.pop("seen_by_the_operating_system")[0] == "not applied"
    assert {outcome for outcome, _ in found.values()} == {"held"}
    assert found["rows_once_per_epoch"][1] == "150 rows in 3 epochs, each once"
    assert found["workers_as_asked_for"][1].endswith(": 150 samples")
    assert found["metrics_finite_and_agreed"][1] == "3 values, 3 of them by several ranks"
    assert found["same_parameters"][1].endswith(" on 2 ranks")
    found = {one.rule: one for one in judge(tmp_path, seen_pids=frozenset({1000})).findings}
    assert found["seen_by_the_operating_system"].outcome == "broken"
    assert "rank 1 claims process 1001" in found["seen_by_the_operating_system"].says


def test_a_rule_behind_a_broken_one_is_not_applied(tmp_path, monkeypatch):
    write_run(tmp_path, monkeypatch)
    next(tmp_path.glob("workers/rank1-*")).unlink()
    found = {one.rule: one.outcome for one in judge(tmp_path).findings}
    assert found["workers_as_asked_for"] == "broken"
    assert found["rows_once_per_epoch"] == "not applied"
