"""Follows the logs of a run's pods, and takes the run's record out of them (runrecord/podrun.py puts it there)."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cookbook import UserError
from cookbook.places.kubernetes.api import Api
from cookbook.pods import Object
from cookbook.report.console import console
from cookbook.run_folder import IN_CLUSTER
from runrecord import parse_line

PREFIX = "podrun: "  # of podrun's own lines; see runrecord/podrun.py
AGAIN_SECONDS = 2.0  # before a connection that was cut is made again
# Why a container waits: HOPELESS reasons stay, the other BAD ones may pass.
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
STATUSES = ("initContainerStatuses", "containerStatuses")
BAD = (*HOPELESS, "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError")


# The files that podrun writes: records, tables and pictures. A pod may write nothing else into a run folder: people
# open its report, and its config.yaml and checkpoints decide what a later try does.
EXPECTED = re.compile(r"workers/\w[\w.-]*\.jsonl|tables/\w[\w .,()-]*\.json|pictures/\w[\w .,()-]*\.(svg|png|gif)")


@dataclass(frozen=True)
class Entry:
    """What a line of podrun adds to the run folder: a line of a record, or a whole file."""

    path: str  # in the run folder
    number: int  # of the line in the record
    content: bytes


def entry_of(text: str) -> Entry | None:
    """What podrun wrote into a log; None when it is cut off, empty, or not as podrun writes it."""
    found: object = parse_line(text)  # any kind of JSON: a pod may write what it likes
    if not isinstance(found, dict):
        return None
    path, number = str(found.get("path")), found.get("line")
    if not EXPECTED.fullmatch(path) or type(number) is not int:
        return None
    try:
        content = base64.b64decode(found["base64"], validate=True) if "base64" in found else found["text"].encode()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Entry(path, number, content) if content else None


class Logs:
    """The logs of a run's pods. A thread follows each of them.

    Each pod's log goes to a file of its own, and the run's record to where this machine's workers would write it.
    """

    def __init__(self, api: Api, name: str, run_dir: Path, image_timeout_seconds: float, on_claim: bool = True) -> None:
        """`on_claim`: a pod sees the records of an earlier try, and gives its own other names. Without a claim this
        machine must do that.
        """
        self.on_claim = on_claim
        self.api, self.name, self.run_dir, self.image_timeout_seconds = api, name, run_dir, image_timeout_seconds
        self.trouble: dict[str, float] = {}  # pod -> since when it cannot start
        self.shown = ""  # the newest summary of the pods
        self.followed: dict[tuple[str, str], threading.Thread] = {}  # (pod, container) -> who follows it
        self.tails: dict[str, list[str]] = {}  # pod -> the last lines of its log
        self.own_files: dict[Path, Path] = {}  # a record as its pod calls it -> the file that it has here
        self.counts: dict[Path, int] = {}  # file of the record -> how many lines it has
        self.lost: dict[Path, int] = {}  # file of the record -> how many of its lines never came
        self.refused: set[str] = set()  # what stood in the place of a line of podrun and is none
        self.lock, self.over = threading.Lock(), threading.Event()
        (run_dir / "logs").mkdir(exist_ok=True)

    def look(self) -> None:
        """Begins to follow pods that have started, and shows what others wait for.

        Raises UserError for a pod that never will start.
        """
        pods = self.api.pods(self.name)
        if (summary := summary_of(pods)) != self.shown:
            console.print(f"{'':<12} {summary}", markup=False)
            self.shown = summary
        for pod in pods:
            name, status = pod["metadata"]["name"], pod.get("status", {})
            self._check_start(name, [each for key in STATUSES for each in status.get(key) or []])
            place = name, container_of(pod)
            if status.get("phase") in ("Running", "Succeeded", "Failed") and place not in self.followed:
                thread = threading.Thread(target=self._follow, args=place, daemon=True)
                self.followed[place] = thread
                thread.start()

    def _check_start(self, pod: str, containers: Sequence[Object]) -> None:
        waiting = [(each.get("state") or {}).get("waiting") or {} for each in containers]
        bad = next((each for each in waiting if each.get("reason") in BAD), None)
        if bad is None:
            self.trouble.pop(pod, None)
            return
        since = self.trouble.setdefault(pod, time.monotonic())
        if bad["reason"] in HOPELESS or time.monotonic() - since > self.image_timeout_seconds:
            raise UserError(f"pod {pod} cannot start: {bad['reason']}: {bad.get('message', '')}".strip(": "))

    def _follow(self, pod: str, container: str) -> None:
        while not self.over.is_set():
            try:
                # After a cut the log comes from its first line again, so its file is written anew.
                with open(self.run_dir / f"logs/{pod}.log", "w") as log:
                    for line in self.api.follow(pod, container):
                        if PREFIX in line:
                            self._record(line.partition(PREFIX)[2])
                        else:
                            log.write(line + "\n")
                            log.flush()
                            self.tails[pod] = [*self.tails.get(pod, [])[-19:], line]
                return
            except ApiException as error:
                if error.status == 404:
                    return
            except (HTTPError, OSError):
                pass  # the connection was cut: it is made again
            self.over.wait(AGAIN_SECONDS)

    def _record(self, text: str) -> None:
        """Adds a line of podrun to the run folder, unless it is known already."""
        entry = entry_of(text)
        if entry is None:
            self.refused.add(text[:200])
            return
        path = self.run_dir / entry.path
        if path.is_symlink() or path.parent.is_symlink():
            self.refused.add(text[:200])  # a link could lead out of the run folder
            return
        path.parent.mkdir(exist_ok=True)
        with self.lock:
            if path.suffix != ".jsonl":
                path.write_bytes(entry.content)
                return
            path = self._own_file(path)
            if path not in self.counts:
                self.counts[path] = len(path.read_text().splitlines()) if path.exists() else 0
            if entry.number >= self.counts[path]:  # greater: a rotated log has lost the lines between
                self.lost[path] = self.lost.get(path, 0) + entry.number - self.counts[path]
                with open(path, "ab") as file:
                    file.write(entry.content + b"\n")
                self.counts[path] = entry.number + 1
        event: object = parse_line(entry.content.decode(errors="replace"))
        if isinstance(event, dict) and event.get("event") == "checkpoint":
            # A run with a checkpoint can be taken up again: run_folder.py looks for a file here.
            note = self.run_dir / IN_CLUSTER
            note.parent.mkdir(exist_ok=True)
            note.write_text(f"{event.get('path')}\n")

    def _own_file(self, path: Path) -> Path:
        """The file for a record. Pods of two tries have the same names, and their processes the same ids."""
        if path not in self.own_files:
            own, number = path, 2
            while not self.on_claim and own.exists():
                own, number = path.with_name(f"{path.stem}-{number}.jsonl"), number + 1
            self.own_files[path] = own
        return self.own_files[path]

    def drain(self, seconds: float = 30) -> None:
        """Waits for the logs of pods that have ended."""
        ended = {
            pod["metadata"]["name"]
            for pod in self.api.pods(self.name)
            if pod["status"].get("phase") in ("Succeeded", "Failed")
        }
        deadline = time.monotonic() + seconds
        for (pod, _), thread in self.followed.items():
            if pod in ended:
                thread.join(max(0.0, deadline - time.monotonic()))

    def warnings(self) -> list[str]:
        """What of the run's record did not come here."""
        lost = {path: count for path, count in self.lost.items() if count}
        said = [f"{path.name}: {count} lines are missing: a pod's log was rotated" for path, count in lost.items()]
        if self.refused:
            said.append(f"{len(self.refused)} lines of pods' logs look like a run's record and are none: left out")
        return said

    def close(self) -> None:
        self.over.set()
        for thread in self.followed.values():
            thread.join(5)

    def last_lines(self) -> list[str]:
        return [f"[{pod}] {line}" for pod, lines in sorted(self.tails.items()) for line in lines]


def container_of(pod: Object) -> str:
    """The container whose log to follow: the pod's own, or the one that failed before that could start."""
    for each in pod.get("status", {}).get("initContainerStatuses") or []:
        if ((each.get("state") or {}).get("terminated") or {}).get("exitCode"):
            return str(each["name"])
    return str(pod["spec"]["containers"][0]["name"])


def summary_of(pods: Sequence[Object]) -> str:
    """How many pods are in which phase, and what those wait for that have no machine."""
    counts: dict[str, int] = {}
    for pod in pods:
        status = pod.get("status", {})
        phase = status.get("phase", "Pending")
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                phase += f" ({condition.get('message', 'no machine yet')})"
                break
        counts[phase] = counts.get(phase, 0) + 1
    return "pods: " + ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) if counts else ""
