"""Pods of a Kubernetes cluster: the run's objects are made there, its pods' logs followed, and all of it removed at the end."""

import base64
import contextlib
import json
import re
import threading
import time
from pathlib import Path

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cookbook import ROOT, UserError
from cookbook.clusters import local
from cookbook.console import console
from cookbook.environments import lock_of
from cookbook.launch_kubernetes import RUN_LABEL, run_name
from runrecord import parse_line

POLL_SECONDS = 2.0
GONE_SECONDS = 120  # for what was deleted to be gone
MARK = "podrun: "  # see runrecord/podrun.py
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
BAD = (*HOPELESS, "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError")  # may pass
RETRY_SECONDS = 20  # for an operator's cache to know what was made a moment ago

# Kind -> plural, and how its status says that it has ended: {state: whether all went well}, from the states that `states_of` finds.
KINDS = {
    "ConfigMap": ("configmaps", None),
    "Secret": ("secrets", None),
    "TrainingRuntime": ("trainingruntimes", None),
    "Job": ("jobs", {"Complete": True, "Failed": False}),
    "TrainJob": ("trainjobs", {"Complete": True, "Failed": False}),
    "RayJob": ("rayjobs", {"Complete": True, "Failed": False}),
    "DaskJob": ("daskjobs", {"Successful": True, "Failed": False}),
    "SparkApplication": ("sparkapplications", {"COMPLETED": True, "FAILED": False, "SUBMISSION_FAILED": False}),
}


def prepare(cluster, recipe, python, data_dir, run_dir, mark, stage):
    """The cluster's settings with what launch_kubernetes needs to know. Raises UserError when the cluster, or what the run
    needs there, is missing; removes what an earlier try of this run has left."""
    lock = lock_of(recipe).read_text()
    found = {
        **cluster, "config_yaml": (Path(run_dir) / "config.yaml").read_text(), "dataset": Path(data_dir).name,
        "versions": {name: version for name, version in re.findall(r"^(\S+)==(\S+)$", lock, re.MULTILINE)},
    }  # fmt: skip
    if (ROOT / f"recipes/{recipe}/submit.py").exists():
        return found  # its own program talks to the cluster
    if not cluster["image"]:
        raise UserError(
            "cluster.image is not set: build the recipe's image and push it where the cluster finds it (images/README.md has the commands), "
            "then say cluster.image=REGISTRY/NAME:TAG"
        )
    stage.update("looking at the cluster")
    api = Api(cluster)
    name = run_name(Path(run_dir))
    try:
        api.ask("GET", f"/api/v1/namespaces/{cluster['namespace']}/persistentvolumeclaims/{cluster['claim']}")
    except ApiException as error:
        raise UserError(
            f"claim {cluster['claim']!r} in namespace {cluster['namespace']!r} cannot be used: {reason_of(error)}. It is made by infra/kubernetes "
            "(`make infra-up`), or by hand: a PersistentVolumeClaim with ReadWriteMany"
        ) from None
    for plural_path in {path for _, path in api.kinds()}:
        with contextlib.suppress(ApiException):  # an operator that is not installed has left nothing
            for item in api.ask("GET", plural_path, label=f"{RUN_LABEL}={name}").get("items", []):
                path = f"{plural_path}/{item['metadata']['name']}"
                if not api.delete(path):
                    raise UserError(f"what an earlier try of this run has left cannot be deleted: {path}")
    return found


class Api:
    """The calls of Kubernetes' API that a run needs, by path: each kind is asked for alike."""

    def __init__(self, cluster):
        """Raises UserError when the kubeconfig has no such cluster, or it does not answer."""
        try:
            self.client = config.new_client_from_config(context=cluster["context"])
            self.namespace = cluster["namespace"]
            client.VersionApi(self.client).get_code(_request_timeout=10)
        except config.ConfigException as error:
            raise UserError(f"cluster=kubernetes: no usable kubeconfig: {error}") from None
        except (HTTPError, ApiException) as error:
            why = reason_of(error) if isinstance(error, ApiException) else type(error).__name__
            raise UserError(
                f"cluster=kubernetes: {self.client.configuration.host} does not answer: {why}. Does `kubectl get nodes` work?"
            ) from None

    def ask(self, method, path, body=None, label=None):
        """The answer as plain data. Raises ApiException for a refusal, HTTPError where there is no answer."""
        request = self.client.param_serialize(
            method, path, query_params=[("labelSelector", label)] if label else [], body=body, auth_settings=["BearerToken"],
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
        )  # fmt: skip
        answer = self.client.call_api(*request, _request_timeout=60)
        text = answer.read().decode()
        if answer.status >= 400:
            raise ApiException(status=answer.status, reason=answer.reason, body=text)
        return json.loads(text)

    def path(self, made):
        version = made["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{root}/namespaces/{self.namespace}/{KINDS[made['kind']][0]}"

    def kinds(self):
        """(kind, path of its list) of everything that a run may have made."""
        versions = {
            "ConfigMap": "v1", "Secret": "v1", "Job": "batch/v1", "TrainJob": "trainer.kubeflow.org/v1alpha1",
            "TrainingRuntime": "trainer.kubeflow.org/v1alpha1", "RayJob": "ray.io/v1", "DaskJob": "kubernetes.dask.org/v1",
            "SparkApplication": "sparkoperator.k8s.io/v1beta2",
        }  # fmt: skip
        return [(kind, self.path({"apiVersion": version, "kind": kind})) for kind, version in versions.items()]

    def create(self, made):
        kind, name = made["kind"], made["metadata"]["name"]
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return self.ask("POST", self.path(made), made)
            except ApiException as error:
                # Trainer looks a job's runtime up among what it has heard of.
                if "must be created before" in reason_of(error) and time.monotonic() < deadline:
                    time.sleep(1)
                    continue
                self.refuse(kind, name, error)
            except HTTPError as error:
                raise UserError(f"{kind} {name} could not be made: {type(error).__name__}") from None

    def refuse(self, kind, name, error):
        hint = (
            f"; is {kind}'s operator installed? (infra/kubernetes installs all of them)" if error.status == 404 else ""
        )
        raise UserError(f"{kind} {name} was refused: {reason_of(error)}{hint}") from None

    def delete(self, path):
        """Deletes an object with all that belongs to it; returns whether it is gone. A server that is away for a moment is asked again."""
        deadline, asked = time.monotonic() + GONE_SECONDS, False
        while time.monotonic() < deadline:
            try:
                if not asked:
                    self.ask(
                        "DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
                    )
                    asked = True
                self.ask("GET", path)
            except ApiException as error:
                if error.status == 404:
                    return True
                if error.status in (401, 403):
                    return False
            except HTTPError:
                pass
            time.sleep(0.5)
        return False

    def pods(self, name):
        return self.ask("GET", f"/api/v1/namespaces/{self.namespace}/pods", label=f"{RUN_LABEL}={name}")["items"]

    def follow(self, pod, container):
        """The lines of a pod's log while they come; ends when the container has ended, raises HTTPError when the connection breaks."""
        answer = client.CoreV1Api(self.client).read_namespaced_pod_log(
            pod, self.namespace, container=container, follow=True, _preload_content=False, _request_timeout=(10, 300)
        )
        rest = b""
        # The API sends chunks: each line is here when it was said, not when a block of them is full.
        for chunk in answer.stream(decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")


def run(processes, cluster, run_dir, mark, watch):
    """See `local.run`: makes the objects, follows the pods' logs until the last object has ended, and deletes all of them."""
    if processes[0].name != "kubernetes":  # its own program talks to the cluster
        return local.run(processes, cluster, run_dir, mark, watch)
    (process,) = processes
    ((path, text),) = process.files.items()
    Path(path).write_text(text)
    objects = list(yaml.safe_load_all(text))
    name, labels = objects[0]["metadata"]["name"], objects[0]["metadata"]["labels"]
    if process.secrets:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in process.secrets.items()}
        metadata = {"name": name, "namespace": cluster["namespace"], "labels": labels}
        objects.insert(0, {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data})
    api, made = Api(cluster), []
    logs = Logs(api, name, Path(run_dir), cluster["image_timeout_seconds"])
    try:
        for wanted in objects:
            made.append(wanted)
            api.create(wanted)
            if KINDS[wanted["kind"]][1]:
                said, good = follow(api, wanted, logs, watch)
                if not good:
                    break
    finally:
        # The newest first; nothing is left on the cluster, however this ends.
        left = [each for each in reversed(made) if not api.delete(f"{api.path(each)}/{each['metadata']['name']}")]
        logs.close()
        if left:
            names = ", ".join(f"{each['kind'].lower()}/{each['metadata']['name']}" for each in left)
            console.print(
                f"warning: still on the cluster: kubectl delete -n {cluster['namespace']} {names.replace(', ', ' ')}",
                markup=False,
            )
    watch()
    log = Path(run_dir) / "logs/kubernetes.log"
    log.write_text("\n".join([*logs.last_lines(), f"{wanted['kind']} {wanted['metadata']['name']}: {said}"]) + "\n")
    return {"kubernetes": 0 if good else 1}


def follow(api, wanted, logs, watch):
    """(what its status says, whether all went well) of an object, once it has ended."""
    kind, path = wanted["kind"], f"{api.path(wanted)}/{wanted['metadata']['name']}"
    ends, looked, state = KINDS[kind][1], 0.0, None
    while state not in ends:
        watch()
        time.sleep(local.POLL_SECONDS)
        if time.monotonic() - looked < POLL_SECONDS:
            continue
        looked = time.monotonic()
        try:
            found = api.ask("GET", path)
            logs.look()
        except ApiException as error:
            if error.status < 500:
                raise UserError(f"{kind} {wanted['metadata']['name']} is gone: {reason_of(error)}") from None
            continue
        except HTTPError:
            continue  # a server that is away for a moment
        state = next((name for name in states_of(found) if name in ends), None)
    logs.look()
    logs.drain()
    watch()
    return message_of(found, state), ends[state]


def states_of(found):
    """Everything that an object's status calls its state, whichever operator wrote it."""
    status = found.get("status") or {}
    yield from (entry["type"] for entry in status.get("conditions") or [] if entry.get("status") == "True")
    yield from (status.get(key) for key in ("jobDeploymentStatus", "jobStatus") if isinstance(status.get(key), str))
    yield (status.get("applicationState") or {}).get("state")


def message_of(found, state):
    status = found.get("status") or {}
    told = [entry.get("message") for entry in status.get("conditions") or [] if entry["type"] == state]
    told += [status.get("message"), (status.get("applicationState") or {}).get("errorMessage")]
    return ": ".join([state, *[text for text in told if text]][:2])


class Logs:
    """Follows the logs of a run's pods, each in a thread: to a file per pod, and the run's record out of them."""

    def __init__(self, api, name, run_dir, image_timeout_seconds=120):
        self.api, self.name, self.run_dir, self.image_timeout_seconds = api, name, run_dir, image_timeout_seconds
        self.trouble = {}  # pod -> since when it cannot start
        self.followed, self.lock, self.over, self.tails = {}, threading.Lock(), threading.Event(), {}
        self.counts = {}  # file of the record -> its lines
        (run_dir / "logs").mkdir(exist_ok=True)

    def look(self):
        """Begins to follow pods that have started. Raises UserError for one that never will."""
        for pod in self.api.pods(self.name):
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
            self.over.wait(POLL_SECONDS)

    def _record(self, text):
        told = parse_line(text)
        path = self.run_dir / (told or {}).get("path", "")
        if not told or self.run_dir not in path.resolve().parents:
            return  # cut off, or not of this folder
        path.parent.mkdir(exist_ok=True)
        with self.lock:
            if path.suffix != ".jsonl":
                path.write_bytes(base64.b64decode(told["base64"]) if "base64" in told else told["text"].encode())
                return
            if path not in self.counts:
                self.counts[path] = len(path.read_text().splitlines()) if path.exists() else 0
            if told["line"] >= self.counts[path]:  # more: lines that a rotated log has lost
                with open(path, "a") as file:
                    file.write(told["text"] + "\n")
                self.counts[path] = told["line"] + 1
        event = parse_line(told["text"]) or {}
        if event.get("event") == "checkpoint":  # a run with a checkpoint is gone on with: runs.py looks for it here
            note = self.run_dir / "checkpoints/on-the-claim.txt"
            note.parent.mkdir(exist_ok=True)
            note.write_text(f"{event['path']}\n")

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


def reason_of(error):
    """What the API said of its refusal."""
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
