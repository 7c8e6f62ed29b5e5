"""What each program of the guide shares: the command line, and the moments that are measured.

    python flights_polars.py FOLDER --workers 2 --repeats 2 --out events.jsonl

A program says when its system is ready, and does its work once and then `repeats` times more. Each event is one line
of JSON with the time in seconds since 1970. Standard library only: every environment runs it.
"""

import argparse
import json
import time


class Meter:
    def __init__(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", help="the dataset")
        parser.add_argument("--workers", type=int, default=2, help="processes, or threads of a system of one process")
        parser.add_argument(
            "--repeats", type=int, default=1, help="times that the work is done again, to see its speed"
        )
        parser.add_argument("--memory-mb", type=int, default=2048, help="what a worker may use, where a system asks")
        parser.add_argument("--out", help="file for the events; without it they are printed")
        given = parser.parse_args()
        self.folder, self.workers, self.repeats = given.folder, given.workers, given.repeats
        self.memory_mb, self._out = given.memory_mb, given.out

    def ready(self):
        """The system is up: what follows is work."""
        self._say("ready")

    def measure(self, work):
        """Calls `work()` 1 + repeats times. It returns {"table": rows of plain values} or {name: number}."""
        for _ in range(1 + self.repeats):
            started = time.perf_counter()
            result = work()
            self._say("result", seconds=time.perf_counter() - started, result=result)

    def _say(self, event, **facts):
        line = json.dumps({"event": event, "time": time.time(), **facts}, default=plain)
        if not self._out:
            print(line, flush=True)
            return
        with open(self._out, "a") as file:
            file.write(line + "\n")


def plain(value):
    """A number of NumPy's (or a decimal) as Python's own."""
    number = value.item() if hasattr(value, "item") else float(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number
