"""Shows the progress of a run: a live bar on a terminal, and elsewhere a line now and then."""

import contextlib
import time
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich import progress
from rich.console import Console
from rich.table import Table

from cookbook import signals


class Plain(Console):
    """Shows every text as it is: brackets and colons in it are no markup. A reader that has gone counts as a signal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        signals.reader_is_gone()


console = Plain(soft_wrap=True)
QUIET_SECONDS = 5.0  # between two lines when there is no terminal


def print_table(table: Table, width: int) -> None:
    """Prints a table: as wide as the terminal, or as `width` characters where there is none."""
    (console if console.is_terminal else Plain(width=width)).print(table)


class Progress(Protocol):
    """What shows how far some work is: a Stage, or something that prints lines."""

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None: ...

    def line(self, text: str) -> None: ...

    def done(self, text: str) -> None: ...


class Stage:
    """One stage of a run: says that it began, how far it is, and how long it took."""

    def __init__(self, name: str) -> None:
        self.name, self.started = name, time.monotonic()
        self._last_line = 0.0
        self._last_text: str | None = None
        self._bar: progress.Progress | None = None
        self._task = progress.TaskID(0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._bar = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.fields[stage]:<12}"),
                progress.BarColumn(24),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.description}", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", stage=self.name, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Shows how far the stage is. Without a terminal a new text is a line, every five seconds at most."""
        if self._bar:
            self._bar.update(self._task, description=text, completed=done or 0, total=total)
        elif text != self._last_text and time.monotonic() - self._last_line > (QUIET_SECONDS if self._last_text else 0):
            self._last_line, self._last_text = time.monotonic(), text
            share = f" {done}/{total}" if total else ""
            self.line(f"{text}{share}  [{self.seconds:.0f} s]")

    def line(self, text: str) -> None:
        console.print(f"{self.name:<12} {text}", markup=False)

    def done(self, text: str) -> None:
        """The stage's closing line."""
        self.line(f"{text}  [{self.seconds:.1f} s]")


@contextlib.contextmanager
def timed_stage(name: str, seconds: MutableMapping[str, float]) -> Iterator[Stage]:
    """A stage that writes its duration into the dictionary `seconds`, even when it fails."""
    with Stage(name) as stage:
        try:
            yield stage
        finally:
            seconds[name] = round(stage.seconds, 3)
