"""How a run came out: what it asked for, compared with what its workers have written.

`judge` writes the answer into the run's Result. The rules themselves are in `cookbook.evidence`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook import evidence, machine
from cookbook.evidence import causes
from cookbook.evidence.verdict import ProcessKey
from cookbook.evidence.watch import Watcher
from cookbook.job import Result, Settings, num_processes
from cookbook.places import Place, Status
from cookbook.prepare.rows import capped_rows
from runrecord import damaged_records, read_records

# What a worker's record says of the worker itself. Every other text in its first event is the version of a library.
PLACE_OF_WORKER = ("rank", "local_rank", "world_size", "host", "pid")
ABOUT_WORKERS = (*PLACE_OF_WORKER, "samples", "digest", "device", "role", "attempt", "phase", "earlier")


@dataclass(frozen=True)
class Ended:
    """What the driver knows when the workers have ended."""

    place: Place
    statuses: Mapping[str, Status]  # process -> how it ended
    watcher: Watcher
    earlier: frozenset[ProcessKey]  # the processes that had written records before this try launched any

    @property
    def failed(self) -> dict[str, Status]:
        return {name: status for name, status in self.statuses.items() if status}


def judge(result: Result, config: Settings, manifest: Mapping[str, Any], ended: Ended, resumed: bool) -> bool:
    """Writes into `result` what the evidence says: figures, status and reason.

    `manifest`: of the dataset. `resumed`: this run goes on with an earlier try. Returns whether the logs of the
    processes that failed are worth showing.
    """
    verdict = evidence.judge(read_records(Path(result.folder)), _asked(config, manifest, ended, resumed))
    _take_figures(result, verdict, manifest)
    result.warnings += ended.place.warnings
    result.warnings += [
        f"workers/{name}: {count} damaged lines were left out, whatever they said"
        for name, count in damaged_records(result.folder).items()
    ]
    if config["cluster"]["kind"] == "local":
        result.warnings += machine.idle_gpu([worker["device"] for worker in result.workers])
    problems = _problems(result, verdict, ended)
    if verdict.preempted:
        result.status, result.reason = "preempted", verdict.preempted
    elif verdict.diverged:
        result.fail(verdict.diverged)  # the same settings would diverge again
    elif problems:
        if cause := _cause(Path(result.folder) / "logs", verdict, ended):
            problems.insert(0, cause)
        # Another try may help where a worker, chief or ps was lost. Other problems would only come again.
        result.fail("; ".join(problems), resumable=bool(verdict.lost or verdict.unfinished))
        return True
    else:
        result.status, result.resumable = "ok", False
    return False


def _asked(config: Settings, manifest: Mapping[str, Any], ended: Ended, resumed: bool) -> evidence.Asked:
    """What the evidence is compared with."""
    recipe, driver = config["recipe"], config["recipe"]["driver"]
    on_demand = driver.get("workers_on_demand", False)
    return evidence.Asked(
        num_workers=num_processes(config),
        num_hosts=ended.place.num_hosts,
        proof=tuple(driver["proof"]),
        elastic=on_demand or recipe.get("elastic", False) or driver.get("changes_members", False),
        min_workers=recipe.get("min_workers"),
        on_demand=on_demand,
        max_restarts=recipe.get("max_restarts", 0),
        num_rows=capped_rows(config, manifest["rows"]),
        num_malformed=manifest.get("malformed"),
        global_batch_size=recipe.get("global_batch_size", 1),
        num_epochs=recipe.get("num_epochs", 0),
        max_steps=config["scale"]["max_steps"],
        resumed=resumed,
        earlier=ended.earlier,
        again_since=ended.place.again_since,
        seen_pids=frozenset(ended.watcher.seen_pids) if ended.place.sees_processes else None,
        unwatched_pids=frozenset(ended.watcher.unwatched_pids),
    )


def _take_figures(result: Result, verdict: evidence.Verdict, manifest: Mapping[str, Any]) -> None:
    """Copies what the workers have reported into the result."""
    first = verdict.workers[0] if verdict.workers else {}
    result.world_size, result.worlds = first.get("world_size", 0), verdict.worlds
    result.workers = [{key: worker.get(key) for key in ABOUT_WORKERS} for worker in verdict.workers]
    result.lost_workers = [{key: worker.get(key) for key in PLACE_OF_WORKER} for worker in verdict.lost]
    result.services = [{key: one.get(key) for key in ("role", *PLACE_OF_WORKER)} for one in verdict.services]
    result.restarts, result.num_rows, result.skipped = verdict.restarts, verdict.num_rows, verdict.skipped
    result.metrics, result.curves, result.curve_seconds = verdict.metrics, verdict.curves, verdict.curve_seconds
    result.warnings, result.findings = [*result.warnings, *verdict.warnings], verdict.findings
    result.account = verdict.account or manifest.get("account", {})
    result.versions = {
        key: value for key, value in first.items() if key not in ABOUT_WORKERS and isinstance(value, str)
    }
    result.objective.value = verdict.metrics.get(result.objective.name)


def _problems(result: Result, verdict: evidence.Verdict, ended: Ended) -> list[str]:
    """Why the run does not count; empty when it does."""
    statuses = [f"{name} ended with exit status {status}" for name, status in ended.failed.items()]
    problems = [*verdict.problems, *statuses]
    objective = result.objective
    if not problems and objective.value is None and not objective.optional:
        return [f"no worker reported the run's objective, {objective.name}"]
    return problems


def _cause(logs: Path, verdict: evidence.Verdict, ended: Ended) -> str:
    """What the logs say of the cause, where the workers' records only tell of its consequences; else empty.

    A worker whose partner has died records a closed connection. Why the partner died stands in its log.
    """
    if not ended.failed or not all(causes.CONSEQUENCE.search(error) for error in verdict.errors):
        return ""
    said = causes.cause_of(logs, ended.watcher.log_sizes) or ""
    if not (said or verdict.workers or verdict.lost):  # a launcher that could not even start them
        said = causes.last_words(logs, ended.watcher.log_sizes, count=4)
    return "" if verdict.errors and causes.CONSEQUENCE.search(said) else said
