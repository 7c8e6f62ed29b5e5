"""Sends the metrics of a finished run to an experiment tracker.

They are read from the run folder; recipes know nothing of trackers. So a run can be sent later, or to another tracker:

    make send RUN=outputs/horovod/latest [ARGS="tracking=mlflow tracking.uri=http://127.0.0.1:5000"]
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from cookbook import ROOT, UserError, redact, run_folder
from cookbook.words import run_program

STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
# By default MLflow tries seven times to reach a server that is gone, which takes minutes.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


Tracker = Mapping[str, Any]  # the settings of conf/tracking/
Content = Mapping[str, Any]  # a run.json


def check(settings: Tracker) -> None:
    """Raises UserError before any work begins when the tracker cannot be used."""
    if settings["kind"] not in SENDERS:
        raise UserError(f"tracking.kind={settings['kind']!r} is unknown; there are: {', '.join(SENDERS)}")
    named = urlparse(settings.get("uri", "")).scheme.partition("+")[0]
    if settings["kind"] == "mlflow" and settings["uri"] != "databricks" and named not in STORES:
        folder = settings["uri"].removeprefix("file://") or "."
        raise UserError(
            f"tracking.uri={settings['uri']} names no store that MLflow can write: "
            f"a folder takes tracking.uri=sqlite:///{folder}/mlflow.db, a server tracking.uri=http://HOST:PORT"
        )
    if settings["kind"] == "mlflow" and settings["uri"].startswith("http"):
        import requests  # as MLflow does itself: with its rules for passwords, proxies and certificates

        try:
            requests.get(settings["uri"].rstrip("/") + "/health", timeout=5).raise_for_status()
        except requests.RequestException as error:
            raise UserError(
                f"tracking.uri={settings['uri']}: no MLflow server answers there ({error}); "
                "start one, or use the local store"
            ) from None


def send(settings: Tracker, folder: str | Path, content: Content) -> None:
    """Sends the run in this folder.

    Raises UserError, within seconds, when the tracker has gone since the run began; and whatever a tracker raises.
    """
    check(settings)
    SENDERS[settings["kind"]](settings, Path(folder), content)


def _flat(content: Content) -> dict[str, Any]:
    """What identifies the run in a tracker: its settings as given, and where it ran."""
    return {
        "recipe": content["recipe"],
        "world_size": content["world_size"],
        "overrides": " ".join(content["overrides"]) or "-",
    }


def to_mlflow(settings: Tracker, folder: Path, content: Content) -> None:
    """Makes one MLflow run: parameters, points of the curves, final metrics; run.json and the report as artifacts."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow
    import yaml

    if settings["uri"].startswith("sqlite:///"):
        Path(settings["uri"].removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(settings["uri"])
    if mlflow.get_experiment_by_name(settings["experiment"]) is None:
        # A local store keeps its artifacts beside the run folders, not in whatever folder the command was typed in.
        local = None if settings["uri"].startswith("http") else (folder.parent.parent / "mlflow-artifacts").as_uri()
        mlflow.create_experiment(settings["experiment"], artifact_location=local)
    mlflow.set_experiment(settings["experiment"])
    with mlflow.start_run(run_name=folder.name):
        mlflow.log_params(_flat(content) | yaml.safe_load((folder / "config.yaml").read_text()))
        for name, points in content["curves"].items():
            for step, value in points:
                mlflow.log_metric(name, value, step=step)
        mlflow.log_metrics({f"final/{name}": value for name, value in content["metrics"].items()})
        mlflow.log_artifact(str(folder / "run.json"))
        mlflow.log_artifact(str(folder / "report.html"))


def to_tensorboard(settings: Tracker, folder: Path, content: Content) -> None:
    """Makes one folder of event files: every point of every curve, and the settings as text."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(Path(settings["log_dir"]) / content["recipe"] / folder.name)) as writer:
        for name, points in content["curves"].items():
            for step, value in points:
                writer.add_scalar(name, value, step)
        writer.add_text("settings", "    " + (folder / "config.yaml").read_text().replace("\n", "\n    "))


SENDERS: dict[str, Callable[[Tracker, Path, Content], None]] = {"mlflow": to_mlflow, "tensorboard": to_tensorboard}


def main(argv: Sequence[str]) -> None:
    """Sends a run that has ended. `argv`: its folder, then settings of the tracker; without any, those of the run."""
    from cookbook.settings import compose_tracking

    folder, *words = argv or [""]
    content = run_folder.load(folder) if folder else {}
    if content.get("status") != "ok":
        raise UserError(f"RUN={folder}: expected the folder of a run that ended well, such as outputs/horovod/latest")
    another = any(word.startswith("tracking=") for word in words)
    kept = ("output_root=",) if another else ("output_root=", "tracking")
    own = [word for word in content["overrides"] if word.startswith(kept)]
    given = {word.partition("=")[0] for word in words}
    if hidden := [word for word in own if "***" in word and word.partition("=")[0] not in given]:
        name = hidden[0].partition("=")[0]
        raise UserError(f"{hidden[0]}: the run folder keeps no secrets; say it again: ARGS='{name}=...'")
    own = [word for word in own if word.partition("=")[0] not in given]
    tracker = compose_tracking(content["recipe"], [*own, *words])
    if tracker["kind"] == "none":
        raise UserError('that run had no tracker: say which, ARGS="tracking=mlflow"')
    send(tracker, Path(folder).resolve(), content)
    print(redact.redacted_text(f"sent         {folder} to {tracker.get('uri') or tracker['log_dir']}"))


if __name__ == "__main__":
    os.chdir(ROOT)
    run_program(main)
