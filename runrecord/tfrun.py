"""Starts the processes of a TensorFlow cluster on this machine, each with its TF_CONFIG: what torchrun is to PyTorch.

    python -m tfrun --num-workers 2 PROGRAM [ARGS...]                      workers that all do the same
    python -m tfrun --num-workers 2 --chief --num-ps 1 PROGRAM [ARGS...]   a chief that directs, ps and workers that serve

Without a chief a worker that dies ends all, or, with --max-restarts, starts all anew (TFRUN_ATTEMPT counts). With a chief,
ps and workers serve until it is done and are ended then; a worker that dies is replaced, a ps that dies ends all, because
the variables were in it. Standard library only. Format of TF_CONFIG: "Distributed training with TensorFlow" in TensorFlow's guide.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL


class Task:
    """One task of the cluster, and the process that plays it at the moment."""

    def __init__(self, kind, index):
        self.kind, self.index, self.process, self._pump = kind, index, None, None

    @property
    def name(self):
        return f"{self.kind}:{self.index}"

    def start(self, cluster, command, attempt, generation):
        own = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": self.kind, "index": self.index}})}
        own |= {"TFRUN_ATTEMPT": str(attempt), "TFRUN_GENERATION": str(generation)}
        self.process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent
        )  # fmt: skip
        self._pump = threading.Thread(target=self._label, args=(self.process.stdout,), daemon=True)
        self._pump.start()

    def _label(self, lines):
        for line in lines:
            sys.stdout.buffer.write(f"[{self.name}] ".encode() + line)
            sys.stdout.buffer.flush()

    def ended(self):
        return self.process.poll() is not None

    def how(self):
        """How its process ended, in words."""
        status = self.process.returncode
        what = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"{self.name} (pid {self.process.pid}) {what}"


def _die_with_parent():
    with contextlib.suppress(OSError, AttributeError):  # Linux only: elsewhere a killed tfrun leaves its tasks behind
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def say(text):
    print(f"tfrun: {text}", flush=True)


def addresses(tasks, first_port):
    """The cluster of TF_CONFIG: {kind: ["127.0.0.1:port", ...]}, on free ports or on first_port and those after it."""
    holders, cluster = [], {}
    try:
        for number, task in enumerate(tasks):
            port = first_port + number if first_port else 0
            try:
                holders.append(socket.create_server(("127.0.0.1", port)))
            except OSError as error:
                raise SystemExit(
                    f"tfrun: port {port}, for {task.name}, is taken ({error.strerror}): choose another --port"
                ) from None
            cluster.setdefault(task.kind, []).append(f"127.0.0.1:{holders[-1].getsockname()[1]}")
    finally:
        for holder in holders:
            holder.close()
    return cluster


def stop(tasks):
    """Ends the processes that still live: asks first, then kills."""
    alive = [task for task in tasks if task.process and not task.ended()]
    for task in alive:
        task.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for task in alive:
        try:
            task.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{task.name} does not heed SIGTERM and is killed")
            task.process.kill()
            task.process.wait()
    for task in tasks:
        if task._pump:
            task._pump.join(timeout=2)


def run_workers(options):
    """Workers without a chief; returns the exit status."""
    for attempt in range(options.max_restarts + 1):
        tasks = [Task("worker", index) for index in range(options.num_workers)]
        cluster, generation = addresses(tasks, options.port), time.time()
        try:
            for task in tasks:
                task.start(cluster, options.command, attempt, generation)
            while not all(task.ended() for task in tasks):
                if failed := [task for task in tasks if task.ended() and task.process.returncode]:
                    break
                time.sleep(0.05)
            failed = [task for task in tasks if task.ended() and task.process.returncode]
        finally:
            stop(tasks)
        if not failed:
            return 0
        left = options.max_restarts - attempt
        say(f"{failed[0].how()}; " + (f"all start anew ({left} restarts left)" if left else "the others are ended"))
    return 1


def run_chief(options):
    """A chief with its ps and workers; returns the exit status."""
    chief = Task("chief", 0)
    served = [Task("ps", n) for n in range(options.num_ps)] + [Task("worker", n) for n in range(options.num_workers)]
    cluster, generation, left = addresses([chief, *served], options.port), time.time(), options.max_restarts
    try:
        for task in [*served, chief]:
            task.start(cluster, options.command, 0, generation)
        while not chief.ended():
            for task in served:
                if not task.ended():
                    continue
                if task.kind == "ps":
                    say(f"{task.how()}: the variables that it kept are lost; start again from the last checkpoint")
                    return 1
                if not left:
                    say(f"{task.how()}; no restarts are left, all are ended")
                    return 1
                left -= 1
                say(f"{task.how()}; it is replaced ({left} restarts left)")
                task.start(cluster, options.command, 0, generation)
            time.sleep(0.05)
        if chief.process.returncode:
            say(f"{chief.how()}; ps and workers are ended")
        return 1 if chief.process.returncode else 0
    finally:
        stop([*served, chief])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tfrun", description=__doc__.partition("\n")[0])
    parser.add_argument("--num-workers", type=int, required=True, help="training workers")
    parser.add_argument("--chief", action="store_true", help="one more process directs the workers")
    parser.add_argument("--num-ps", type=int, default=0, help="parameter servers; needs --chief")
    parser.add_argument("--max-restarts", type=int, default=0, help="restarts of all (with --chief: of one worker)")
    parser.add_argument(
        "--port", type=int, default=0, help="first of the ports, one for each task; 0: any that are free"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    options = parser.parse_args(argv)
    if not options.command or options.num_workers < 1 or (options.num_ps > 0) != options.chief:
        parser.error(
            "expected a program, --num-workers of at least 1, and --chief together with --num-ps of at least 1"
        )
    options.command = [sys.executable, *options.command]
    if os.environ.pop("TF_CONFIG", None):
        say("the TF_CONFIG of this environment is ignored; every task gets its own")

    def interrupted(number, frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    sys.exit(run_chief(options) if options.chief else run_workers(options))


if __name__ == "__main__":
    main()
