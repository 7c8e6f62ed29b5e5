"""What each stage cost (`profile=true`): Spark's own event log, and what it says.

traces/<application> is the log, which Spark's History Server shows ("Monitoring and Instrumentation" in Spark's
documentation). traces/<application>.json.gz has the tasks over time, and https://ui.perfetto.dev opens it. The report
gets a table of the stages.
"""

import gzip
import json
from pathlib import Path

MOST = 20  # stages in the table, those with the most seconds of tasks


def with_event_log(builder, config):
    """The builder of a session that writes a log, if the settings ask for it."""
    if not config.profile:
        return builder
    folder = Path(config.output_dir, "traces").resolve()
    folder.mkdir(exist_ok=True)
    options = {"enabled": True, "dir": folder.as_uri(), "rolling.enabled": False, "compress": False}
    for key, value in options.items():
        builder = builder.config(f"spark.eventLog.{key}", value)
    return builder


def keep(application, config, run):
    """Makes trace and table from the log of a session that was stopped; nothing without a log."""
    if not config.profile:
        return
    path = Path(config.output_dir, "traces", application)
    with path.open() as lines:
        stages, tasks = read(map(json.loads, lines))
    content = {"traceEvents": list(trace_events(stages, tasks))}
    path.with_name(f"{path.name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    run.table("stages with the most seconds of tasks", costs(stages, tasks)[:MOST])


def read(events):
    """({(stage, attempt): (step of the recipe, name, seconds)}, [end of a task, ...]) of a log's events."""
    steps, stages, tasks = {}, {}, []
    for event in events:
        info = event.get("Stage Info", {})
        key = info.get("Stage ID"), info.get("Stage Attempt ID")
        if event["Event"] == "SparkListenerStageSubmitted":
            steps[key] = event["Properties"].get("spark.job.description", "")
        elif event["Event"] == "SparkListenerStageCompleted" and "Submission Time" in info:
            seconds = (info["Completion Time"] - info["Submission Time"]) / 1000
            stages[key] = steps[key], info["Stage Name"], seconds
        elif event["Event"] == "SparkListenerTaskEnd":
            tasks.append(event)
    return stages, tasks


def costs(stages, tasks):
    """A row for each stage, the one with the most seconds of tasks first."""
    rows = []
    for (number, attempt), (step, name, seconds) in stages.items():
        mine = [one for one in tasks if (one["Stage ID"], one["Stage Attempt ID"]) == (number, attempt)]
        metrics = [one["Task Metrics"] for one in mine if one.get("Task Metrics")]  # a lost task has none
        reads = [one["Shuffle Read Metrics"] for one in metrics]
        run_ms, gc_ms = (sum(one[key] for one in metrics) for key in ("Executor Run Time", "JVM GC Time"))
        rows.append(
            {
                "step": step,
                "stage": number,
                "what": name,
                "seconds": seconds,
                "tasks": len(mine),
                "seconds of tasks": run_ms / 1000,
                "GC, percent of them": round(100 * gc_ms / run_ms, 1) if run_ms else 0.0,
                "shuffle read, bytes": sum(one["Remote Bytes Read"] + one["Local Bytes Read"] for one in reads),
                "shuffle written, bytes": sum(one["Shuffle Write Metrics"]["Shuffle Bytes Written"] for one in metrics),
            }
        )
    return sorted(rows, key=lambda row: -row["seconds of tasks"])


def trace_events(stages, tasks):
    """Chrome's trace events: a process for each executor, a row in it for each task that runs at the same time."""
    executors = sorted({(one["Task Info"]["Executor ID"], one["Task Info"]["Host"]) for one in tasks})
    for pid, (executor, host) in enumerate(executors):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"executor {executor} on {host}"}}
    free = {executor: [] for executor in executors}  # when each row is free again
    for one in sorted(tasks, key=lambda one: one["Task Info"]["Launch Time"]):
        info = one["Task Info"]
        executor, begun, ended = (info["Executor ID"], info["Host"]), info["Launch Time"], info["Finish Time"]
        rows = free[executor]
        row = next((row for row, since in enumerate(rows) if since <= begun), len(rows))
        rows[row : row + 1] = [ended]
        step, name, _ = stages.get((one["Stage ID"], one["Stage Attempt ID"]), ("", "unfinished stage", 0))
        what = {"stage": one["Stage ID"], "task": info["Task ID"], "failed": info["Failed"], "what": name}
        times = {"ts": 1000 * begun, "dur": 1000 * (ended - begun)}
        pid = executors.index(executor)
        yield {"ph": "X", "name": step or name, "pid": pid, "tid": row, **times, "args": what}
