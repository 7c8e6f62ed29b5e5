"""The driver's side of tracking while a run goes: says where the metrics go, has them sent, and waits for the rest.

Nothing of it can fail the run. What a tracker has not got is in the run folder, and can be sent later.
"""

from collections.abc import Mapping
from typing import Any

from cookbook import redact, signals
from cookbook.report import tracking
from cookbook.report.console import console
from cookbook.report.sinks import Run, Settings, ending_of
from cookbook.report.summary import shown_path
from cookbook.report.tailer import INTERRUPTED_SECONDS, Tailer


class Tracking:
    """Sends the metrics of one run while it goes, by a process beside the driver."""

    def __init__(self, settings: Settings, run: Run, without: str) -> None:
        """`without`: an environment variable that the process must not have, for it is not one of the run's."""
        self.folder = run.folder
        self.tailer: Tailer | None = None  # None: it could not be started
        for kind, address in tracking.addresses(settings):
            console.print(f"{'tracking':<12} {kind}: {address}", markup=False)
        try:
            self.tailer = Tailer(settings, run, without)
        except OSError as error:
            console.print(f"warning: no metrics are sent while the run goes: {error}", markup=False)

    def end(self, content: Mapping[str, Any]) -> None:
        """Waits until all is sent, and warns of each tracker that has not got it. `content`: of run.json.

        A signal during the wait ends it.
        """
        if self.tailer is None:
            return
        status = ending_of(content)
        seconds = min(self.tailer.wait_seconds, INTERRUPTED_SECONDS if status == "interrupted" else float("inf"))
        already = len(signals.CAME)
        for kind, why in self.tailer.finish(status, seconds, lambda: len(signals.CAME) > already):
            console.print(
                f"warning: the metrics could not be sent to {kind}: {redact.redacted_text(why)}; they are in "
                f"the run folder: `make send RUN={shown_path(self.folder)}` sends them later",
                markup=False,
            )
