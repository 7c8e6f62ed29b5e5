"""Follows the logs of a run's pods, and takes the run's record out of them (runrecord/podrun.py puts it there)."""

import base64
import re
import threading
import time

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cookbook import UserError
from cookbook.console import console
from runrecord import parse_line

MARK = "podrun: "  # see runrecord/podrun.py
AGAIN_SECONDS = 2.0  # before a connection that was cut is begun again
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
BAD = (*HOPELESS, "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError")  # may pass


# All that podrun says: records, tables and pictures. Nothing else of a run folder is a pod's to write (its report is a page that
# people open, its config.yaml and checkpoints decide what a later try does).
EXPECTED = re.compile(r"workers/\w[\w.-]*\.jsonl|tables/\w[\w .,()-]*\.json|pictures/\w[\w .,()-]*\.(svg|png|gif)")


def content_of(told):
    """The bytes of a line of podrun's; None where it is not as podrun writes it."""
    if not isinstance(told, dict) or not EXPECTED.fullmatch(str(told.get("path"))) or type(told.get("line")) is not int:
        return None
    try:
        return base64.b64decode(told["base64"], validate=True) if "base64" in told else told["text"].encode()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class Logs:
    """Each pod's in a thread: to a file per pod, the run's record to where this machine's workers would write it."""

    def __init__(self, api, name, run_dir, image_timeout_seconds=120):
        self.api, self.name, self.run_dir, self.image_timeout_seconds = api, name, run_dir, image_timeout_seconds
        self.trouble, self.told = {}, ""  # pod -> since when it cannot start; what was said of the pods
        self.followed, self.lock, self.over, self.tails = {}, threading.Lock(), threading.Event(), {}
        self.counts = {}  # file of the record -> its lines
        (run_dir / "logs").mkdir(exist_ok=True)

    def look(self):
        """Begins to follow pods that have started, and says what others wait for. Raises UserError for one that never will."""
        pods = self.api.pods(self.name)
        if (told := summary_of(pods)) != self.told:
            console.print(f"{'':<12} {told}", markup=False)
            self.told = told
        for pod in pods:
            name, status = pod["metadata"]["name"], pod.get("status", {})
            self._check_start(name, status.get("containerStatuses") or [])
            place = name, pod["spec"]["containers"][0]["name"]
            if status.get("phase") in ("Running", "Succeeded", "Failed") and place not in self.followed:
                thread = threading.Thread(target=self._follow, args=place, daemon=True)
                self.followed[place] = thread
                thread.start()

    def _check_start(self, pod, containers):
        waiting = [(each.get("state") or {}).get("waiting") or {} for each in containers]
        bad = next((each for each in waiting if each.get("reason") in BAD), None)
        if bad is None:
            self.trouble.pop(pod, None)
            return
        since = self.trouble.setdefault(pod, time.monotonic())
        if bad["reason"] in HOPELESS or time.monotonic() - since > self.image_timeout_seconds:
            raise UserError(f"pod {pod} cannot start: {bad['reason']}: {bad.get('message', '')}".strip(": "))

    def _follow(self, pod, container):
        while not self.over.is_set():
            try:
                with open(
                    self.run_dir / f"logs/{pod}.log", "w"
                ) as log:  # from its first line: what is known already is left out
                    for line in self.api.follow(pod, container):
                        if MARK in line:
                            self._record(line.partition(MARK)[2])
                        else:
                            log.write(line + "\n")
                            log.flush()
                            self.tails[pod] = [*self.tails.get(pod, [])[-19:], line]
                return
            except ApiException as error:
                if error.status == 404:
                    return
            except (HTTPError, OSError):
                pass  # a connection that was cut: begun again
            self.over.wait(AGAIN_SECONDS)

    def _record(self, text):
        told = parse_line(text)
        if not (content := content_of(told)):
            return  # cut off, or nothing that a record has
        path = self.run_dir / told["path"]
        if path.is_symlink() or path.parent.is_symlink():
            return  # what this leads to is not the record's
        path.parent.mkdir(exist_ok=True)
        with self.lock:
            if path.suffix != ".jsonl":
                path.write_bytes(content)
                return
            if path not in self.counts:
                self.counts[path] = len(path.read_text().splitlines()) if path.exists() else 0
            if told["line"] >= self.counts[path]:  # more: lines that a rotated log has lost
                with open(path, "a") as file:
                    file.write(told["text"] + "\n")
                self.counts[path] = told["line"] + 1
        event = parse_line(told["text"])
        if (
            isinstance(event, dict) and event.get("event") == "checkpoint"
        ):  # a run with a checkpoint is gone on with: run_folder.py looks for it here
            note = self.run_dir / "checkpoints/on-the-claim.txt"
            note.parent.mkdir(exist_ok=True)
            note.write_text(f"{event.get('path')}\n")

    def drain(self, seconds=30):
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

    def close(self):
        self.over.set()
        for thread in self.followed.values():
            thread.join(5)

    def last_lines(self):
        return [f"[{pod}] {line}" for pod, lines in sorted(self.tails.items()) for line in lines]


def summary_of(pods):
    """How many pods are in which phase, and what those wait for that have no machine."""
    counts = {}
    for pod in pods:
        status = pod.get("status", {})
        unscheduled = [
            each
            for each in status.get("conditions") or []
            if each["type"] == "PodScheduled" and each["status"] == "False"
        ]
        phase = status.get("phase", "Pending") + (
            f" ({unscheduled[0].get('message', 'no machine yet')})" if unscheduled else ""
        )
        counts[phase] = counts.get(phase, 0) + 1
    return "pods: " + ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) if counts else ""
