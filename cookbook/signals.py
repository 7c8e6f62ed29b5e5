"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal): noted when they come, obeyed at safe points.

An exception that a signal raises in the middle of something can leave a library's lock locked, or a file half written.
So a signal is only noted. `check` raises Interrupted; the loops that wait for processes call it.

While workers train that can save and leave, the first SIGTERM is a notice and no end: see `expect_notice`.

The program is interrupted wherever it is when a second signal comes, or when it reaches no safe point for
PATIENCE_SECONDS (an ssh server that is slow to answer, say).
"""

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

PATIENCE_SECONDS = 3
CAME: list[str] = []  # the names of the signals that have come
NOTICED: list[str] = []  # of the one that was taken for a notice
EXPECTED: list[bool] = []  # whether somebody can make use of a notice


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


def listen() -> None:
    """Takes over the signals that end a run. A SIGHUP that is ignored (nohup) stays ignored.

    Output waits for its reader: some CI runners hand on a pipe that does not, and a long line would be an error.
    """
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.set_blocking(number, True)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name)
        if name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)
    signal.signal(signal.SIGALRM, _lose_patience)


def note(number: int, frame: FrameType | None) -> None:
    """Notes a signal."""
    if number == signal.SIGTERM and EXPECTED and not NOTICED:
        NOTICED.append(signal.Signals(number).name)
        return
    again = bool(CAME)
    CAME.append(signal.Signals(number).name)
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    if signal.getsignal(signal.SIGALRM) == signal.SIG_IGN:  # see hold()
        return
    if again:
        _interrupt()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)


def _lose_patience(number: int, frame: FrameType | None) -> None:
    _interrupt()


def _interrupt() -> NoReturn:
    _ignore()
    raise Interrupted(CAME[0])


def _ignore() -> None:
    """Ignores further signals: they would only cut the clean-up short."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _let_go_of_the_terminal() -> None:
    """Sends output to nowhere. The terminal is gone, and a line written to it would raise an error in the clean-up."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # not a pipe or a file, which are still there
                os.dup2(nowhere, stream)
    os.close(nowhere)


def check() -> None:
    """A safe point: raises Interrupted if a signal has come."""
    if CAME:
        _interrupt()


@contextlib.contextmanager
def expect_notice(useful: bool) -> Iterator[None]:
    """In this block the first SIGTERM only stands in NOTICED, if it is `useful`: what takes a machine away sends it."""
    EXPECTED[:] = [True] if useful else []
    try:
        yield
    finally:
        EXPECTED.clear()


def hold() -> None:
    """From here on signals are only noted, however many come: what is being written is short, and must be whole."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def reader_is_gone() -> None:
    """Standard output was a pipe (`| head`) whose reader is gone: counts as a signal, and all else goes nowhere."""
    CAME.append("SIGPIPE")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def terminal_is_gone() -> bool:
    """Whether standard output was a terminal that is closed now; if so, that counts as a SIGHUP.

    A write to such a terminal fails before SIGHUP comes.
    """
    try:
        found = os.fstat(1)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev == os.stat(os.devnull).st_rdev or os.isatty(1):
            return False
    except OSError:  # there is no standard output at all
        return False
    if os.major(found.st_rdev) == 1:  # /dev/full and the like: no terminal
        return False
    CAME.append("SIGHUP")
    _ignore()
    _let_go_of_the_terminal()
    return True
