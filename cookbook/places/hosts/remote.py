"""What runs on the other side of an ssh connection: a program for any Python from 3.6 on, standard library only.

start   reads one line of JSON {argv, environment, run_id, grace, silence}, runs it, hands on its output and exit
        status; ends it, and everything that it has started, when the connection is gone or silent for so long
sweep   RUN_ID GRACE [FOLDER ...]: ends every process of a run on this host, and removes its folders
notice  PATH REASON: makes that file, which tells the workers of this host to save and leave
look    reads {address, paths, files} and says what this host is like
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Callable, List


def family(run_id: str) -> List[int]:
    """Ids of the living processes whose environment has this run's id."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    belongs = f"COOKBOOK_RUN={run_id}".encode() in file.read().split(b"\0")
                with open(f"/proc/{name}/stat") as file:
                    alive = file.read().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                continue
            if belongs and alive and same_network(name):
                found.append(int(name))
    return found


def same_network(name: str) -> bool:
    """Whether a process is in this host's network: hosts that are namespaces of one machine see all its processes."""
    try:
        return os.readlink(f"/proc/{name}/ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return False


def sweep(run_id: str, grace: float, *folders: str) -> None:
    """Ends every process of a run on this host, and removes its folders."""
    end(lambda: family(run_id), grace)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # or a file
            os.unlink(folder)


def end(alive: Callable[[], List[int]], grace: float) -> None:
    """SIGTERM for all that `alive()` names, and SIGKILL for those that are still there after `grace` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace
        while True:
            left = alive()
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            if not left or (number == signal.SIGTERM and time.monotonic() > deadline):
                break
            time.sleep(0.1)


def descendants() -> List[int]:
    """Ids of the living processes that descend from this one, orphans among them: see `start`."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(name)] = int(parent)
    found, generation = [], [os.getpid()]
    while generation:
        generation = [pid for pid, parent in parents.items() if parent in generation]
        found += generation
    return found


def start() -> None:
    # Processes that lose their parent become this one's children. Some (Ray's) wipe their environment, and with it the
    # run's id.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    spec = json.loads(sys.stdin.readline())
    environment = dict(os.environ)
    environment.update(spec["environment"])
    environment["COOKBOOK_RUN"] = spec["run_id"]
    try:
        child = subprocess.Popen(
            spec["argv"], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        print(f"{spec['argv'][0]} cannot be started: {error.strerror}", flush=True)
        os._exit(127)
    heard = [time.monotonic()]

    def listen() -> None:
        while os.read(0, 4096):
            heard[0] = time.monotonic()
        heard[0] = float("-inf")

    threading.Thread(target=listen, daemon=True).start()
    while child.poll() is None:
        if time.monotonic() - heard[0] > spec["silence"]:
            end(lambda: sorted(set(family(spec["run_id"]) + descendants())), spec["grace"])
            os._exit(1)
        time.sleep(0.1)
    status = child.returncode
    end(descendants, spec["grace"])
    os._exit(status if status >= 0 else 128 - status)


def notice(path: str, reason: str) -> None:
    with open(path, "w") as file:
        file.write(reason)


def look() -> None:
    spec = json.loads(sys.stdin.readline())
    interface = ""
    try:
        for line in subprocess.check_output(["ip", "-o", "addr", "show"]).decode().splitlines():
            if spec["address"] in [word.split("/")[0] for word in line.split()]:
                interface = line.split()[1]
    except (OSError, subprocess.CalledProcessError):
        pass
    if spec["address"].startswith("127."):
        interface = interface or "lo"  # all of these are loopback's, though only the first is listed
    sha = hashlib.sha256()
    for path in spec["files"]:
        try:
            with open(path, "rb") as file:
                sha.update(file.read())
        except OSError:
            sha.update(b"missing")
    free = {}
    for path in spec["paths"]:
        there = path
        while not os.path.exists(there):
            there = os.path.dirname(there)
        free[path] = shutil.disk_usage(there).free
    found = {"interface": interface, "files": sha.hexdigest(), "free": free}
    print(json.dumps({**found, "interpreter": os.access(spec["interpreter"], os.X_OK)}))


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        sweep(sys.argv[2], float(sys.argv[3]), *sys.argv[4:])
    elif sys.argv[1] == "notice":
        notice(*sys.argv[2:])
    else:
        {"start": start, "look": look}[sys.argv[1]]()
