"""A diagnosis as a page for the browser and as a text for the terminal."""

from __future__ import annotations

import time
from pathlib import Path

from cookbook.evidence.diagnosis import Diagnosis
from cookbook.evidence.doing import STATES
from cookbook.evidence.ranks import Worker
from cookbook.evidence.seen import Seen
from cookbook.report.pages import environment, machine

PAGE = "diagnosis.html"
MOST_IN_TEXT = 16  # ranks in the text; the page has all


def write(folder: Path, recipe: str, found: Diagnosis) -> str:
    """Writes <folder>/diagnosis.html and diagnosis.txt; returns the text."""
    page = (
        environment()
        .get_template(PAGE)
        .render(
            found=found,
            ranks=_in_order(found),
            recipe=recipe,
            name=folder.name,
            now=time.strftime("%Y-%m-%d %H:%M:%S"),
            states=STATES,
            machine=machine(),
            shares=shares,
            ago=ago,
        )
    )
    text = text_of(found) + f"\npage: {folder / PAGE}"
    for path, content in ((folder / "diagnosis.txt", text + "\n"), (folder / PAGE, page)):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(content)
        partial.replace(path)
    return text


def text_of(found: Diagnosis) -> str:
    """The verdict, a line for each rank (those that are behind first), and the notes."""
    ranks = _in_order(found)
    lines = [found.says, *(_line(one) for one in ranks[:MOST_IN_TEXT])]
    lines += [f"{len(ranks) - MOST_IN_TEXT} more ranks: see the page"] if len(ranks) > MOST_IN_TEXT else []
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _in_order(found: Diagnosis) -> list[Worker]:
    """The ranks that are behind, then the others."""
    return sorted(found.workers, key=lambda one: (one.rank not in found.behind, one.rank))


def _line(one: Worker) -> str:
    place = f" at {one.doing.frame.where}" if one.doing.frame else ""
    what = f"in {one.doing.what}" if one.doing.kind == "exchange" else one.doing.what
    state = f", {_state(one.seen)}" if one.seen else ""
    return f"  {one.name}{state}: {what}{place}; {one.at}; last wrote {one.last_event!r} {ago(one.seconds_ago)}"


def _state(seen: Seen) -> str:
    return f"{STATES.get(seen.state, seen.state)}, {seen.cpu_share:.0%} of a core"


def shares(one: Worker) -> str:
    """`exchange 80%, busy 20%` of the moments at which a rank was looked at."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in one.shares.items())


def ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds >= 1 else "just now"
