"""Prometheus: a text endpoint on loopback, for as long as the run goes: http://127.0.0.1:PORT/metrics

infra/grafana/cookbook.json is a dashboard for it.
"""

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from cookbook import UserError
from cookbook.report import sinks
from cookbook.report.points import Batch, Now
from cookbook.report.sinks import Run, Settings

HOST = "127.0.0.1"
# name -> what it says. The endpoint has no others; the dashboard is compared with these.
NAMES: Mapping[str, str] = {
    "cookbook_run_info": "1 while the run goes; labels say which it is",
    "cookbook_run_start_timestamp_seconds": "when the first worker started",
    "cookbook_last_event_timestamp_seconds": "when a worker last wrote something down",
    "cookbook_progress_ratio": "share of the work that is done",
    "cookbook_remaining_seconds": "how long the rest takes at the average speed",
    "cookbook_metric": "newest value of a metric that the workers report",
    "cookbook_metric_step": "step of that value",
    "cookbook_workers": "processes that keep a record, by their state",
    "cookbook_rank_epoch": "epoch that a rank is in, from 0",
    "cookbook_rank_step": "step within the epoch, from 0",
    "cookbook_rank_steps": "steps that a rank has taken",
    "cookbook_rank_rows": "rows, or other pieces of work, that a rank has done",
    "cookbook_rank_steps_per_second": "rate of a rank's last steps",
    "cookbook_rank_last_step_timestamp_seconds": "when a rank took its last step",
    "cookbook_checkpoints": "checkpoints that were written",
    "cookbook_last_checkpoint_timestamp_seconds": "when the last checkpoint was written",
    "cookbook_node": "newest value of what a host says of itself: cpu_percent, memory_used_mb and the like",
}


class Sink(sinks.Sink):
    only_live = True

    @classmethod
    def address(cls, settings: Settings) -> str:
        if settings["port"] is None:
            return f"http://{HOST}, a port that is free: see tracking/ in the run folder"
        return f"http://{HOST}:{settings['port']}/metrics"

    @classmethod
    def check(cls, settings: Settings) -> None:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, settings["port"] or 0))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise UserError(f"tracking.port={settings['port']}: {error.strerror}; choose another") from None
                raise UserError(
                    f"tracking.port={settings['port']} is taken (by another run's metrics?): choose another one, or "
                    "null for any that is free"
                ) from None

    def open(self) -> bool:
        from prometheus_client import CollectorRegistry, start_http_server

        self.now = Now()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        self.server, _ = start_http_server(self.settings["port"] or 0, HOST, registry)
        self.state["address"] = f"http://{HOST}:{self.server.server_port}/metrics"
        return False  # a new process knows nothing: it reads all again

    def send(self, batch: Batch, now: Now) -> None:
        self.now = now

    def close(self) -> None:
        if hasattr(self, "server"):
            self.server.shutdown()
            self.server.server_close()

    def collect(self) -> Iterator[Any]:
        """The samples of now, as prometheus_client wants them."""
        from prometheus_client.core import GaugeMetricFamily

        found = samples(self.run, self.now)
        for name, says in NAMES.items():
            if entries := found.get(name):
                labels = list(entries[0][0])
                family = GaugeMetricFamily(name, says, labels=labels)
                for values, value in entries:
                    family.add_metric([values[label] for label in labels], value)
                yield family


Samples = dict[str, list[tuple[dict[str, str], float]]]  # name -> [(labels, value), ...]


def samples(run: Run, now: Now) -> Samples:
    """All samples of a run at this moment."""
    own = {"recipe": run.recipe, "run": run.name}
    found: Samples = {"cookbook_run_info": [(own, 1.0)]}

    def add(name: str, value: float | None, /, **labels: str) -> None:
        if value is not None:
            found.setdefault(name, []).append((own | labels, value))

    add("cookbook_run_start_timestamp_seconds", now.began or None)
    add("cookbook_last_event_timestamp_seconds", now.last_event or None)
    add("cookbook_progress_ratio", now.share)
    add("cookbook_remaining_seconds", now.remaining_seconds())
    add("cookbook_checkpoints", now.num_checkpoints)
    add("cookbook_last_checkpoint_timestamp_seconds", now.last_checkpoint or None)
    for name, point in list(now.metrics.items()):
        add("cookbook_metric", point.value, name=name, unit=point.unit)
        add("cookbook_metric_step", point.step, name=name)
    states = dict.fromkeys(("working", "ended", "failed"), 0)
    for worker in list(now.workers.values()):
        states["failed" if worker.error else "ended" if worker.ended else "working"] += 1
        who = {"rank": worker.label, "host": worker.host}
        add("cookbook_rank_rows", worker.num_rows, **who)
        if worker.last:
            add("cookbook_rank_last_step_timestamp_seconds", worker.last, **who)
        if worker.num_steps:
            add("cookbook_rank_epoch", worker.epoch, **who)
            add("cookbook_rank_step", worker.step, **who)
            add("cookbook_rank_steps", worker.num_steps, **who)
            add("cookbook_rank_steps_per_second", worker.steps_per_second, **who)
    for state, count in states.items():
        add("cookbook_workers", count, state=state)
    for host, values in list(now.nodes.items()):
        for name, value in list(values.items()):
            add("cookbook_node", value, host=host, name=name)
    return found
