"""Looks at a run's processes while it goes on, when somebody asks or when it is silent, and writes what it has seen.

Who wants a diagnosis (`make diagnose`) puts a request into the run's folder. The driver answers it: it is the one that
can reach the run's machines. It looks in a thread of its own, so the run goes on meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cookbook.processes import die_with_parent
from runrecord import read_records

PROBE = Path(__file__).with_name("probe.py")
REQUEST = ".diagnose"  # in the run's folder; its text is a random word, by which the asker knows the answer
ANSWER = "diagnosis.json"  # written after the pages, with that word in it
MOVING_SECONDS = 10.0  # a run that has written something since then goes on, however slowly
SECONDS = 2.0  # for which the processes are watched
PATIENCE_SECONDS = 90.0  # for one machine's answer
Spec = dict[str, Any]  # what probe.py reads
Answers = Mapping[str, Mapping[str, Any] | str]  # machine -> what probe.py says there, or why it says nothing


class Inspector:
    """Makes the diagnoses of one run."""

    def __init__(self, run_dir: Path, run_id: str, recipe: str, probe: Callable[[Spec], Answers]) -> None:
        """`probe` runs probe.py on all machines of the run: `Place.probe`."""
        self.run_dir, self.run_id, self.recipe, self.probe = run_dir, run_id, recipe, probe
        self.says = ""  # the last diagnosis, in a sentence or two
        self.text: str | None = None  # the last one as a text for the terminal, until `news` has handed it out
        self._thread: threading.Thread | None = None
        (run_dir / REQUEST).unlink(missing_ok=True)

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def poll(self, silence_seconds: float) -> None:
        """Begins to answer a request, if there is one. `silence_seconds`: since when no worker has written anything."""
        request = self.run_dir / REQUEST
        if not self.busy and request.exists():
            word = request.read_text()
            request.unlink(missing_ok=True)
            self.begin(word, moving=silence_seconds < MOVING_SECONDS)

    def begin(self, word: str = "", moving: bool = False) -> None:
        """Begins to look, unless that is under way. `moving`: whether the workers still write their records."""
        if not self.busy:
            self._thread = threading.Thread(target=self._look, args=(word, moving), daemon=True)
            self._thread.start()

    def news(self) -> str | None:
        """The text of a diagnosis that is new since the last call."""
        text, self.text = (None, self.text) if self.busy else (self.text, None)
        return text

    def close(self) -> None:
        """Waits for the end of a look that is under way, and tidies up after workers that were killed."""
        if self._thread:
            self._thread.join(PATIENCE_SECONDS)
        for path in self.run_dir.glob("workers/*.stacks"):
            if not path.stat().st_size:
                path.unlink()

    def _look(self, word: str, moving: bool) -> None:
        from cookbook.evidence import diagnosis, diagnosis_page

        try:
            answers = self.probe(self._spec())
        except Exception as error:  # whatever a place or a cluster's client raises: the run itself must not end by it
            answers = {"the run's machines": f"{type(error).__name__}: {error}"}
        found = diagnosis.make(read_records(self.run_dir), answers, self.recipe, time.time(), moving)
        self.says = found.says
        self.text = diagnosis_page.write(self.run_dir, self.recipe, found)
        partial = self.run_dir / f".{ANSWER}.partial"
        partial.write_text(json.dumps({"word": word, "says": found.says, "behind": found.behind, "text": self.text}))
        partial.replace(self.run_dir / ANSWER)

    def _spec(self) -> Spec:
        starts = [events[0] for events in read_records(self.run_dir) if events[0]["event"] == "start"]
        return {
            "run_id": self.run_id,
            "workers": [[start["host"], start["pid"]] for start in starts],
            "everything": False,
            "folder": str(self.run_dir),
            "py_spy": str(Path(sys.executable).with_name("py-spy")),
            "seconds": SECONDS,
            "own_network": False,
        }


def ask(argv: Sequence[str], spec: Spec, environment: Mapping[str, str] | None = None) -> list[dict[str, Any]] | str:
    """Runs probe.py by a command; returns the answers (one for each machine on which it ran), or why there is none."""
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(spec) + "\n",
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
            timeout=PATIENCE_SECONDS,
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE_SECONDS:.0f} s"
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return answers or " ".join(done.stderr.split())[-300:] or f"exit status {done.returncode}"
