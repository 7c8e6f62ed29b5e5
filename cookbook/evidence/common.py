"""The rules that every run must hold. Those that a recipe adds are in rules.py."""

import math
from collections.abc import Iterable, Sequence

from cookbook.evidence.verdict import Asked, Verdict, Worker
from cookbook.job import Finding
from runrecord import Record


def workers_as_asked_for(verdict: Verdict, asked: Asked) -> list[str]:
    """As many workers worked as were asked for, in each phase; each was a process of its own and did some work."""
    problems: list[str] = []
    if verdict.done_before and asked.elastic:
        return []  # an earlier try had done all the work; this one only summed it up
    phases = sorted({worker.get("phase", 0) for worker in verdict.workers + verdict.lost}) or [0]
    for phase in phases:
        where = f" in phase {phase}" if len(phases) > 1 else ""
        workers, lost = ([w for w in some if w.get("phase", 0) == phase] for some in (verdict.workers, verdict.lost))
        problems += [problem + where for problem in _world(workers, lost, asked)]
    hosts = {worker["host"] for worker in verdict.workers}
    if hosts and len(hosts) < asked.num_hosts and not asked.elastic:
        problems.append(f"only {', '.join(sorted(hosts))} worked, although {asked.num_hosts} hosts were asked for")
    if not asked.elastic and len(verdict.worlds) > 1:
        problems.append(f"world sizes {' -> '.join(map(str, verdict.worlds))} in a run that is not elastic")
    if asked.elastic and asked.min_workers is not None:
        fewest, most = asked.min_workers, asked.num_workers
        problems += [
            f"a world of {size} workers, although {fewest} to {most} were asked for"
            for size in sorted(set(verdict.worlds))
            if not fewest <= size <= most
        ]
    # What was left of a resumed run may have been work for one worker.
    # It does not matter whether the processes ran at the same time: a slow machine may start the second one late.
    used = {(worker["host"], worker["pid"]) for worker in verdict.workers + verdict.lost}
    if asked.elastic and asked.num_workers > 1 and len(used) < 2 and not asked.resumed and used:
        alone = f"one process did all the work, although {asked.num_workers} workers were asked for"
        if asked.on_demand:
            verdict.warnings.append(
                f"{alone}: the others were not ready before it had ended, or there was too little to do"
            )
        else:
            problems.append(f"{alone}: no other one ever joined it")
    for worker in verdict.workers:
        # A worker that joined late, or that resumed at the very end, finds nothing to do. Other rules count the rows.
        excused = asked.elastic or (asked.resumed and not any(other["samples"] for other in verdict.workers))
        if not worker["samples"] and not excused:
            problems.append(f"rank {worker['rank']} did no work (0 samples)")
    num_samples = sum(worker["samples"] or 0 for worker in verdict.workers)
    where = f"{len(used)} processes on {', '.join(sorted(hosts))}"
    verdict.figures["workers_as_asked_for"] = f"{len(verdict.workers)} workers in {where}: {num_samples:,} samples"
    return problems


def seen_by_the_operating_system(verdict: Verdict, asked: Asked) -> Finding:
    """Whether the operating system showed each worker's process while the run went on."""
    rule = "seen_by_the_operating_system"
    if asked.seen_pids is None:
        return Finding(rule, "not applied", "the workers do not run under this machine's operating system")
    claimed = {worker["pid"]: worker["rank"] for worker in verdict.workers if "earlier" not in worker}
    problems = [
        f"rank {rank} claims process {pid}, which the operating system never showed in this run"
        for pid, rank in claimed.items()
        if pid not in asked.seen_pids | asked.unwatched_pids
    ]
    if problems:
        verdict.problems += problems
        return Finding(rule, "broken", "; ".join(problems))
    if unwatched := sorted(claimed.keys() & asked.unwatched_pids - asked.seen_pids):
        pids = ", ".join(map(str, unwatched))
        return Finding(rule, "not applied", f"the driver was held up, and did not look while processes {pids} worked")
    pids = ", ".join(map(str, claimed))
    return Finding(rule, "held", f"processes {pids}" if pids else "none in this try")


def _world(workers: Sequence[Worker], lost: Sequence[Worker], asked: Asked) -> list[str]:
    """What is wrong with the ranks of one world."""
    problems: list[str] = []
    ranks = [worker["rank"] for worker in workers]
    started = {worker["rank"] for worker in [*workers, *lost]}
    expected = workers[0]["world_size"] if asked.elastic and workers else asked.num_workers
    for rank in range(expected):
        if ranks.count(rank) == 0:
            what = "started but did not finish" if rank in started else "never started"
            problems.append(f"rank {rank} of {expected} {what}")
        elif ranks.count(rank) > 1:
            problems.append(f"rank {rank} was taken by {ranks.count(rank)} processes")
    if extra := sorted(set(ranks) - set(range(expected))):
        problems.append(f"ranks {extra} worked although only {expected} workers were expected")
    sizes = {worker["world_size"] for worker in workers}
    if sizes and sizes != {expected}:
        problems.append(f"the workers saw world sizes {sorted(sizes)}, expected {expected}")
    processes = {(worker["host"], worker["pid"]) for worker in workers}
    if len(processes) < len(workers):
        problems.append(f"{len(workers)} ranks, but only {len(processes)} processes")
    return problems


def metrics_finite_and_agreed(verdict: Verdict, current: Iterable[Record]) -> list[str]:
    """Every metric is a finite number, and ranks that report the same one agree."""
    problems: list[str] = []
    values: dict[tuple[int, str, int], dict[int, float]] = {}  # (generation, name, step) -> {rank: value}
    for events in current:
        rank, generation = events[0]["rank"], 0
        for event in events:
            if event["event"] == "world":
                rank = event["rank"]
            elif event["event"] == "restore":
                generation = event["generation"]  # an epoch that is trained again after a loss has another result
            elif event["event"] == "metric":
                if not math.isfinite(event["value"]):
                    problems.append(f"{event['name']} is {event['value']} at step {event['step']} on rank {rank}")
                values.setdefault((generation, event["name"], event["step"]), {})[rank] = event["value"]
    num_compared = sum(len(by_rank) > 1 for by_rank in values.values())
    verdict.figures["metrics_finite_and_agreed"] = f"{len(values):,} values, {num_compared:,} of them by several ranks"
    for (_, name, step), by_rank in values.items():
        if not math.isclose(min(by_rank.values()), max(by_rank.values()), rel_tol=1e-6, abs_tol=1e-12):
            problems.append(f"the ranks disagree on {name} at step {step}: {by_rank}; was it reduced over them?")
    return problems[:10]
