"""What runs on each machine of a run to say what its processes do: for any Python from 3.6 on, standard library only.

It reads one line of JSON from its input and prints one:

run_id      processes whose environment has this id belong to the run
workers     [[host, process id], ...] of the records: those of this host belong to it, too (some systems wipe their
            processes' environment)
everything  true: all processes here are the run's (a pod)
folder      of the run: for the sockets of PyTorch's worker servers
py_spy      where py-spy is; sent_py_spy: its content (base64), for a machine that does not have it
seconds     for which the processes are watched
own_network whether only processes in this host's network count (hosts that are namespaces of one machine)

It is one file, because it is sent to machines that have nothing of the cookbook.

Nothing is stopped. Two signals are sent, to who catches them: SIGUSR2 to a process that has said by its open file
NAME.stacks that it writes its stacks then, and SIGQUIT to an executor of Spark, whose Java writes a thread dump then.
"""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, Optional

NOTHING, PIPE = subprocess.DEVNULL, subprocess.PIPE
FEWEST_SAMPLES, MOST_SAMPLES = 3, 12  # of a process's stacks
TICKS = os.sysconf("SC_CLK_TCK")
LAST_EXCHANGES = 4
JAVA_FRAME = re.compile(r"^\tat (?:[^/(]*/)?([^(]+)\((?:[^)]*/)?([^:)]+)(?::(\d+))?\)", re.MULTILINE)


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def stat_of(pid: int) -> Optional[Dict[str, Any]]:
    """State, parent and seconds of computing of a process; None when it is gone."""
    try:
        name, _, rest = read("/proc/%d/stat" % pid).partition("(")[2].rpartition(")")
    except OSError:
        return None
    words = rest.split()
    return {"name": name, "state": words[0], "ppid": int(words[1]), "cpu": (int(words[11]) + int(words[12])) / TICKS}


def environment_of(pid: int) -> Dict[str, str]:
    try:
        words = read("/proc/%d/environ" % pid).split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def family(spec: Dict[str, Any]) -> List[int]:
    """Ids of the run's processes: those with its id, those that are named, and all that descend from them."""
    parents, found = {}, set()
    for name in os.listdir("/proc"):
        stat = stat_of(int(name)) if name.isdigit() else None
        if not stat or (spec["own_network"] and not same_network(name)):
            continue
        parents[int(name)] = stat["ppid"]
        of_run = environment_of(int(name)).get("COOKBOOK_RUN") == spec["run_id"]
        if of_run or spec["everything"] or [os.uname()[1], int(name)] in spec["workers"]:
            found.add(int(name))
    more = found
    while more:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
    return sorted(found - {os.getpid()})


def same_network(name: str) -> bool:
    try:
        return os.readlink("/proc/%s/ns/net" % name) == os.readlink("/proc/self/ns/net")
    except OSError:
        return False


def is_python(pid: int) -> bool:
    try:
        return "python" in os.path.basename(os.readlink("/proc/%d/exe" % pid))
    except OSError:
        return False


class PySpy:
    """py-spy, if this machine lets it look into other processes."""

    def __init__(self, path: str) -> None:
        self.path, self.why = path, "" if path else "py-spy is not there"

    def sample(self, pids: List[int], seconds: float) -> Dict[int, List[Any]]:
        """{pid: the stacks at several moments} of processes watched for a while, all at the same time."""
        deadline = time.time() + seconds
        found = {pid: [] for pid in pids}  # type: Dict[int, List[Any]]

        def watch(pid: int) -> None:
            while len(found[pid]) < MOST_SAMPLES and (time.time() < deadline or len(found[pid]) < FEWEST_SAMPLES):
                stat = stat_of(pid)
                stacks = self.dump(pid, stopped=True) if stat and stat["state"] not in "TtZ" else None
                if stacks is None:
                    break
                found[pid].append(stacks)
                time.sleep(seconds / MOST_SAMPLES)

        threads = [threading.Thread(target=watch, args=(pid,)) for pid in pids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def dump(self, pid: int, stopped: bool) -> Optional[List[Dict[str, Any]]]:
        """The stacks of all threads, innermost frame first; None when they cannot be read.

        The process is not paused, unless its stacks change too fast to be read.
        """
        for words in [["--nonblocking"]] * 3 + ([] if stopped else [[]]):
            if not self.path:
                return None
            argv = [self.path, "dump", "--json", "--full-filenames", "--pid", str(pid)] + words
            try:
                done = subprocess.run(argv, stdin=NOTHING, stdout=PIPE, stderr=PIPE, timeout=15)
            except (OSError, subprocess.TimeoutExpired) as error:
                self.why = str(error)
                continue
            if done.returncode == 0:
                return [
                    {
                        "name": thread.get("thread_name") or "",
                        "active": bool(thread["active"]),
                        "frames": [[one["name"], one["filename"], one["line"]] for one in thread["frames"]],
                    }
                    for thread in json.loads(done.stdout.decode())
                ]
            self.why = (done.stderr.decode(errors="replace").strip().splitlines() or ["py-spy said nothing"])[-1]
            if "ermission" in self.why or "perm" in self.why:
                break
        return None


def by_signal(pid: int) -> str:
    """The stacks as the process itself writes them on SIGUSR2 (Python's faulthandler); empty when it does not."""
    with contextlib.suppress(OSError, StopIteration):
        opened = [os.path.realpath("/proc/%d/fd/%s" % (pid, fd)) for fd in os.listdir("/proc/%d/fd" % pid)]
        return written_on(signal.SIGUSR2, pid, next(name for name in opened if name.endswith(".stacks")))
    return ""


def written_on(number: int, pid: int, path: str) -> str:
    """What a process writes into a file when it gets a signal; empty when it does not catch that one."""
    caught = int(read("/proc/%d/status" % pid).partition("SigCgt:")[2].split()[0], 16)
    if not caught >> (number - 1) & 1:
        return ""
    size = os.path.getsize(path)
    os.kill(pid, number)
    deadline, last = time.time() + 3, -1
    while time.time() < deadline and (os.path.getsize(path) == size or os.path.getsize(path) != last):
        last = os.path.getsize(path)
        time.sleep(0.2)
    with open(path, "rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def thread_dump(pid: int) -> List[Dict[str, Any]]:
    """The stacks of an executor's Java threads, those of tasks first.

    Spark keeps what an executor writes in a file of the executor's working folder.
    """
    text = ""
    with contextlib.suppress(OSError, IndexError):
        text = written_on(signal.SIGQUIT, pid, "/proc/%d/cwd/stdout" % pid)
    found = []
    for part in re.split(r'^(?=")', text, flags=re.MULTILINE):
        head = re.match(r'"(.*)" #\d', part)
        frames = [
            [".".join(function.split(".")[-2:]), file, int(line or 0)]
            for function, file, line in JAVA_FRAME.findall(part)
        ]
        if head and frames:
            runs = "State: RUNNABLE" in part and frames[0][1] != "Native Method"
            found.append({"name": head[1], "active": runs, "frames": frames})
    return sorted(found, key=lambda one: not one["name"].startswith("Executor task"))


def exchanges_of(folder: str, pid: int) -> Optional[Dict[str, Any]]:
    """The last exchanges as PyTorch's Flight Recorder has them; None where there is no worker server, or no answer."""
    scratch = os.path.join(folder, "scratch")
    with contextlib.suppress(OSError, ValueError, StopIteration, KeyError):
        name = next(one for one in os.listdir(scratch) if one.endswith("-%d.sock" % pid))
        if os.uname()[1] not in name:
            return None
        opened = os.open(scratch, os.O_RDONLY)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.settimeout(5)
            server.connect("/proc/self/fd/%d/%s" % (opened, name))
            server.sendall(b"POST /handler/fr_trace_json HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            answer = b"".join(iter(lambda: server.recv(65536), b""))
        os.close(opened)
        trace = json.loads(answer.partition(b"\r\n\r\n")[2].decode())
        kept = []
        for one in trace["entries"][-LAST_EXCHANGES:]:
            kept.append(
                {
                    "number": one["collective_seq_id"] or one["p2p_seq_id"],
                    "name": one["profiling_name"],
                    "group": one["process_group"][-1],
                    "sizes": one["input_sizes"],
                    "done": one["retired"],
                }
            )
        return {"last": kept, "count": len(trace["entries"])}
    return None


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    path = spec["py_spy"] if os.access(spec["py_spy"], os.X_OK) else ""
    sent = ""
    if not path and spec.get("sent_py_spy"):
        number, sent = tempfile.mkstemp(prefix="cookbook-py-spy-")
        os.write(number, base64.b64decode(spec["sent_py_spy"]))
        os.fchmod(number, 0o700)
        os.close(number)
        path = sent
    try:
        print(json.dumps(probe(spec, PySpy(path))))
    finally:
        if sent:
            os.unlink(sent)


def probe(spec: Dict[str, Any], spy: PySpy) -> Dict[str, Any]:
    pids = family(spec)
    pythons = [pid for pid in pids if is_python(pid)]
    ranked = [pid for pid in pythons if [os.uname()[1], pid] in spec["workers"]] or pythons
    before = {pid: stat_of(pid) for pid in pids}
    began = time.time()
    samples = spy.sample(ranked, spec["seconds"])
    time.sleep(max(0.0, began + spec["seconds"] - time.time()))
    elapsed, found = time.time() - began, []
    for pid in pids:
        stat, earlier = stat_of(pid), before[pid]
        if not stat or not earlier or stat["state"] == "Z":
            continue
        environment = environment_of(pid)
        about = {
            "pid": pid,
            "ppid": stat["ppid"],
            "name": stat["name"],
            "state": stat["state"],
            "cpu_seconds": stat["cpu"],
            "cpu_share": max(0.0, stat["cpu"] - earlier["cpu"]) / elapsed,
            "rank": environment.get("RANK", environment.get("OMPI_COMM_WORLD_RANK", environment.get("HOROVOD_RANK"))),
            "waits_in": "",
            "words": "",
            "stacks": None,
            "dump": [],
            "written": "",
            "why": "",
            "samples": samples.get(pid, []),
            "exchanges": None,
        }
        with contextlib.suppress(OSError):
            about["words"] = " ".join(read("/proc/%d/cmdline" % pid).split("\0"))[:200]
            about["waits_in"] = read("/proc/%d/wchan" % pid).strip("0")
        if [os.uname()[1], pid] in spec["workers"] and stat["name"] == "java" and stat["state"] not in "Tt":
            about["dump"] = thread_dump(pid)
        if pid in pythons:
            about["stacks"] = spy.dump(pid, stat["state"] in "Tt")
            if about["stacks"] is None:
                about["why"] = spy.why
                about["written"] = by_signal(pid) if stat["state"] not in "Tt" else ""
            about["exchanges"] = exchanges_of(spec["folder"], pid)
        found.append(about)
    return {"host": os.uname()[1], "processes": found}


if __name__ == "__main__":
    main()
