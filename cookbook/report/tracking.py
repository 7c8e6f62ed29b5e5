"""Sends a run's metrics to experiment trackers and monitoring: while it goes, and later.

All is read from the run folder; recipes know nothing of trackers. While a run goes, tailer.py sends. So can a run be
sent later, or to another tracker:

    make send RUN=outputs/horovod/latest [ARGS="tracking=mlflow tracking.uri=http://127.0.0.1:5000"]
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cookbook import ROOT, UserError, redact, run_folder
from cookbook.files import read_json
from cookbook.programs import run_program
from cookbook.report import sinks
from cookbook.report.feeder import FOLDER, Feeder
from cookbook.report.sinks import Run, Settings


def check(tracking: Settings) -> None:
    """Raises UserError before any work begins when a tracker cannot be used."""
    for settings in sinks.chosen(tracking):
        sinks.load(settings["kind"]).check(settings)


def addresses(tracking: Settings) -> list[tuple[str, str]]:
    """[(kind, where the metrics go), ...], without secrets."""
    chosen = sinks.chosen(tracking)
    return [(one["kind"], redact.redacted_text(sinks.load(one["kind"]).address(one))) for one in chosen]


def send(tracking: Settings, folder: Path, content: dict[str, Any]) -> list[str]:
    """Sends a run that has ended: what each tracker has not got yet. Returns a line for each.

    Raises UserError when a tracker fails, or when the run is being sent by its driver.
    """
    chosen = [one for one in sinks.chosen(tracking) if not sinks.load(one["kind"]).only_live]
    if not chosen:
        raise UserError(
            f"tracking.kind={tracking['kind']} shows runs that go on, and this one has ended: choose another"
        )
    for settings in chosen:
        sinks.load(settings["kind"]).check(settings)
    (folder / FOLDER).mkdir(exist_ok=True)
    status = sinks.ending_of(content)
    sweeps = {read_json(path).get("sweep", "") for path in (folder / FOLDER).glob("*.json")}
    run = Run(folder, content["recipe"], next(iter(sorted(sweeps, reverse=True)), ""), live=False)
    lines = []
    try:
        with FileLock(folder / ".driver.lock", timeout=0), FileLock(folder / FOLDER / ".lock", timeout=10):
            for settings in chosen:
                feeder = Feeder(settings, run)
                went_well = feeder.pump() and feeder.end(status)
                feeder.sink.close()
                if not went_well:
                    raise UserError(f"{settings['kind']} could not take the run: {feeder.error}")
                where = feeder.sink.address(settings)
                lines.append(redact.redacted_text(f"{where} ({feeder.num_sent:,} points that it had not got)"))
    except Timeout:
        raise UserError(f"RUN={folder}: this run goes on, and its driver sends it; wait for its end") from None
    return lines


def main(argv: Sequence[str]) -> None:
    """Sends a run that has ended. `argv`: its folder, then settings of the tracker; without any, those of the run."""
    from cookbook.settings import compose_tracking

    folder, *overrides = argv or [""]
    content = run_folder.load(folder) if folder else {}
    if not content.keys() >= {"recipe", "status", "overrides"}:
        raise UserError(run_folder.no_run("RUN", folder))
    another = any(word.startswith("tracking=") for word in overrides)
    kept = ("output_root=",) if another else ("output_root=", "tracking")
    own = [word for word in content["overrides"] if word.startswith(kept)]
    given = {word.partition("=")[0] for word in overrides}
    if hidden := [word for word in own if "***" in word and word.partition("=")[0] not in given]:
        name = hidden[0].partition("=")[0]
        raise UserError(f"{hidden[0]}: the run folder keeps no secrets; say it again: ARGS='{name}=...'")
    own = [word for word in own if word.partition("=")[0] not in given]
    tracker = compose_tracking(content["recipe"], [*own, *overrides])
    if tracker["kind"] == "none":
        raise UserError('that run had no tracker: say which, ARGS="tracking=mlflow"')
    for line in send(tracker, Path(folder).resolve(), content):
        print(f"sent         {folder} to {line}")


if __name__ == "__main__":
    os.chdir(ROOT)
    run_program(main)
