"""Sends a run record to one sink: from where it stopped, again after an error, to the end."""

import contextlib
import json
import threading
import time

from cookbook import redact
from cookbook.files import read_json, write_whole
from cookbook.report import sinks
from cookbook.report.points import Batch
from cookbook.report.sinks import Run, Settings
from cookbook.report.tail import Tail

FOLDER = "tracking"  # in the run folder: a file for each sink says what it has
LONGEST_PAUSE = 30.0  # seconds between two tries of a sink that is down
LAST_TRIES = 3  # of a sink that fails when the run has ended


class Feeder:
    """One sink and its place in the run record. What a sink took is written down in the run folder."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self.settings, self.run = settings, run
        self.path = run.folder / FOLDER / f"{sinks.key(settings)}.json"
        self.kept = read_json(self.path)
        self.sink = sinks.load(settings["kind"])(settings, run, self.kept.setdefault("state", {}))
        self.tail: Tail | None = None
        self.pending: Batch | None = None
        self.num_sent = 0  # points, by this process
        self.error = ""  # of the last try; empty when it went well
        self.done = False  # all was sent, and the run is ended there

    def pump(self) -> bool:
        """Sends all that is new. False, with the reason in `error`, when the sink fails."""
        try:
            if self.tail is None:
                kept = self.sink.open()
                self.tail = Tail(self.run.folder, self.kept.get("place", {}) if kept else None)
                self._keep()
            while self._one():
                pass
        except Exception as error:  # libraries raise errors of all kinds: this one is tried again
            self._fail(error)
            return False
        self._succeed()
        return True

    def _one(self) -> bool:
        """Sends one batch; False when there is none."""
        assert self.tail is not None
        before = self.tail.now.last_event
        batch = self.pending or self.tail.read()
        fresh = self.sink.only_live and self.tail.now.last_event > before
        if not batch and not fresh:
            return False
        self.pending = batch
        self.sink.send(batch, self.tail.now)
        self.pending = None
        self.num_sent += len(batch.points)
        self._keep()
        return bool(batch)

    def end(self, status: str) -> bool:
        """Ends the run at the sink. False when it fails."""
        try:
            self.sink.end(status)
        except Exception as error:
            self._fail(error)
            return False
        self.done = True
        self.kept["ended"] = status
        self._succeed()
        self._keep()
        return True

    def _succeed(self) -> None:
        if self.error:
            self.error = ""
            self._keep()

    def _fail(self, error: Exception) -> None:
        said = redact.redacted_text(f"{type(error).__name__}: {error}".strip().splitlines()[0][:500])
        if said != self.error:
            self.error = said
            with contextlib.suppress(OSError):  # a full disk may be what failed
                self._keep()

    def _keep(self) -> None:
        """Writes down what the sink has. The place is that of the last batch which it took."""
        place = self.tail.place if self.tail and not self.pending else self.kept.get("place", {})
        self.kept |= {
            "kind": self.settings["kind"],
            "target": redact.redacted_text(self.sink.address(self.settings)),
            "place": {name: list(entry) for name, entry in place.items()},
            "error": self.error,
            "sweep": self.run.sweep or self.kept.get("sweep", ""),
        }
        write_whole(self.path, json.dumps(self.kept) + "\n", 0o644)  # asking for the umask would disturb other threads


class FeederThread(threading.Thread):
    """Feeds a sink while the run goes. Nothing waits for it but the end of the tailer, and that not for ever."""

    def __init__(self, feeder: Feeder) -> None:
        super().__init__(daemon=True)
        self.feeder, self.status = feeder, ""
        self.wake = threading.Event()

    def run(self) -> None:
        every, pause, tries = self.feeder.settings["every_seconds"], 0.0, 0
        while True:
            status = self.status  # read before the record: what is written before the end is sent before the end
            went_well = self.feeder.pump() and (not status or self.feeder.end(status))
            if self.feeder.done:
                break
            if status:
                tries += 1
                if tries >= LAST_TRIES:
                    break
                time.sleep(1.0)
                continue
            pause = every if went_well else min(LONGEST_PAUSE, 2 * max(pause, every))
            self.wake.wait(pause)
            self.wake.clear()
        self.feeder.sink.close()

    def finish(self, status: str) -> None:
        """Tells it that the run has ended, and how."""
        self.status = status
        self.wake.set()
