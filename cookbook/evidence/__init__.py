"""Reads the run record and decides whether the run counts: was it distributed, and is its result whole?

An exit status or a summary proves nothing here. Each rule looks at what the worker processes wrote while they worked,
and at what the operating system said about them. A broken rule becomes a sentence in `Verdict.problems`.
"""

import statistics
from collections.abc import Sequence

from cookbook import UserError
from cookbook.evidence import common, facts
from cookbook.evidence.rules import RULES
from cookbook.evidence.verdict import Asked, Verdict, process_keys
from cookbook.job import Finding
from runrecord import Record

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
    verdict.errors = facts.errors_of(current + services)
    verdict.preempted = facts.preempted(records, current)
    if verdict.preempted:
        verdict.findings = [Finding(rule, "not applied", "the run is not over") for rule in (*COMMON, *asked.proof)]
        return verdict
    verdict.figures["no_process_failed"] = f"{len(current + services)} processes ended by themselves"
    verdict.diverged = next((error for error in verdict.errors if " ended with Diverged: " in error), "")
    gone = [events[0] for events in services if facts.end_of(events) is None]
    verdict.unfinished = [f"{start['role']} {start['rank']} started but did not finish" for start in gone]
    _find(verdict, "no_process_failed", verdict.errors)
    _find(verdict, "workers_as_asked_for", common.workers_as_asked_for(verdict, asked) + verdict.unfinished)
    verdict.findings.append(common.seen_by_the_operating_system(verdict, asked))
    _find(verdict, "metrics_finite_and_agreed", common.metrics_finite_and_agreed(verdict, current + services))
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
    workers = [events for events in begun if events[0].get("role", "worker") == "worker"]
    # Where the place has started all anew (Slurm's queue), those of before are lost, however they ended.
    anew = [events for events in begun if events[0]["time"] >= asked.again_since]
    services = [events for events in anew if events not in workers]
    finished = [events for events in records if events[0].get("role", "worker") == "worker" and facts.end_of(events)]
    verdict.done_before = asked.resumed and not workers and bool(finished) and "phase" in finished[-1][0]
    # A launcher that starts all workers anew replaces those of the attempt before, however they ended.
    verdict.restarts = max((facts.attempt_of(events) for events in workers), default=0)
    current = [events for events in workers if facts.attempt_of(events) == verdict.restarts or not asked.max_restarts]
    current = [events for events in current if events in anew]
    reported = facts.samples_reported(begun)
    for events in workers:
        ended = events in current and facts.end_of(events) is not None and not facts.preempted_by(events)
        worker = facts.described(events)
        if ended:
            worker["samples"] = (worker["samples"] or 0) + reported.get((worker["host"], worker["pid"]), 0)
        (verdict.workers if ended else verdict.lost).append(worker)
    if verdict.done_before:
        last = {(events[0]["phase"], events[0]["rank"]): events for events in finished if "phase" in events[0]}
        verdict.workers = [facts.described(events) | {"earlier": True} for events in last.values()]
    verdict.workers.sort(key=lambda worker: (worker.get("phase", 0), worker["rank"]))
    verdict.services = [facts.described(events) for events in services]
    verdict.worlds = facts.worlds_of(workers)
    return current, services


def _take_figures(records: Sequence[Record], verdict: Verdict) -> None:
    """Notes what the workers measured, over all tries of the run."""
    skips = [event for events in records for event in events if event["event"] == "skip"]
    verdict.skipped = {event["step"]: event["reason"] for event in sorted(skips, key=lambda event: event["time"])}
    verdict.curves, verdict.curve_seconds = facts.curves_of(records)
    verdict.metrics = {name: points[-1][1] for name, points in verdict.curves.items()}
    if speed := [value for _, value in verdict.curves.get("samples_per_second", [])]:
        verdict.metrics["samples_per_second"] = statistics.median(speed[1:] or speed)  # the first epoch warms up


def _find(verdict: Verdict, rule: str, problems: list[str]) -> None:
    """Notes what became of a rule: held, with its figures, or broken."""
    verdict.problems += problems
    says = "; ".join(problems) if problems else verdict.figures.get(rule, "")
    verdict.findings.append(Finding(rule, "broken" if problems else "held", says))
