"""Starts the processes of a TensorFlow cluster on this machine: what torchrun is to PyTorch; TensorFlow has none.

    python -m tfrun --num-workers 2 main.py config.yaml                      MultiWorkerMirroredStrategy
    python -m tfrun --num-workers 2 --chief --num-ps 1 main.py config.yaml   ParameterServerStrategy

The first line starts workers only, the second one a chief, ps and workers.

Each process finds in its environment TF_CONFIG ("Distributed training with TensorFlow"), with addresses on loopback,
and TFRUN_ATTEMPT, which says how often all workers have been started anew. In a
cluster of several machines the scheduler does the same.

TensorFlow's servers ask nobody for a password, and listen on all interfaces of the machine, whatever TF_CONFIG says.
So tfrun takes a network of its own that has loopback only (Linux). With --port or TFRUN_NETWORK=host it stays in the
machine's network.

The exit status is 75 when the workers have saved and left because their machine is taken away: see preempt.py. They are
not started anew then.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from loopback import Stopped, end_with_parent, leave_network, stop
from runrecord import GO_ON_LATER

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL


def be_patient(seconds: float = 60) -> None:
    """In a worker, before MultiWorkerMirroredStrategy is made: a heartbeat may be late by so many seconds.

    TensorFlow takes a worker for dead after 10 s. A machine that is busy, or was paused for a moment, is silent for
    longer. TensorFlow 2.21 has no public setting for it.
    """
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager import context

    num_workers = len(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", ()))
    if num_workers:
        context.context().configure_coordination_service(
            "standalone",
            "/job:worker/replica:0/task:0",
            heartbeat_timeout_in_ms=int(seconds * 1000),
            coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=num_workers)],
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cluster to its end; returns the exit status."""
    options = parse(argv)
    if "TF_CONFIG" in os.environ:
        say("the TF_CONFIG of the caller's environment is ignored: each process gets its own")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    own_network = options.port is None and os.environ.get("TFRUN_NETWORK") != "host"
    if own_network and (problem := leave_network("TFRUN_NETWORK")):
        say(f"no network of its own ({problem}): other machines may reach TensorFlow's servers; is there a firewall?")
    try:
        attempt = 0
        while True:
            tasks = cluster(options, attempt)
            try:
                failure = run_with_chief(tasks, options) if options.chief else run_workers(tasks)
            finally:
                end(tasks)
            if failure is None:
                return 0
            say(failure)
            if any(task.process.returncode == GO_ON_LATER for task in tasks):
                return GO_ON_LATER  # they have saved, and this machine is taken away
            if options.chief or attempt == options.max_restarts:
                return 1
            attempt += 1
            say(f"all workers are started anew (restart {attempt} of {options.max_restarts})")
    except Stopped as signal_name:
        say(f"ended by {signal_name}")
        return 128 + signal.Signals[str(signal_name)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tfrun", description="Starts the processes of a TensorFlow cluster on this machine."
    )
    add = parser.add_argument
    add("--num-workers", type=int, required=True)
    add("--chief", action="store_true", help="a chief that gives work to the workers (parameter servers)")
    add("--num-ps", type=int, default=0, help="parameter servers; needs --chief")
    restarts = "times that all workers start anew after a failure; with --chief: lost workers that are replaced"
    add("--max-restarts", type=int, default=0, help=restarts)
    add("--port", type=int, help="of the first task, the others take the next ones; without: free ones")
    add("program")
    add("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.num_workers < 1:
        parser.error(f"--num-workers {options.num_workers}: expected at least 1")
    if options.chief != (options.num_ps > 0):
        parser.error(
            "--chief and --num-ps (at least 1) go together: the ps hold the variables, the chief gives out the work"
        )
    if options.max_restarts < 0:
        parser.error(f"--max-restarts {options.max_restarts}: expected at least 0")
    return options


def cluster(options: argparse.Namespace, attempt: int) -> list[Task]:
    """The tasks of one start, running."""
    names = [("chief", 0)] if options.chief else []
    names += [("ps", index) for index in range(options.num_ps)]
    names += [("worker", index) for index in range(options.num_workers)]
    addresses = [f"127.0.0.1:{port}" for port in ports(len(names), options.port)]
    members: dict[str, list[str]] = {}
    for (kind, _), address in zip(names, addresses, strict=True):
        members.setdefault(kind, []).append(address)
    shared = {"TFRUN_ATTEMPT": str(attempt)}
    words = [sys.executable, options.program, *options.arguments]
    tasks = [Task(kind, index, members, words, shared) for kind, index in names]
    for task in tasks:
        task.start()
    return tasks


def ports(count: int, first: int | None) -> list[int]:
    """Free ports of the loopback interface, all different; or `first` and the ones that follow it."""
    sockets: list[socket.socket] = []
    try:
        for number in range(count):
            wanted = 0 if first is None else first + number
            sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sockets[-1].bind(("127.0.0.1", wanted))
            except (OSError, OverflowError) as error:
                raise SystemExit(
                    f"tfrun: port {wanted} on 127.0.0.1 cannot be used ({error}); choose another --port, "
                    f"or leave it out: then {count} free ones are taken"
                ) from None
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class Task:
    """One process of the cluster, which can be started again at the same address."""

    process: subprocess.Popen[bytes]
    printer: threading.Thread

    def __init__(
        self,
        kind: str,
        index: int,
        members: Mapping[str, Sequence[str]],
        words: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.kind, self.name, self.words = kind, f"{kind}:{index}", words
        config = json.dumps({"cluster": members, "task": {"type": kind, "index": index}})
        self.environment = {**os.environ, **environment, "TF_CONFIG": config, "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        )
        self.printer = threading.Thread(target=self._print, args=(self.process.stdout,), daemon=True)
        self.printer.start()

    def _print(self, lines: IO[bytes]) -> None:
        for line in lines:
            sys.stdout.write(f"[{self.name}] {line.decode(errors='replace').rstrip()}\n")
            sys.stdout.flush()

    def ended(self) -> str | None:
        """How the process ended, in words; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"{self.name} (pid {self.process.pid}) {how}"


def run_workers(tasks: Sequence[Task]) -> str | None:
    """Waits until all have ended well, and returns None; or until one has failed, and returns how."""
    while True:
        over = [task for task in tasks if task.ended()]
        for task in over:
            if task.process.returncode:
                return f"{task.ended()}; the others are ended"
        if len(over) == len(tasks):
            return None
        time.sleep(0.05)


def run_with_chief(tasks: Sequence[Task], options: argparse.Namespace) -> str | None:
    """Waits for the chief, which the others serve; returns None, or what failed.

    A lost worker is replaced. A lost ps ends the run, because the variables that it held are lost.
    """
    chief, replaced = tasks[0], 0
    while not chief.ended():
        for task in tasks[1:]:
            if not (how := task.ended()):
                continue
            if chief.ended():
                break  # it may have ended the service itself
            if task.kind == "ps":
                return (
                    f"{how}, and the variables that it held are lost; "
                    "start again: the run goes on from its last checkpoint"
                )
            if replaced == options.max_restarts:
                return f"{how}; --max-restarts {options.max_restarts} allows no further replacement"
            replaced += 1
            say(f"{how}; it is replaced at the same address ({replaced} of {options.max_restarts})")
            task.start()
        time.sleep(0.05)
    return chief.ended() if chief.process.returncode else None


def end(tasks: Sequence[Task]) -> None:
    """Ends what still runs: SIGTERM, and SIGKILL after the grace period. Then waits for the last lines of all."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    living = [task.process for task in tasks if task.process.poll() is None]
    for process in living:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in living:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for task in tasks:
        task.printer.join(2)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def say(text: str) -> None:
    print(f"tfrun: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
