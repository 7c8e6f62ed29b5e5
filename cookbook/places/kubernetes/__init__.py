"""Pods of a Kubernetes cluster.

The run's objects are made there, the logs of its pods are followed, and everything is deleted at the end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cookbook import UserError, access
from cookbook.evidence.inspector import PATIENCE_SECONDS, PROBE, Answers, Spec
from cookbook.job import Process, Settings
from cookbook.places import Place, Watch
from cookbook.places.kubernetes.api import COMMON_KINDS, JOB_ENDS, Api, reason_of
from cookbook.places.kubernetes.logs import Logs
from cookbook.places.local import POLL_SECONDS as WATCH_SECONDS
from cookbook.places.local import probe_here, run_here
from cookbook.pods import KEYS, RUN_LABEL, InStore, Object, Pods
from cookbook.prepare import stores
from cookbook.prepare.locks import lock_of, pins
from cookbook.report.console import Progress, console
from cookbook.settings.files import is_changed
from cookbook.systems import System

POLL_SECONDS = 2.0


class Kubernetes(Place):
    """A namespace of a cluster."""

    pods: Pods  # what all pods of the run have in common; `prepare` sets it

    @property
    def num_hosts(self) -> int:
        """Each worker is a pod. A program that talks to the cluster itself says where its steps ran."""
        return 1 if self.system.is_kubernetes_client else self.job.num_workers

    @classmethod
    def check(cls, config: Settings, system: System) -> None:
        super().check(config, system)
        if not system.is_kubernetes_client and not config["cluster"]["image"]:
            raise UserError(
                "cluster.image is not set: build the recipe's image and push it where the cluster finds it "
                "(images/README.md has the commands), then say cluster.image=REGISTRY/NAME:TAG"
            )
        if (queue := config["cluster"]["queue"]) and not system.kueue:
            raise UserError(f"cluster.queue={queue}: Kueue does not hold back what {system.name} makes; leave it out")
        if not (store := config["cluster"]["storage"]):
            return
        if not system.kubernetes_without_claim:
            raise UserError(
                f"cluster.storage={store}: with cluster=kubernetes, {system.name} needs the claim of cluster.claim, "
                "from which one pod reads what the others have recorded; leave cluster.storage out"
            )
        for setting in ("claim", "data_dir"):
            if is_changed(setting, config, "kubernetes"):
                raise UserError(
                    f"cluster.{setting}={config['cluster'][setting]}: with cluster.storage={store} the pods have no "
                    "claim; leave one of the two out"
                )

    @property
    def takes_notice(self) -> bool:
        """No: the pods see no file of this machine. When their objects are deleted, Kubernetes sends them SIGTERM."""
        return False

    def prepare(self, data_dir: Path | None, stage: Progress) -> None:
        """Looks at the cluster, and deletes what an earlier try of this run has left there.

        Raises UserError when the cluster does not answer, or lacks what the run needs.
        """
        recipe, cluster = self.job.recipe_dir.name, self.cluster
        settings, versions = (self.job.run_dir / "config.yaml").read_text(), pins(lock_of(recipe).read_text())
        in_store = self._bring(data_dir, stage) if cluster["storage"] else None
        self.pods = Pods(self.job, settings, data_dir.name if data_dir else "", versions, in_store)
        if self.system.is_kubernetes_client:
            return
        stage.update("looking at the cluster")
        api = Api(cluster)
        if not in_store:
            self._check_claim(api)
        if cluster["queue"]:
            self._check_queue(api)
        kinds = {**COMMON_KINDS, **self.system.kubernetes_kinds}
        for plural_path in (api.path(version, kind) for kind, version in kinds.items()):
            try:
                left = api.ask("GET", plural_path, label=f"{RUN_LABEL}={self.pods.name}").get("items", [])
            except ApiException as error:
                if error.status == 404:  # an operator that is not installed has left nothing
                    continue
                raise UserError(
                    f"what an earlier try of this run may have left cannot be looked for: {plural_path}: "
                    f"{reason_of(error)}"
                ) from None
            for item in left:
                path = f"{plural_path}/{item['metadata']['name']}"
                if not api.delete(path):
                    raise UserError(f"what an earlier try of this run has left cannot be deleted: {path}")

    def _bring(self, data_dir: Path | None, stage: Progress) -> InStore:
        """Puts the dataset into the object store unless it is there, and finds the way in for the pods."""
        store = self.cluster["storage"]
        tool = stores.Tool(self.job.python, stage, self.job.run_dir / "logs/data.log", self.run_id)
        address = stores.put(data_dir, store, tool) if data_dir else ""
        return InStore(address, access.to_store(store, Path(KEYS)))

    def _check_claim(self, api: Api) -> None:
        """Raises UserError for a claim that is not there."""
        namespace, claim = self.cluster["namespace"], self.cluster["claim"]
        try:
            api.ask("GET", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        except ApiException as error:
            raise UserError(
                f"claim {claim!r} in namespace {namespace!r} cannot be used: {reason_of(error)}. It is made by "
                "infra/kubernetes (`make infra-up`), or by hand: a PersistentVolumeClaim with ReadWriteMany"
            ) from None

    def _check_queue(self, api: Api) -> None:
        """Raises UserError for a queue that is not there: a job would wait in it for ever."""
        namespace, queue = self.cluster["namespace"], self.cluster["queue"]
        for version in ("v1beta2", "v1beta1"):
            try:
                api.ask("GET", f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues/{queue}")
                return
            except ApiException as error:
                if error.status != 404:
                    return  # who may use a queue need not have the right to look at it
        raise UserError(
            f"cluster.queue={queue}: namespace {namespace!r} has no LocalQueue of that name, or the cluster no Kueue: "
            "`kubectl get localqueues` lists those that there are"
        )

    def plan(self) -> list[Process]:
        return self.system.on_kubernetes(self.job, self.pods)

    def run(self, planned: Sequence[Process], watch: Watch) -> dict[str, int]:
        """Makes the objects, follows the pods' logs until the last object has ended, and deletes all of them."""
        logs_folder = self.job.run_dir / "logs"
        if self.system.is_kubernetes_client:
            return run_here(planned, logs_folder, self.run_id, self.cluster["stop_grace_seconds"], watch)
        (process,) = planned
        ((path, text),) = process.files.items()
        Path(path).write_text(text)
        objects = list(yaml.safe_load_all(text))
        metadata = objects[0]["metadata"]
        if process.secrets:
            data = {key: base64.b64encode(value.encode()).decode() for key, value in process.secrets.items()}
            objects.insert(
                0, {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
            )
        ends = {"Job": JOB_ENDS, **self.system.kubernetes_ends}
        api = Api(self.cluster)
        made: list[Object] = []
        timeout, on_claim = self.cluster["image_timeout_seconds"], not self.cluster["storage"]
        logs = Logs(api, metadata["name"], self.job.run_dir, timeout, on_claim)
        try:
            for wanted in objects:
                made.append(wanted)
                api.create(wanted)
                if wanted["kind"] in ends:
                    first = wanted is not objects[-1]  # the dataset is built before the workers start
                    said, good = self._follow(api, wanted, ends[wanted["kind"]], logs, watch, first)
                    if not good:
                        break
        finally:
            # The newest first; nothing is left on the cluster, however this ends.
            left = [each for each in reversed(made) if not api.delete(api.path_of(each))]
            logs.close()
            if left:
                names = " ".join(f"{each['kind'].lower()}/{each['metadata']['name']}" for each in left)
                namespace = self.cluster["namespace"]
                console.print(f"warning: still there: kubectl delete --namespace {namespace} {names}", markup=False)
        watch()
        self.warnings += logs.warnings()
        lines = [*logs.last_lines(), f"{wanted['kind']} {wanted['metadata']['name']}: {said}"]
        (logs_folder / "kubernetes.log").write_text("\n".join(lines) + "\n")
        return {"kubernetes": 0 if good else 1}

    def _follow(
        self, api: Api, wanted: Object, ends: Mapping[str, bool], logs: Logs, watch: Watch, waits: bool
    ) -> tuple[str, bool]:
        """Waits for an object's end; returns (what its status says, whether all went well).

        `ends`: state -> whether all went well. `waits`: the workers come later. While Kueue holds the object back, and
        when it takes the machines away again, they come later, too.
        """
        kind, path = wanted["kind"], api.path_of(wanted)
        looked, suspended, admitted = 0.0, False, False
        state: str | None = None
        while state is None:
            watch(waits or suspended)
            time.sleep(WATCH_SECONDS)
            if time.monotonic() - looked < POLL_SECONDS:
                continue
            looked = time.monotonic()
            try:
                found = api.ask("GET", path)
                logs.look()
            except ApiException as error:
                if error.status in (401, 403, 404):
                    raise UserError(
                        f"{kind} {wanted['metadata']['name']} cannot be looked at: {reason_of(error)}"
                    ) from None
                continue
            except HTTPError:
                continue  # a server that is away for a moment
            before, suspended = suspended, bool(found["spec"].get("suspend"))
            if suspended != before:
                how = "waits in its queue" if suspended else "may start"
                console.print(f"{'':<12} {kind} {wanted['metadata']['name']} {how}", markup=False)
            if suspended and not before and admitted:
                self.again_since = time.time()  # the machines are taken away: all workers will begin anew
            admitted = admitted or not suspended
            state = next((name for name in states_of(found) if name in ends), None)
        with contextlib.suppress(ApiException, HTTPError):
            logs.look()
            logs.drain()
        watch()
        return message_of(found, state), ends[state]

    def probe(self, spec: Spec) -> Answers:
        """See `Place.probe`: it runs in each pod that is up, as `kubectl exec` would run it.

        The images have no py-spy: there the workers write their stacks themselves.
        """
        if self.system.is_kubernetes_client:
            return probe_here(spec)
        api, answers = Api(self.cluster), {}
        own = {**spec, "everything": True, "folder": self.pods.folder, "py_spy": ""}
        for pod in api.pods(self.pods.name):
            name, phase = pod["metadata"]["name"], (pod.get("status") or {}).get("phase")
            if phase == "Running":
                answers[name] = in_pod(api, name, pod["spec"]["containers"][0]["name"], own)
            else:
                answers[name] = f"the pod is {phase}"
        return answers


def in_pod(api: Api, pod: str, container: str, spec: Spec) -> Mapping[str, Any] | str:
    """What probe.py answers in a container, or why it does not."""
    # The program goes the same way as what it reads: a command is a part of an address, and must be short.
    argv = ["python3", "-c", "import json, sys; exec(json.loads(sys.stdin.readline()))"]
    text = "".join(json.dumps(line) + "\n" for line in (PROBE.read_text(), spec))
    try:
        said, errors = api.run_in(pod, container, argv, text, PATIENCE_SECONDS)
    except (ApiException, HTTPError, OSError) as error:
        return reason_of(error) if isinstance(error, ApiException) else f"{type(error).__name__}: {error}"
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return answers[0] if answers else " ".join(errors.split())[-300:] or "no answer"


def states_of(found: Object) -> Iterator[str | None]:
    """Everything that an object's status calls its state, whichever operator wrote it."""
    status = found.get("status") or {}
    yield from (entry["type"] for entry in status.get("conditions") or [] if entry.get("status") == "True")
    yield from (status.get(key) for key in ("jobDeploymentStatus", "jobStatus") if isinstance(status.get(key), str))
    yield (status.get("applicationState") or {}).get("state")


def message_of(found: Object, state: str) -> str:
    """The state, and the first message about it in the object's status."""
    status = found.get("status") or {}
    messages = [entry.get("message") for entry in status.get("conditions") or [] if entry["type"] == state]
    messages += [status.get("message"), (status.get("applicationState") or {}).get("errorMessage")]
    return ": ".join([state, *filter(None, messages)][:2])
