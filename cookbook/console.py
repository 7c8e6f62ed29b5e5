"""What a run shows while it goes on: a live bar on a terminal, quiet lines elsewhere."""

import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(highlight=False, soft_wrap=True)
QUIET_SECONDS = 5.0  # between two lines when there is no terminal


class Stage:
    """One stage of a run: says that it began, how far it is, and how long it took."""

    def __init__(self, name):
        self.name, self.started = name, time.monotonic()
        self._last_line, self._last_text = 0.0, None
        self._bar = self._task = None

    @property
    def seconds(self):
        return time.monotonic() - self.started

    def __enter__(self):
        if console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.fields[stage]:<12}"), BarColumn(24), MofNCompleteColumn()
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TextColumn("{task.description}"), console=console, transient=True
            )
            self._task = self._bar.add_task("", stage=self.name, total=None)
            self._bar.start()
        return self

    def __exit__(self, kind, error, traceback):
        if self._bar:
            self._bar.stop()

    def update(self, text, done=None, total=None):
        """Shows how far the stage is. Without a terminal a new text is a line, every five seconds at most."""
        if self._bar:
            self._bar.update(self._task, description=text, completed=done or 0, total=total)
        elif text != self._last_text and time.monotonic() - self._last_line > (QUIET_SECONDS if self._last_text else 0):
            self._last_line, self._last_text = time.monotonic(), text
            share = f" {done}/{total}" if total else ""
            self.line(f"{text}{share}  [{self.seconds:.0f} s]")

    def line(self, text):
        console.print(f"{self.name:<12} {text}", markup=False)

    def done(self, text):
        """The stage's closing line."""
        self.line(f"{text}  [{self.seconds:.1f} s]")


@contextlib.contextmanager
def timed_stage(name, seconds):
    """A stage whose duration is written into the dictionary `seconds`, even when it fails."""
    with Stage(name) as stage:
        try:
            yield stage
        finally:
            seconds[name] = round(stage.seconds, 3)
