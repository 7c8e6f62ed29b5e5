"""A notice that this machine is taken away: SIGTERM to the driver while the workers train.

The workers get it as a file, finish their step, save and leave: see runrecord/preempt.py.
"""

import time

from cookbook import signals
from cookbook.places import Place
from cookbook.report.console import Stage
from cookbook.signals import Interrupted


class Notice:
    """Hands a notice on to the workers, and ends the run when they do not leave in time."""

    def __init__(self, place: Place, stage: Stage, grace_seconds: float) -> None:
        self.place, self.stage, self.grace_seconds = place, stage, grace_seconds
        self.deadline: float | None = None

    def look(self) -> None:
        """Called again and again. Raises Interrupted when the time is over."""
        if self.deadline is None and signals.NOTICED:
            self.deadline = time.monotonic() + self.grace_seconds
            self.stage.line(
                f"{signals.NOTICED[0]}: the workers finish their step, save and leave within {self.grace_seconds:g} s "
                "(cluster.notice_grace_seconds); a second one ends them at once"
            )
            self.place.give_notice(signals.NOTICED[0])
        elif self.deadline is not None and time.monotonic() > self.deadline:
            raise Interrupted(signals.NOTICED[0])
