"""When a training writes a checkpoint in the middle of an epoch, and when it leaves because its machine is taken away.

A notice is SIGTERM to the worker (a launcher hands it on; so do Slurm and Kubernetes before they end a job or a pod),
or a file that appears: `<output_dir>/preempt`, or the one that NOTICE_FILE in the environment names. What the file says
is the reason that is shown. A hook for a cloud's spot notice has nothing more to do than to make that file.

    notice = Notice(config.output_dir, config.checkpoint_every_steps, config.checkpoint_every_seconds)
    for step in ...:
        wish = notice.wish(step + 1)         # 0, or SAVE, or LEAVE
        ...                                  # the step; all ranks exchange their wishes meanwhile
        if wish:
            ...                              # a checkpoint
            notice.saved(wish)               # LEAVE: raises Preempted, which ends the process with status 75

Ranks must do the same after the same step, but a signal reaches them at different moments, and their clocks differ. So
they exchange their wishes with each step. The sum of all wishes says as much as the largest of them: LEAVE is larger
than any number of ranks that only want to save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from runrecord import GO_ON_LATER

SAVE, LEAVE = 1, 1 << 20
NOTICE = "preempt"  # the file in a run's folder
LOOK_SECONDS = 0.5  # between two looks for a file: a network disk may be slow to answer


class Preempted(SystemExit):
    """The process leaves before its work is done, and has saved what is done: the same command goes on later.

    The exit status is 75, EX_TEMPFAIL in sysexits.h: "temporary failure; the user is invited to retry".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(GO_ON_LATER)
        self.reason = reason


class Notice:
    """Listens for a notice, and counts steps and seconds since the last checkpoint."""

    def __init__(
        self, output_dir: str | Path, every_steps: int = 0, every_seconds: float = 0.0, signals: bool = True
    ) -> None:
        """`every_steps`, `every_seconds`: a checkpoint so often; 0: never for this reason.

        `signals`: whether SIGTERM is a notice for all. In elastic training it is for one worker alone: then no.
        """
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.files = [Path(output_dir) / NOTICE, *map(Path, filter(None, [os.environ.get("NOTICE_FILE")]))]
        self.reason, self._looked, self._saved = "", 0.0, time.monotonic()
        # Python takes signals in its main thread only. Ray runs a training in another one: there the file must do.
        if signals and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def _came(self) -> bool:
        if not self.reason and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            for file in self.files:
                with contextlib.suppress(OSError):
                    self.reason = self.reason or file.read_text().strip() or str(file)
        return bool(self.reason)

    def wish(self, step: int, last: bool = False) -> int:
        """What this process wants when `step` steps are done: 0, SAVE or LEAVE.

        `last`: an epoch ends with this step, and a checkpoint follows anyway.
        """
        if self._came():
            return LEAVE
        by_steps = self.every_steps and step % self.every_steps == 0
        by_seconds = self.every_seconds and time.monotonic() - self._saved >= self.every_seconds
        return SAVE if (by_steps or by_seconds) and not last else 0

    def saved(self, wish: float = 0) -> None:
        """Notes a checkpoint. `wish`: what all agreed on; raises Preempted when one of them wants to leave."""
        self._saved = time.monotonic()
        if wish >= LEAVE:
            reason = self.reason or "another worker's notice"
            print(f"preempted by {reason}: all is saved; start again, and the training goes on from there", flush=True)
            raise Preempted(reason)
