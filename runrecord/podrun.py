"""Starts the command of a pod and prints what the command writes into the run's record.

A pod and the driver share no disk, but the driver can read the pod's log. So each new line of a record is printed as
`podrun: {"path": ..., "line": number, "text": ...}`. At the end the tables and pictures for the report follow.

    python -m podrun --output-dir DIR [--all] [--tf-workers HOST:PORT,... [--tf-ps HOST:PORT,...
                     --tf-chief HOST:PORT --tf-task KIND]] -- COMMAND ...

--all            records of processes on other hosts too: for the pod whose program the others work for
--tf-workers     addresses of all workers: COMMAND gets a TF_CONFIG with them, and with the index that a Job
                 of Kubernetes gives each of its pods
--tf-ps, --tf-chief
                 addresses of those that hold the variables, and of the one that gives the work out. When the
                 chief's COMMAND has ended well, that of the others is told to end
--tf-task        what this pod is: worker (default), ps or chief
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MARK = "podrun: "
# A machine that is lost takes along what was not printed yet. Who prints the records of many looks less often.
POLL_SECONDS, POLL_SECONDS_OF_ALL = 0.05, 0.5
PICTURES = (".svg", ".png", ".gif")


@dataclass
class Told:
    """How much of a file was printed."""

    num_lines: int = 0
    num_bytes: int = 0


class Teller:
    """Prints what is new in a run's folder. Only records of these `hosts` are printed; without any, all of them."""

    def __init__(self, folder: str | Path, hosts: Collection[str], out: TextIO) -> None:
        self.folder, self.hosts, self.out = Path(folder), hosts, out
        self.told: dict[Path, Told] = {}
        self.others: set[Path] = set()  # files of other hosts

    def tell(self) -> None:
        """Prints the lines that the records have got since the last call."""
        for path in sorted(self.folder.glob("workers/*.jsonl")):
            if path in self.others:
                continue
            told = self.told.setdefault(path, Told())
            # Each look opens the file anew: only then does a network disk show what other machines have written.
            with open(path, "rb") as file:
                file.seek(told.num_bytes)
                whole, newline, _ = file.read().rpartition(b"\n")
            lines = whole.decode().split("\n") if newline else []
            if lines and not told.num_lines and self.hosts and json.loads(lines[0])["host"] not in self.hosts:
                self.others.add(path)
                continue
            for number, text in enumerate(lines, told.num_lines):
                self.say(path, line=number, text=text)
            told.num_lines += len(lines)
            told.num_bytes += len(whole) + len(newline)

    def tell_rest(self) -> None:
        """Prints the tables and pictures, which are complete when the run has ended."""
        for path in sorted(self.folder.glob("tables/*.json")):
            self.say(path, line=0, text=path.read_text())
        for path in sorted(path for path in self.folder.glob("pictures/*") if path.suffix in PICTURES):
            self.say(path, line=0, base64=base64.b64encode(path.read_bytes()).decode())

    def say(self, path: Path, **content: str | int) -> None:
        print(MARK + json.dumps({"path": str(path.relative_to(self.folder)), **content}), file=self.out, flush=True)


def tf_config(cluster: Mapping[str, Sequence[str]], kind: str, index: int) -> str:
    """TF_CONFIG of one task, as TensorFlow's "Distributed training" guide describes it.

    `cluster`: kind of task -> addresses; kinds without any are left out.
    """
    members = {kind: addresses for kind, addresses in cluster.items() if addresses}
    return json.dumps({"cluster": members, "task": {"type": kind, "index": index}})


class ChiefDone:
    """The note that a chief has ended well, in the folder that all pods of a run see."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "chief-done.txt"
        self.before = self._written()  # by an earlier try

    def _written(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def is_new(self) -> bool:
        return self._written() not in (None, self.before)

    def write(self) -> None:
        self.path.touch()


def main(argv: Sequence[str] | None = None) -> int:
    words = argparse.ArgumentParser(prog="podrun", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--output-dir", required=True)
    words.add_argument("--all", action="store_true")
    for name in ("--tf-workers", "--tf-ps", "--tf-chief"):
        words.add_argument(name, type=lambda text: text.split(","))
    words.add_argument("--tf-task", choices=("worker", "ps", "chief"), default="worker")
    words.add_argument("command", nargs="+")
    asked = words.parse_args(argv)
    environment = dict(os.environ)
    if asked.tf_workers:
        if "JOB_COMPLETION_INDEX" not in environment:
            raise SystemExit(
                "podrun: JOB_COMPLETION_INDEX is not set: expected a pod of a Job with completionMode Indexed"
            )
        index = int(environment["JOB_COMPLETION_INDEX"])
        cluster = {"worker": asked.tf_workers, "ps": asked.tf_ps, "chief": asked.tf_chief}
        environment |= {"TF_CONFIG": tf_config(cluster, asked.tf_task, index), "TFRUN_ATTEMPT": "0"}
    Path(asked.output_dir).mkdir(parents=True, exist_ok=True)
    done = ChiefDone(asked.output_dir)
    teller = Teller(asked.output_dir, () if asked.all else (socket.gethostname(),), sys.stdout)
    child = subprocess.Popen(asked.command, env=environment)
    # Kubernetes asks a pod to end and waits for a while. The command may use that time.
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    while child.poll() is None:
        teller.tell()
        if asked.tf_chief and asked.tf_task != "chief" and done.is_new():
            child.terminate()
        time.sleep(POLL_SECONDS_OF_ALL if asked.all else POLL_SECONDS)
    teller.tell()
    if child.returncode == 0 and (asked.tf_task == "chief" or not asked.tf_chief):
        teller.tell_rest()
    if child.returncode == 0 and asked.tf_task == "chief":
        done.write()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
