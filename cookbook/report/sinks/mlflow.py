"""MLflow: one run with parameters, metrics, system metrics and artifacts; a run below it for each trial of a search.

The runs of a sweep are below a run of the sweep.
"""

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

from cookbook import UserError
from cookbook.report import sinks
from cookbook.report.points import Batch, Now, Trial
from cookbook.report.sinks import Settings

STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
# By default MLflow tries seven times to reach a server that is gone, which takes minutes. It also prints the address
# of each run that ends, with the password in it.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MOST = 1000  # metrics in one request, MLflow's own limit
MOST_PARAMETERS = 100
STATUS = {"ok": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
WHERE = "cookbook.folder"  # this tag has the host and folder of a run: so it is found again
SWEEP = "cookbook.sweep"
TRIAL = "cookbook.trial"
PARENT = "mlflow.parentRunId"


class Sink(sinks.Sink):
    @classmethod
    def address(cls, settings: Settings) -> str:
        uri: str = settings["uri"]
        return uri

    @classmethod
    def check(cls, settings: Settings) -> None:
        uri = settings["uri"] or ""
        parts = sinks.parsed("tracking.uri", uri)
        if parts.scheme == "sqlite" and (parts.netloc or not parts.path.strip("/")):
            raise UserError(
                f"tracking.uri={uri} names no file: sqlite:///FOLDER/mlflow.db, four slashes where it is /..."
            )
        if uri != "databricks" and parts.scheme.partition("+")[0] not in STORES:
            folder = uri.removeprefix("file://") or "."
            raise UserError(
                f"tracking.uri={uri} names no store that MLflow can write: "
                f"a folder takes tracking.uri=sqlite:///{folder}/mlflow.db, a server tracking.uri=http://HOST:PORT"
            )
        if parts.scheme in ("http", "https"):
            import requests  # as MLflow does itself: with its rules for passwords, proxies and certificates

            try:
                requests.get(uri.rstrip("/") + "/health", timeout=5).raise_for_status()
            except (requests.RequestException, ValueError) as error:  # ValueError: a name that no machine can have
                raise UserError(
                    f"tracking.uri={uri}: no MLflow server answers there ({error}); start one, or use the local store"
                ) from None

    def open(self) -> bool:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        uri = self.settings["uri"]
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(uri)
        self.experiment = self._experiment()
        where = f"{socket.gethostname()}:{self.run.folder}"
        known = self._find(WHERE, where)
        if known and known == self.state.get("run_id"):
            self.client.update_run(known, status="RUNNING")
            return True
        # A run that is there, but not in the state: it was made, and its answer never came. All is sent again; what
        # it has already is not doubled.
        tags = {"mlflow.runName": self.run.name, WHERE: where, "cookbook.recipe": self.run.recipe}
        if self.run.sweep:
            tags[PARENT] = self._parent()
        self.state.clear()
        self.state["run_id"] = known or self._create(tags)
        return False

    def _experiment(self) -> str:
        name = self.settings["experiment"]
        if found := self.client.get_experiment_by_name(name):
            made: str = found.experiment_id
            return made
        # A local store keeps its artifacts beside the run folders, not in whatever folder the command was typed in.
        local = (self.run.folder.parent.parent / "mlflow-artifacts").as_uri()
        artifacts = None if self.settings["uri"].startswith(("http", "databricks")) else local
        made = self.client.create_experiment(name, artifact_location=artifacts)
        return made

    def _find(self, tag: str, value: str) -> str | None:
        """The newest run of the experiment with that tag."""
        quoted = value.replace("'", "")
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{quoted}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, tags: dict[str, str]) -> str:
        began = int(1000 * (self.run.content().get("started") or time.time()))
        safe = {name: value.replace("'", "") for name, value in tags.items()}
        made: str = self.client.create_run(self.experiment, start_time=began, tags=safe).info.run_id
        return made

    def _parent(self) -> str:
        """The run of the whole sweep. Whichever of its members comes first makes it."""
        name = Path(self.run.sweep).name
        return self._find(SWEEP, self.run.sweep) or self._create(
            {"mlflow.runName": f"sweep {name}", SWEEP: self.run.sweep, "cookbook.recipe": self.run.recipe}
        )

    def send(self, batch: Batch, now: Now) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(clean(point.path), point.value, int(1000 * point.time), point.step) for point in batch.points]
        for some in pieces(metrics, MOST):
            self.client.log_batch(self.state["run_id"], metrics=some)
        if not self.state.get("has_parameters") and (config := self.run.config()):
            self._parameters(config)
            self.state["has_parameters"] = True
        for trial in batch.trials:
            self._trial(trial)

    def _parameters(self, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        content = self.run.content()
        known = {"recipe": self.run.recipe, "overrides": " ".join(content["overrides"]) or "-"} | config
        parameters = [Param(clean(name), str(value)[:6000]) for name, value in known.items()]
        for some in pieces(parameters, MOST_PARAMETERS):
            self.client.log_batch(self.state["run_id"], params=some)

    def _trial(self, trial: Trial) -> None:
        """A run below this one. A trial that comes again is not made again."""
        from mlflow.entities import Metric, Param

        made: dict[str, str] = self.state.setdefault("trials", {})
        name = f"{trial.phase}/{trial.id}"
        if name not in made:
            which = f"{self.state['run_id']}/{name}"
            tags = {"mlflow.runName": name, PARENT: self.state["run_id"], TRIAL: which}
            made[name] = self._find(TRIAL, which) or self._create(tags)
        when = int(1000 * trial.time)
        metrics = [
            Metric("score", trial.score, when, max(trial.epochs, default=0)),
            Metric("epochs", len(trial.epochs), when, 0),
        ]
        parameters = [Param("phase", trial.phase), Param("trial", trial.id)]
        self.client.log_batch(made[name], metrics=metrics, params=parameters)
        self.client.set_terminated(made[name], "FINISHED", when)

    def end(self, status: str) -> None:
        from mlflow.entities import Metric, Param

        run_id, content, now = self.state["run_id"], self.run.content(), int(1000 * time.time())
        if not self.state.get("has_parameters") and (config := self.run.config()):
            self._parameters(config)
            self.state["has_parameters"] = True
        figures = [Metric(clean(f"final/{name}"), value, now, 0) for name, value in content.get("metrics", {}).items()]
        self.client.log_batch(run_id, metrics=figures[:MOST])
        if content.get("world_size") and not self.state.get("has_world_size"):
            self.client.log_batch(run_id, params=[Param("world_size", str(content["world_size"]))])
            self.state["has_world_size"] = True
        if content.get("reason"):
            self.client.set_tag(run_id, "cookbook.reason", content["reason"][:5000])
        for name in ("run.json", "report.html"):
            if (self.run.folder / name).exists():
                self.client.log_artifact(run_id, str(self.run.folder / name))
        self.client.set_terminated(run_id, STATUS[status])
        if self.run.sweep:
            self.client.set_terminated(self._parent(), "FINISHED")


def clean(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def pieces(entries: list[Any], most: int) -> list[list[Any]]:
    return [entries[first : first + most] for first in range(0, len(entries), most)]
