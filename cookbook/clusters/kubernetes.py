"""Pods of a Kubernetes cluster: the run's objects are made there, its pods' logs followed, and all of it removed at the end."""

import base64
import contextlib
import re
import time
from pathlib import Path

import yaml
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cookbook import ROOT, UserError
from cookbook.clusters import local
from cookbook.clusters.kubernetes_api import KINDS, Api, reason_of
from cookbook.clusters.pod_logs import Logs
from cookbook.console import console
from cookbook.environments import lock_of
from cookbook.pods import RUN_LABEL, run_name

POLL_SECONDS = 2.0


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
                first = wanted is not objects[-1]  # the dataset is built before the workers start

                def watch_it(waiting=first):
                    watch(waiting)

                said, good = follow(api, wanted, logs, watch_it)
                if not good:
                    break
    finally:
        # The newest first; nothing is left on the cluster, however this ends.
        left = [each for each in reversed(made) if not api.delete(f"{api.path(each)}/{each['metadata']['name']}")]
        logs.close()
        if left:
            names = " ".join(f"{each['kind'].lower()}/{each['metadata']['name']}" for each in left)
            console.print(
                f"warning: still there: kubectl delete --namespace {cluster['namespace']} {names}", markup=False
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
            if error.status in (401, 403, 404):
                raise UserError(
                    f"{kind} {wanted['metadata']['name']} cannot be looked at: {reason_of(error)}"
                ) from None
            continue
        except HTTPError:
            continue  # a server that is away for a moment
        state = next((name for name in states_of(found) if name in ends), None)
    with contextlib.suppress(ApiException, HTTPError):
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
