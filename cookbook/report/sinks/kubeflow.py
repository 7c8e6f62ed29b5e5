"""Kubeflow Trainer: progress, time left and metrics in the status of a TrainJob (Trainer 2.2, KEP-2779).

For a run inside a TrainJob's container. With the feature gate TrainJobStatus the controller puts the address, the
certificate and the token of its status server into each container; the token is read anew for each request, since it
changes while the job runs.
"""

import datetime
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from cookbook import UserError
from cookbook.report import sinks
from cookbook.report.points import Batch, Now
from cookbook.report.sinks import Settings

ADDRESS = "KUBEFLOW_TRAINER_SERVER_URL"
CERTIFICATE = "KUBEFLOW_TRAINER_SERVER_CA_CERT"  # a file
TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # a file
SECONDS = 10  # for an answer
MOST_METRICS = 256  # the API's own limit


class Sink(sinks.Sink):
    only_live = True

    @classmethod
    def address(cls, settings: Settings) -> str:
        return os.environ.get(ADDRESS, "")

    @classmethod
    def check(cls, settings: Settings) -> None:
        if missing := [name for name in (ADDRESS, CERTIFICATE, TOKEN) if not os.environ.get(name)]:
            raise UserError(
                f"tracking=kubeflow: {', '.join(missing)} is not set. Kubeflow Trainer (2.2 or later, feature gate "
                "TrainJobStatus) sets it in the containers of a TrainJob; this process is in none"
            )
        if urlparse(os.environ[ADDRESS]).scheme != "https":
            raise UserError(f"{ADDRESS}={os.environ[ADDRESS]}: expected https://..., since a token is sent there")

    def open(self) -> bool:
        self.now = Now()
        return False

    def send(self, batch: Batch, now: Now) -> None:
        self.now = now
        self._post(status(now))

    def end(self, status_of_run: str) -> None:
        self._post(status(self.now, done=status_of_run == "ok"))

    def _post(self, payload: dict[str, Any]) -> None:
        import requests

        token = Path(os.environ[TOKEN]).read_text().strip()
        answer = requests.post(
            os.environ[ADDRESS],
            json={"trainerStatus": payload},
            headers={"Authorization": f"Bearer {token}"},
            verify=os.environ[CERTIFICATE],
            timeout=SECONDS,
            allow_redirects=False,
        )
        answer.raise_for_status()


def status(now: Now, done: bool = False) -> dict[str, Any]:
    """A `trainerStatus`, as the API has it: 100 per cent only when the run has ended well."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found: dict[str, Any] = {"lastUpdatedTime": when}
    if done:
        found |= {"progressPercentage": 100, "estimatedRemainingSeconds": 0}
    elif now.share is not None:
        found["progressPercentage"] = min(99, int(100 * now.share))
        if (seconds := now.remaining_seconds()) is not None:
            found["estimatedRemainingSeconds"] = int(seconds)
    metrics = list(now.metrics.items())[:MOST_METRICS]
    if metrics:
        found["metrics"] = [{"name": name, "value": f"{point.value:.6g}"} for name, point in metrics]
    return found
