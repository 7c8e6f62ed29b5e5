"""Finds in the workers' logs why a run ended: the last line of the error that one of them wrote."""

import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from cookbook.files import read_log

# How a worker's lines are marked: by horovodrun over gloo and mpirun, by torchrun, by tfrun; PyTorch marks tracebacks.
TAG = re.compile(r"\[(?:\d+,)?(\d+)\]<(?:stdout|stderr)>: ?|\[(default\d+)\]: ?|\[([a-z]+:\d+)\] |\[rank\d+\]: ?")
# Which worker the launchers say ended first.
CULPRITS = (
    r"Root Cause \(first observed failure\):.*?local_rank: (\d+)",
    r"^tfrun: ([a-z]+:\d+) \(pid \d+\) (?:ended|died)",
)
# Which worker they say a signal ended first, and by which exit status: -9, or 128 + 9 as shells have it.
KILLED = (
    r"Root Cause \(first observed failure\):.*?local_rank: (\d+)\)\s+exitcode\s*: (-\d+) ",
    r"The first process to do so was:\s+Process name: (\d+)\s+Exit code: (-?\d+)",
)
# What such a signal usually means.
HINTS = {
    signal.SIGKILL: ": it may have needed more memory than there is",
    signal.SIGBUS: ": shared memory (/dev/shm) may be full",
    signal.SIGXCPU: ": this shell limits the time that a process may compute (ulimit -t)",
    signal.SIGXFSZ: ": this shell limits the size of files (ulimit -f)",
}
# Errors of workers whose partner has gone, and of their launchers. The cause is what ended the partner.
CONSEQUENCE = re.compile(
    r"[Cc]onnection (closed|reset|refused)|HorovodInternalError|[Bb]roken ?[Pp]ipe|ChildFailedError|TrainingFailedError"
    r"|processes exited with non-zero status"
)
HEAD = "Traceback (most recent call last):"
LONGEST = 600  # characters of a reason


def error_in(text: str) -> str | None:
    """The last line of the error that a log's workers wrote, and who wrote it; None where there is none."""
    streams: dict[str | None, list[tuple[int, str]]] = {}
    for number, line in enumerate(text.splitlines()):
        tag: str | None = None
        while found := TAG.match(line):
            tag = next((group for group in found.groups() if group), tag)
            line = line[found.end() :]
        streams.setdefault(tag, []).append((number, line.rstrip()))
    errors = {tag: error for tag, lines in streams.items() if (error := _traceback(lines))}
    # Where no line is tagged, an error is the program's own.
    launcher = errors.pop(None, None) if len(streams) > 1 else None
    causes = [(number, tag, line) for tag, (number, line) in errors.items() if not CONSEQUENCE.search(line)]
    if causes:
        _, tag, line = min(causes)
        return _said(tag, line)
    if killed := _killed(text):
        return killed
    if errors:
        _, tag, line = min((number, tag, line) for tag, (number, line) in errors.items())
        return _said(tag, line)
    if launcher and not CONSEQUENCE.search(launcher[1]):
        return _said(None, launcher[1])
    if culprit := next((found[1] for sign in CULPRITS if (found := re.search(sign, text, re.M | re.S))), None):
        tag = f"default{culprit}" if culprit.isdigit() else culprit
        if lines := [line for _, line in streams.get(tag, []) if line.strip()]:
            return _said(tag, lines[-1])
    # No traceback: the words of a program that ended itself.
    lines = [TAG.sub("", line).strip() for line in text.splitlines() if "<stderr>" in line[:16]]
    if lines := [line for line in lines if line not in ("", "Terminated")]:  # the shell's word for a launcher's signal
        return _said(None, lines[-1])
    return _said(None, launcher[1]) if launcher else None


def _killed(text: str) -> str | None:
    """Which worker a signal ended first, as the launcher says; None when none was, or by the launcher itself."""
    for sign in KILLED:
        if found := re.search(sign, text, re.S):
            status = int(found[2])
            number = -status if status < 0 else status - 128
            names = {each.value: each.name for each in signal.Signals}
            if number in names and number != signal.SIGTERM:
                return f"rank {found[1]} was ended by {names[number]}{HINTS.get(signal.Signals(number), '')}"
    return None


def _traceback(lines: Iterable[tuple[int, str]]) -> tuple[int, str] | None:
    """(number of its first line, its last line) of the last traceback in numbered lines; None where there is none."""
    found: tuple[int, str] | None = None
    began: int | None = None
    for number, line in lines:
        if line == HEAD:
            began = number
        elif began is not None and line and not line.startswith((" ", "\t")):
            found, began = (began, line), None
    return found


def _said(tag: str | None, line: str) -> str | None:
    """The line with the name of the worker that wrote it; None for an empty line."""
    if not line.strip():
        return None
    who = ""
    if tag is not None:
        name = tag.removeprefix("default")
        who = f"rank {name}: " if name.isdigit() else f"{tag}: "
    return (who + line.strip())[:LONGEST]


def cause_of(logs: Path, offsets: Mapping[Path, int] | None = None) -> str | None:
    """The error that the logs of a folder have got since they had the sizes `offsets`; None where there is none."""
    for path in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime):
        if path.name != "data.log" and (error := error_in(_since(path, offsets))):
            return error
    return None


def last_words(logs: Path, offsets: Mapping[Path, int] | None = None, count: int = 3) -> str:
    """The last lines of the logs, for a run that left no error: `name: line / line`."""
    said = []
    for path in sorted(logs.glob("*.log")):
        lines = [line.strip() for line in _since(path, offsets).splitlines() if line.strip()]
        if lines and path.name != "data.log":
            said.append(f"{path.stem}: {' / '.join(lines[-count:])}"[:LONGEST])
    return "; ".join(said)


def _since(path: Path, offsets: Mapping[Path, int] | None) -> str:
    return read_log(path, (offsets or {}).get(path, 0))


def sizes(logs: Path) -> dict[Path, int]:
    """{path: bytes} of the logs that an earlier try has left."""
    return {path: path.stat().st_size for path in logs.glob("*.log")}
