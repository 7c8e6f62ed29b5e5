"""Where metrics go. One file a sink, found by its name, which is the `kind` in conf/tracking/."""

import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import yaml

from cookbook import UserError, run_folder
from cookbook.report.points import Batch, Now

Settings = Mapping[str, Any]  # of one sink, as its file in conf/tracking/ has them
State = dict[str, Any]  # plain data that a sink keeps in the run folder: the number of its run, and the like


@dataclass(frozen=True)
class Run:
    """The run that is sent."""

    folder: Path
    recipe: str
    sweep: str = ""  # the folder of the sweep that it belongs to; empty without one
    live: bool = True  # it goes on at this moment

    @property
    def name(self) -> str:
        return self.folder.name

    def content(self) -> dict[str, Any]:
        """Its run.json, as it is now."""
        return run_folder.load(self.folder)

    def config(self) -> dict[str, Any]:
        """The settings of its workers, without secrets; {} before they are written."""
        path = self.folder / "config.yaml"
        return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


class Sink(ABC):
    """Takes the points of one run. Each method may raise whatever its library raises: then it is called again."""

    only_live = False  # it shows a run that goes on, and keeps nothing

    def __init__(self, settings: Settings, run: Run, state: State) -> None:
        self.settings, self.run, self.state = settings, run, state

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raises UserError, before any work begins, for settings that cannot work."""
        return

    @classmethod
    @abstractmethod
    def address(cls, settings: Settings) -> str:
        """Where the points go; what a person is told. It may have a secret in it."""

    @abstractmethod
    def open(self) -> bool:
        """Begins. True: what an earlier try of this run has sent is still there; False: all must be sent."""

    @abstractmethod
    def send(self, batch: Batch, now: Now) -> None:
        """Sends a batch. What was sent before may come again after an error: it must do no harm."""

    def end(self, status: str) -> None:
        """Ends the run there. `status`: ok, failed, or interrupted. run.json and the report are written."""
        return

    def close(self) -> None:
        """Lets go of what is open. Raises nothing."""
        return


def parsed(setting: str, address: str) -> SplitResult:
    """The parts of a tracker's address. Raises UserError for one that has none: the port may be no number."""
    try:
        parts = urlsplit(str(address))
        port = parts.port  # it is only looked at here
    except ValueError as error:
        raise UserError(f"{setting}={address} is no address: {error}") from None
    if parts.scheme in ("http", "https") and (not parts.hostname or port == 0 or re.search(r"\s", address)):
        raise UserError(f"{setting}={address} is no address: expected {parts.scheme}://HOST:PORT")
    return parts


def ending_of(content: Mapping[str, Any]) -> str:
    """How a run has ended, in a sink's words: ok, failed, or interrupted. `content`: its run.json.

    A run that was preempted, or whose driver was killed ("running"), may go on later: it was interrupted.
    """
    if content["status"] in ("running", "preempted") or content.get("interrupted_by"):
        return "interrupted"
    return "ok" if content["status"] == "ok" else "failed"


def load(kind: str) -> type[Sink]:
    """The sink of that name. Raises UserError for one that does not exist."""
    if kind not in names():
        raise UserError(f"tracking.kind={kind!r} is unknown; there are: {', '.join(['none', 'several', *names()])}")
    found: type[Sink] = importlib.import_module(f"{__name__}.{kind}").Sink
    return found


def names() -> list[str]:
    """All sinks, from their files."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def chosen(tracking: Settings) -> list[Settings]:
    """The settings of each sink that is asked for. Raises UserError for one that does not exist."""
    if tracking["kind"] == "none":
        return []
    if tracking["kind"] != "several":
        load(tracking["kind"])
        return [tracking]
    known = [name for name in names() if name in tracking]
    if unknown := [name for name in tracking["sinks"] if name not in known]:
        raise UserError(f"tracking.sinks={tracking['sinks']}: {unknown[0]!r} is unknown; there are: {', '.join(known)}")
    if not tracking["sinks"]:
        raise UserError(f"tracking.sinks=[]: name one of {', '.join(known)}, or choose tracking=none")
    return [tracking[name] for name in dict.fromkeys(tracking["sinks"])]


def key(settings: Settings) -> str:
    """A name for what these settings lead to. It has no secret in it, and can be the name of a file."""
    target = load(settings["kind"]).address(settings)
    digest = hashlib.sha256(json.dumps([target, settings.get("experiment")]).encode()).hexdigest()
    return f"{settings['kind']}-{digest[:12]}"
