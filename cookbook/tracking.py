"""Sends the metrics of a finished run to an experiment tracker. Read from the run record: recipes know nothing of it."""

from pathlib import Path

from cookbook import UserError


def check(settings):
    """Raises UserError before any work begins when the tracker cannot be used."""
    if settings["kind"] not in SENDERS:
        raise UserError(f"tracking.kind={settings['kind']!r} is unknown; there are: {', '.join(SENDERS)}")
    if settings["kind"] == "mlflow" and settings["uri"].startswith("http"):
        import urllib.error
        import urllib.request

        try:
            urllib.request.urlopen(settings["uri"].rstrip("/") + "/health", timeout=5).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"tracking.uri={settings['uri']}: no MLflow server answers there ({error}); start one, or use the local store"
            ) from None


def send(settings, folder, content):
    SENDERS[settings["kind"]](settings, Path(folder), content)


def _flat(content):
    """What identifies the run in a tracker: its settings as given, and where it ran."""
    return {
        "recipe": content["recipe"],
        "world_size": content["world_size"],
        "overrides": " ".join(content["overrides"]) or "-",
    }


def to_mlflow(settings, folder, content):
    """One MLflow run: parameters, every point of every curve, the final metrics, run.json and the report as artifacts."""
    import os

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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


def to_tensorboard(settings, folder, content):
    """One folder of event files: every point of every curve, and the settings as text."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(Path(settings["log_dir"]) / content["recipe"] / folder.name)) as writer:
        for name, points in content["curves"].items():
            for step, value in points:
                writer.add_scalar(name, value, step)
        writer.add_text("settings", "    " + (folder / "config.yaml").read_text().replace("\n", "\n    "))


SENDERS = {"mlflow": to_mlflow, "tensorboard": to_tensorboard}
