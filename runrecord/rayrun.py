"""Runs a program on a Ray instance that lives as long as the program does, on this machine.

    python -m rayrun --num-cpus 4 main.py config.yaml        Ray, then the program with RAY_ADDRESS in its environment
    python -m rayrun --num-cpus 3 --slots 1 --node 1:1 main.py config.yaml     the same, with a second node

`ray start` is for clusters that stay. This program starts a head node, waits until a worker process answers, and runs
the program. However the program ends, Ray ends with it. RAYRUN_SECONDS tells the program how long the start took.

Further nodes (`--node CPUS:SLOTS`) are processes of this machine, too: kill -9 the one whose process id is printed,
and Ray loses that node with all workers on it. It is started again REJOIN_SECONDS later.

Ray's servers listen on the machine's address. So rayrun takes a network of its own that has loopback only (Linux);
RAYRUN_NETWORK=host keeps it in the machine's network. In both cases Ray asks for a token, a new one for each start.
Ray's files go to --temp-dir, which is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loopback import Stopped, end_with_parent, leave_network, stop

GRACE_SECONDS = 5  # between SIGTERM and SIGKILL
REJOIN_SECONDS = (
    60  # a lost node stays away so long: Ray Train needs up to 45 to see that there is room for fewer workers
)
LONGEST_TEMP_DIR = 43  # characters: Ray appends the names of its sockets, and such a path may have 107 in all


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program to its end; returns its exit status."""
    options = parse(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if os.environ.get("RAYRUN_NETWORK") != "host" and (problem := leave_network("RAYRUN_NETWORK")):
        say(f"no network of its own ({problem}): other machines may reach Ray's servers; is there a firewall?")
    # The token is only valid for this instance, and no file has it.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    os.environ.pop("RAY_ADDRESS", None)
    program, nodes = None, []
    folder = Path(options.temp_dir or tempfile.mkdtemp(prefix="rayrun-")).absolute()
    with short_name(folder) as short:
        try:
            started = time.perf_counter()
            address = start_ray(options, short)
            nodes = [Node(number, address, options) for number in range(2, len(options.node) + 2)]
            wait_for_nodes(nodes)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)  # Ray has taken SIGTERM for itself
            seconds = time.perf_counter() - started
            num_cpus = options.num_cpus + sum(cpus for cpus, _ in options.node)
            size = f"{num_cpus} logical CPUs, {options.object_store_mb} MB of object store"
            say(f"Ray is up after {seconds:.1f} s: {size}")
            environment = {**os.environ, "RAY_ADDRESS": address, "RAYRUN_SECONDS": f"{seconds:.3f}"}
            command = [sys.executable, options.program, *options.arguments]
            program = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
            status = wait(program, nodes)
            if status < 0:
                say(f"the program died of {signal.Signals(-status).name}")
            return status if status >= 0 else 128 - status
        except Stopped as name:
            say(f"ended by {name}")
            return 128 + signal.Signals[str(name)]
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            end(program, *(node.process for node in nodes))
            remove(folder)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("rayrun", description="Runs a program on a Ray instance of its own.")
    parser.add_argument("--num-cpus", type=int, required=True, help="logical CPUs that tasks and actors can ask for")
    parser.add_argument("--slots", type=int, default=0, help="how many of the custom resource `slot` the head has")
    parser.add_argument(
        "--node",
        type=cpus_and_slots,
        action="append",
        default=[],
        metavar="CPUS:SLOTS",
        help="another node, with so many logical CPUs and slots; comes back when it is lost",
    )
    parser.add_argument("--num-gpus", type=int, help="GPUs; without: those that Ray finds")
    parser.add_argument(
        "--object-store-mb", type=int, default=300, help="shared memory for objects; beyond it Ray spills to disk"
    )
    parser.add_argument("--temp-dir", help="for Ray's files: logs, sockets, spilled objects; removed at the end")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.num_cpus < 1:
        parser.error(f"--num-cpus {options.num_cpus}: expected at least 1")
    if options.object_store_mb < 80:
        parser.error(f"--object-store-mb {options.object_store_mb}: Ray wants at least 80")
    if options.temp_dir and Path(options.temp_dir).exists() and any(Path(options.temp_dir).iterdir()):
        parser.error(f"--temp-dir {options.temp_dir} is not an empty folder: what is in it would be removed at the end")
    return options


def cpus_and_slots(text: str) -> tuple[int, int]:
    cpus, _, slots = text.partition(":")
    if not cpus.isdigit() or not slots.isdigit() or not int(cpus):
        raise argparse.ArgumentTypeError(f"{text!r}: expected CPUS:SLOTS, such as 2:2")
    return int(cpus), int(slots)


class Node:
    """A node beside the head: a `ray start` of its own, with which all of the node's processes end."""

    def __init__(self, number: int, address: str, options: argparse.Namespace) -> None:
        self.number, self.lost_at = number, 0.0
        num_cpus, slots = options.node[number - 2]
        self.argv = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        self.argv += [f"--address={address}", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}"]
        self.argv += [f"--resources={json.dumps({'slot': slots})}"]
        self.argv += [f"--object-store-memory={options.object_store_mb << 20}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=end_with_parent
        )
        say(f"node {self.number} is process {self.process.pid}: kill -9 takes it away, for {REJOIN_SECONDS} s")

    def look(self) -> None:
        """Notices that the node is lost, and starts it again when it has been away long enough."""
        if self.process.poll() is None:
            return
        if not self.lost_at:
            self.lost_at = time.monotonic()
            say(f"node {self.number} is lost; it comes back in {REJOIN_SECONDS} s")
        elif time.monotonic() - self.lost_at > REJOIN_SECONDS:
            self.lost_at = 0.0
            self.start()


def wait_for_nodes(nodes: Sequence[Node]) -> None:
    """Returns when Ray has all nodes. Raises SystemExit when one of them ends before."""
    import ray

    while len([node for node in ray.nodes() if node["Alive"]]) <= len(nodes):
        for node in nodes:
            if node.process.poll() is not None:
                raise SystemExit(f"rayrun: node {node.number} ended with status {node.process.returncode}")
        time.sleep(0.1)


def wait(program: subprocess.Popen[bytes], nodes: Sequence[Node]) -> int:
    """The program's status, once it has ended; meanwhile lost nodes come back."""
    while True:
        try:
            return program.wait(timeout=0.5 if nodes else None)
        except subprocess.TimeoutExpired:
            for node in nodes:
                node.look()


def start_ray(options: argparse.Namespace, folder: Path) -> str:
    """Starts the head node as children of this process; returns its address once a task has been answered."""
    import ray

    ray.init(
        num_cpus=options.num_cpus,
        resources={"slot": options.slots} if options.slots else None,
        num_gpus=options.num_gpus,
        object_store_memory=options.object_store_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
    )
    ray.get(ray.remote(num_cpus=1)(lambda: None).remote())
    address: str = ray.get_runtime_context().gcs_address
    return address


@contextlib.contextmanager
def short_name(folder: Path) -> Iterator[Path]:
    """A path of the folder that is short enough for sockets in it: the folder itself, or a link to it."""
    if len(str(folder)) <= LONGEST_TEMP_DIR:
        yield folder
        return
    links = Path(tempfile.gettempdir())
    for link in links.glob("rayrun-link-*"):
        with contextlib.suppress(OSError):  # the link may be another user's
            if not link.exists():  # a rayrun that was killed has left it: the folder behind the link is gone
                link.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    link = links / f"rayrun-link-{secrets.token_hex(4)}"
    link.symlink_to(folder)
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


def end(*started: subprocess.Popen[bytes] | None) -> None:
    """Ends the program and the nodes, if they still run, and Ray."""
    for process in started:
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def remove(folder: Path, seconds: float = 5) -> None:
    """Removes the folder; Ray's last processes may still be writing into it."""
    deadline = time.monotonic() + seconds
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def say(text: str) -> None:
    print(f"rayrun: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
