"""Reads the run record and decides whether the run counts: was it distributed, and is its result whole?

An exit status or a summary proves nothing here. Each rule looks at what the worker processes wrote while they worked,
and at what the operating system said about them. A broken rule becomes a sentence in `Verdict.problems`.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

from cookbook import UserError
from cookbook.evidence.rules import RULES
from cookbook.evidence.verdict import Asked, Curves, Verdict, Worker, process_keys
from cookbook.job import Finding
from runrecord import Event, Record

__all__ = ["Asked", "Verdict", "check_rules", "judge", "process_keys"]


def check_rules(names: Sequence[str]) -> None:
    """Raises UserError for a rule that does not exist."""
    for name in names:
        if name not in RULES:
            raise UserError(f"driver.proof: rule {name!r} is unknown; there are: {', '.join(RULES)}")


# What every run must hold; a recipe's `driver.proof` adds others.
COMMON = ("no_process_failed", "workers_as_asked_for", "seen_by_the_operating_system", "metrics_finite_and_agreed")


def judge(records: Sequence[Record], asked: Asked) -> Verdict:
    """Returns the verdict over a run's records, as `runrecord.read_records` gives them."""
    verdict = Verdict()
    current, services = _sort_out(records, verdict, asked)
    _take_figures(records, verdict)
    verdict.errors = _errors(current + services)
    verdict.preempted = _preempted(records, current)
    if verdict.preempted:
        verdict.findings = [Finding(rule, "not applied", "the run is not over") for rule in (*COMMON, *asked.proof)]
        return verdict
    verdict.figures["no_process_failed"] = f"{len(current + services)} processes ended by themselves"
    verdict.diverged = next((error for error in verdict.errors if " ended with Diverged: " in error), "")
    gone = [events[0] for events in services if _end(events) is None]
    unfinished = [f"{start['role']} {start['rank']} started but did not finish" for start in gone]
    _find(verdict, "no_process_failed", verdict.errors)
    _find(verdict, "workers_as_asked_for", _membership(verdict, asked) + unfinished)
    verdict.findings.append(_seen(verdict, asked))
    _find(verdict, "metrics_finite_and_agreed", _metrics(verdict, current + services))
    broken = bool(verdict.problems)
    for name in asked.proof:
        found = RULES[name](records, verdict, asked)
        if broken:
            # When a worker is missing, its rows are missing too: only the first is worth saying.
            verdict.findings.append(Finding(name, "not applied", "a rule above is broken already"))
        else:
            _find(verdict, name, found)
    return verdict


def _sort_out(records: Sequence[Record], verdict: Verdict, asked: Asked) -> tuple[list[Record], list[Record]]:
    """Notes who finished and who was lost. Returns the records of this try: (workers that count, services)."""
    begun = [events for events in records if process_keys([events]) - asked.earlier]
    services = [events for events in begun if events[0].get("role", "worker") != "worker"]
    workers = [events for events in begun if events not in services]
    finished = [events for events in records if events[0].get("role", "worker") == "worker" and _end(events)]
    verdict.done_before = asked.resumed and not workers and bool(finished) and "phase" in finished[-1][0]
    # A launcher that starts all workers anew replaces those of the attempt before, however they ended.
    verdict.restarts = max((_attempt(events) for events in workers), default=0)
    current = [events for events in workers if _attempt(events) == verdict.restarts or not asked.max_restarts]
    reported = _samples_reported(begun)
    for events in workers:
        ended = events in current and _end(events) is not None and not _left(events)
        worker = _describe(events)
        worker["samples"] = (worker["samples"] or 0) + reported.get(worker["pid"], 0) if ended else worker["samples"]
        (verdict.workers if ended else verdict.lost).append(worker)
    if verdict.done_before:
        last = {(events[0]["phase"], events[0]["rank"]): events for events in finished if "phase" in events[0]}
        verdict.workers = [_describe(events) | {"earlier": True} for events in last.values()]
    verdict.workers.sort(key=lambda worker: (worker.get("phase", 0), worker["rank"]))
    verdict.services = [_describe(events) for events in services]
    verdict.worlds = _worlds(workers)
    return current, services


def _take_figures(records: Sequence[Record], verdict: Verdict) -> None:
    """Notes what the workers measured, over all tries of the run."""
    skips = [event for events in records for event in events if event["event"] == "skip"]
    verdict.skipped = {event["step"]: event["reason"] for event in sorted(skips, key=lambda event: event["time"])}
    verdict.curves, verdict.curve_seconds = _curves(records)
    verdict.metrics = {name: points[-1][1] for name, points in verdict.curves.items()}
    if speed := [value for _, value in verdict.curves.get("samples_per_second", [])]:
        verdict.metrics["samples_per_second"] = statistics.median(speed[1:] or speed)  # the first epoch warms up


def _find(verdict: Verdict, rule: str, problems: list[str]) -> None:
    """Notes what became of a rule: held, with its figures, or broken."""
    verdict.problems += problems
    says = "; ".join(problems) if problems else verdict.figures.get(rule, "")
    verdict.findings.append(Finding(rule, "broken" if problems else "held", says))


def _end(events: Record) -> Event | None:
    return events[-1] if events[-1]["event"] == "end" else None


def _left(events: Record) -> str:
    """By what a process was preempted; empty if it was not."""
    return str((_end(events) or {}).get("preempted", ""))


def _attempt(events: Record) -> int:
    attempt: int = events[0].get("attempt", 0)
    return attempt


def _samples_reported(records: Iterable[Record]) -> dict[int, int]:
    """process -> the samples that it took, as another process (a coordinator) reports."""
    reported: dict[int, int] = {}
    for events in records:
        for event in events:
            if event["event"] == "rows" and "pid" in event:
                reported[event["pid"]] = reported.get(event["pid"], 0) + event["count"]
    return reported


def _describe(events: Record) -> Worker:
    start, end = events[0], _end(events) or {}
    world = next((event for event in reversed(events) if event["event"] == "world"), start)
    facts = {key: value for key, value in start.items() if key not in ("event", "time")}
    return {
        **facts,
        "rank": world["rank"],
        "world_size": world["world_size"],
        "samples": end.get("samples"),
        "digest": end.get("digest"),
    }


def _worlds(current: Iterable[Record]) -> list[int]:
    """World sizes in the order of time, as rank 0 saw them; repeated ones once."""
    seen = [event for events in current for event in events if event["event"] in ("start", "world")]
    sizes = sorted((event["time"], event["world_size"]) for event in seen if event["rank"] == 0)
    return [size for index, (_, size) in enumerate(sizes) if index == 0 or size != sizes[index - 1][1]]


def _curves(records: Sequence[Record]) -> tuple[Curves, dict[str, list[float]]]:
    """The curves, and the seconds of their points, as `Verdict` has them.

    Of several ranks the lowest one counts, and of several values of a step (after a resume) the latest one.
    """
    began = min((events[0]["time"] for events in records), default=0)
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for events in sorted(records, key=lambda events: (-events[0]["rank"], events[0]["time"])):
        for event in events:
            if event["event"] == "metric":
                seconds = round(event["time"] - began, 3)
                points.setdefault(event["name"], {})[event["step"]] = event["value"], seconds
    in_order = {name: sorted(values.items()) for name, values in points.items()}
    curves = {name: [(step, value) for step, (value, _) in values] for name, values in in_order.items()}
    return curves, {name: [seconds for _, (_, seconds) in values] for name, values in in_order.items()}


def _errors(current: Iterable[Record]) -> list[str]:
    ends = [(events[0], _end(events) or {}) for events in current]
    return [
        f"rank {start['rank']} on {start['host']} ended with {end['error'].strip()}"
        for start, end in ends
        if "error" in end
    ]


def _preempted(records: Sequence[Record], current: Sequence[Record]) -> str:
    """By what the workers were preempted, and where they have saved; empty unless they were, and nothing failed.

    Workers that another start has replaced since then (Slurm has put the job back into the queue) do not count.
    """
    in_order = sorted(current, key=lambda events: events[0]["time"])
    newest = {(events[0].get("phase", 0), events[0]["rank"]): events for events in in_order}
    reasons = [reason for events in newest.values() if (reason := _left(events))]
    if not reasons or _errors(current):  # who waits for the workers (a pipeline's driver) may end with an error
        return ""
    saved = [event for events in records for event in events if event["event"] == "checkpoint"]
    last = max(saved, key=lambda event: event["time"], default=None)
    where = f"saved at epoch {last['epoch'] + 1} after step {last['step']}" if last else "nothing was done yet"
    told = next((reason for reason in reasons if not reason.startswith("another")), reasons[0])
    return f"preempted by {told}: {where}; the same command goes on from there"


def _membership(verdict: Verdict, asked: Asked) -> list[str]:
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


def _seen(verdict: Verdict, asked: Asked) -> Finding:
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


def _metrics(verdict: Verdict, current: Iterable[Record]) -> list[str]:
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
