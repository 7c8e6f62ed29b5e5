"""Says who holds a run up that goes on at this moment, and in which line. Run: make diagnose RUN=outputs/pytorch/latest

The run's driver looks at all of its machines and writes diagnosis.html and diagnosis.txt into the run's folder. The run
is neither stopped nor slowed.
"""

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from cookbook import UserError, run_folder
from cookbook.evidence.inspector import ANSWER, REQUEST
from cookbook.programs import run_program
from cookbook.report.console import Stage, console

PATIENCE_SECONDS = 150.0  # for the driver's answer


def diagnose(run: str | Path, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Asks the driver of the run in that folder; returns the diagnosis as a text.

    Raises UserError when there is no such run, when it has ended, or when its driver does not answer.
    """
    folder = Path(run).resolve()
    content = run_folder.load(folder)
    if not content:
        raise UserError(run_folder.no_run("RUN", run))
    if not _goes_on(folder):
        page = folder / "diagnosis.html"
        hint = f"; the diagnosis that was made while it went on is {page}" if page.exists() else ""
        raise UserError(f"{folder} does not go on at this moment (status: {content['status']}){hint}")
    word, request, answer = uuid.uuid4().hex, folder / REQUEST, folder / ANSWER
    partial = request.with_suffix(f".{word[:8]}")
    partial.write_text(word)
    partial.replace(request)
    deadline = time.monotonic() + patience_seconds
    with Stage("diagnose") as stage:
        while time.monotonic() < deadline:
            stage.update(f"waiting for the driver of {folder.parent.name}/{folder.name} to look at its machines")
            if answer.exists() and (found := json.loads(answer.read_text()))["word"] == word:
                return str(found["text"])
            if not _goes_on(folder):
                raise UserError(f"{folder} has ended meanwhile")
            time.sleep(0.2)
    request.unlink(missing_ok=True)
    raise UserError(
        f"the driver of {folder} has not answered within {patience_seconds:.0f} s. It looks only while workers run, "
        "not while it makes the environment or the dataset; or it is stopped itself"
    )


def _goes_on(folder: Path) -> bool:
    """Whether a driver holds the run's lock."""
    try:
        with FileLock(folder / ".driver.lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def main(argv: Sequence[str]) -> None:
    if len(argv) != 1 or not argv[0] or argv[0] in ("-h", "--help"):
        raise SystemExit("usage: make diagnose RUN=outputs/pytorch/latest (a run that goes on at this moment)")
    console.print(diagnose(argv[0]), markup=False)


if __name__ == "__main__":
    run_program(main)
