"""Rules of evidence that a recipe chooses by name, in `driver.proof`: what must be true of its rows and its parameters.

Each takes the records, the verdict so far and what was asked. It returns sentences that say what is wrong.
"""

import math
from collections.abc import Callable, Sequence

from cookbook.evidence.verdict import Asked, Verdict
from runrecord import Event, Record


def rows_once_per_epoch(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """Each training row was taken exactly once in each epoch, over all workers and all tries of this run."""
    taken = _rows_in_effect(records)
    verdict.num_rows = sum(event["count"] for event in taken)
    verdict.figures["rows_once_per_epoch"] = _each_once(taken, asked)
    return _epochs(taken, asked)


def rows_once_per_epoch_on_each_rank(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """Model parallelism: every rank computed its part of the model for every row, once in each epoch."""
    problems: list[str] = []
    for rank in range(asked.num_workers):
        taken = _rows_in_effect([events for events in records if events[0].get("rank") == rank])
        verdict.num_rows = sum(event["count"] for event in taken)
        problems += [f"rank {rank}, {problem}" for problem in _epochs(taken, asked)]
        figure = f"{asked.num_workers} ranks: {_each_once(taken, asked)}"
        verdict.figures["rows_once_per_epoch_on_each_rank"] = figure
    return problems[:10]


def enough_rows_per_epoch(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """Each epoch took at least as many rows as it has. No more is known where each worker has a stream of its own."""
    taken = _rows_in_effect(records)
    verdict.num_rows = sum(event["count"] for event in taken)
    verdict.figures["enough_rows_per_epoch"] = f"{verdict.num_rows:,} rows in {_num_epochs(taken)} epochs"
    return _epochs(taken, asked, exactly=False)


def _num_epochs(taken: Sequence[Event]) -> int:
    return len({event["epoch"] for event in taken})


def _each_once(taken: Sequence[Event], asked: Asked) -> str:
    """What was shown of the rows; of an epoch that `max_steps` has cut only their number is known."""
    counts: dict[int, int] = {}
    for event in taken:
        counts[event["epoch"]] = counts.get(event["epoch"], 0) + event["count"]
    cut = sum(0 < count < asked.num_rows for count in counts.values())
    total = f"{sum(counts.values()):,} rows in {len(counts)} epochs"
    if not cut:
        return f"{total}, each once"
    whole = f"{len(counts) - cut} whole, with each row once, and " if len(counts) > cut else ""
    return f"{total}: {whole}{cut} cut by max_steps, whose rows are only counted"


def _epochs(taken: Sequence[Event], asked: Asked, exactly: bool = True) -> list[str]:
    """What is wrong with the rows that were taken, epoch by epoch. Not `exactly`: more rows than there are is fine."""
    per_epoch: dict[int, list[int]] = {}  # epoch -> [rows, sum of their numbers, sum of the squares of their numbers]
    for event in taken:
        sums = per_epoch.setdefault(event["epoch"], [0, 0, 0])
        for index, key in enumerate(("count", "sum", "sum_sq")):
            sums[index] += event[key]
    taken_steps: dict[int, int] = {}
    for event in taken:
        taken_steps[event["epoch"]] = max(taken_steps.get(event["epoch"], 0), event["step"] + 1)
    n, batch = asked.num_rows, asked.global_batch_size
    steps_per_epoch = -(-n // batch)
    left = math.inf if asked.max_steps is None else asked.max_steps
    problems, epoch, uneven = [], -1, False
    while left > 0 and epoch + 1 < asked.num_epochs:
        epoch += 1
        steps, found = min(steps_per_epoch, left), taken_steps.get(epoch, 0)
        wanted = min(n, int(steps * batch))
        count, total, total_sq = per_epoch.pop(epoch, [0, 0, 0])
        # Shards of unequal size end at different times: an epoch then has more steps, and the last ones are smaller.
        more_steps = count == n and found > steps_per_epoch
        cut_short, left = uneven and found == left, left - (found if more_steps else steps)
        uneven = uneven or more_steps
        if cut_short and 0 < count < wanted:
            continue  # by max_steps, among smaller steps
        if count < wanted:
            problems.append(f"epoch {epoch + 1}: {wanted - count:,} of {wanted:,} rows were lost")
        elif not exactly:
            continue
        elif count > wanted:
            problems.append(
                f"epoch {epoch + 1}: {count - wanted:,} rows were counted twice ({count:,} instead of {wanted:,})"
            )
        elif wanted == n and not _is_each_once(n, total, total_sq):
            problems.append(f"epoch {epoch + 1}: {n:,} rows, but not each one once: some were lost and others doubled")
    problems += [f"rows were trained on in epoch {epoch + 1}, which nobody asked for" for epoch in sorted(per_epoch)]
    return problems[:10]


def _is_each_once(n: int, total: int, total_sq: int) -> bool:
    """Whether sum and sum of squares are those of the numbers 0 to n-1, as far as 64 bits say."""
    return (total - n * (n - 1) // 2) % 2**64 == 0 and (total_sq - (n - 1) * n * (2 * n - 1) // 6) % 2**64 == 0


def _rows_in_effect(records: Sequence[Record]) -> list[Event]:
    """The `rows` events that count: not those of steps that a later generation has gone back behind."""
    rows: list[tuple[float, Event]] = []
    restores: dict[float, tuple[int, int]] = {}  # generation -> the (epoch, step) from which it went on
    for events in records:
        generation = 0.0
        for event in events:
            if event["event"] == "rows":
                rows.append((generation, event))
            elif event["event"] == "restore":
                generation = event["generation"]
                restores[generation] = (event["epoch"], event["step"])
    for restored, position in restores.items():
        rows = [
            (generation, row)
            for generation, row in rows
            if generation >= restored or (row["epoch"], row["step"]) < position
        ]
    return [row for _, row in rows]


def every_row_accounted_for(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """All rows of the dataset were read, each is good or in quarantine, and the malformed ones are in quarantine."""
    found = [event for events in records for event in events if event["event"] == "account"]
    if not found:
        return ["no worker recorded how many rows were read (RunRecord.account); call it once the input is read"]
    last = max(found, key=lambda event: event["time"])
    verdict.account = {key: last[key] for key in ("read", "good", "quarantined")}
    verdict.num_rows, problems = last["read"], []
    verdict.figures["every_row_accounted_for"] = (
        f"{last['read']:,} rows read: {last['good']:,} good, {last['quarantined']:,} in quarantine"
    )
    if last["read"] != last["good"] + last["quarantined"]:
        problems.append(
            f"{last['read']:,} rows were read, but {last['good']:,} are good and {last['quarantined']:,} in quarantine"
        )
    if asked.num_rows and last["read"] != asked.num_rows:
        problems.append(f"{last['read']:,} rows were read of {asked.num_rows:,}")
    if asked.num_malformed is not None and last["quarantined"] != asked.num_malformed:
        problems.append(
            f"{last['quarantined']:,} rows are in quarantine, but {asked.num_malformed:,} are known to be malformed"
        )
    return problems


def trials_counted_once(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """Each trial of a search ended once, and trained its epochs one after the other, none of them twice."""
    # A program that resumes a run reports the earlier trials again, so the newest program's report counts.
    with_trials = [events for events in records if any(event["event"] == "trial" for event in events)]
    if not with_trials:
        return ["no program recorded its trials (RunRecord.trial); call it when a trial has ended"]
    last = max(with_trials, key=lambda events: events[0]["time"])
    trials = [event for event in last if event["event"] == "trial"]
    problems: list[str] = []
    seen: set[tuple[str | int, str | int]] = set()
    verdict.figures["trials_counted_once"] = (
        f"{len(trials)} trials, {sum(len(trial['epochs']) for trial in trials)} epochs"
    )
    for trial in trials:
        key = trial["phase"], trial["id"]
        if key in seen:
            problems.append(f"trial {trial['id']} was counted twice")
        seen.add(key)
        if trial["epochs"] != list(range(1, len(trial["epochs"]) + 1)):
            problems.append(f"trial {trial['id']} did not train its epochs one after the other: {trial['epochs']}")
        if not math.isfinite(trial["score"]):
            problems.append(f"trial {trial['id']} ended with the score {trial['score']}")
    return problems[:10]


def same_parameters(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """All data-parallel ranks end with bit-identical parameters."""
    digests = {worker["digest"] for worker in verdict.workers}
    if None in digests:
        return ["a worker reported no digest of its final parameters"]
    if len(digests) > 1:
        each = ", ".join(f"rank {worker['rank']} {worker['digest'][:12]}" for worker in verdict.workers)
        return [f"the ranks ended with different parameters: {each}"]
    digest = next(iter(digests), None) or ""
    verdict.figures["same_parameters"] = f"SHA-256 {digest[:16]} on {len(verdict.workers)} ranks"
    return []


def parameters_are_divided(records: Sequence[Record], verdict: Verdict, asked: Asked) -> list[str]:
    """The ranks together hold the whole model, and none of them holds all of it."""
    finished = {(worker["host"], worker["pid"]) for worker in verdict.workers}
    held: dict[int, int] = {}  # rank -> parameters
    total = 0
    for events in records:
        if (events[0].get("host"), events[0].get("pid")) in finished:
            for event in events:
                if event["event"] == "parameters":
                    held[events[0]["rank"]], total = event["held"], event["total"]
    if not held or len(held) < len(verdict.workers):
        return [f"only ranks {sorted(held)} reported how many parameters they hold"]
    shares = ", ".join(f"rank {rank} {count:,}" for rank, count in sorted(held.items()))
    verdict.figures["parameters_are_divided"] = f"of {total:,} parameters: {shares}"
    if sum(held.values()) < total:
        return [f"the ranks together hold {sum(held.values()):,} of {total:,} parameters: {held}"]
    if len(held) > 1 and max(held.values()) >= total:
        return [f"the model is not divided: of {total:,} parameters the ranks hold {held}"]
    return []


RULES: dict[str, Callable[[Sequence[Record], Verdict, Asked], list[str]]] = {
    rule.__name__: rule
    for rule in (
        rows_once_per_epoch,
        rows_once_per_epoch_on_each_rank,
        enough_rows_per_epoch,
        every_row_accounted_for,
        trials_counted_once,
        same_parameters,
        parameters_are_divided,
    )
}
