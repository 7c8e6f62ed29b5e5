"""What the pods of a run on Kubernetes have in common: folders, user, rights, volumes; objects that every run makes.

A system's own objects are templates beside the system (`systems/*.yaml.j2`). Each is laid out as in the documentation
of the system's operator.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

from cookbook import ROOT, UserError
from cookbook.access import Access
from cookbook.job import ALLOCATOR, Job, Process
from cookbook.prepare import datasets

RECIPE, DATA, SETTINGS, SHARED, TLS = "/srv/recipe", "/srv/data", "/srv/settings", "/srv/shared", "/srv/tls"
KEYS = "/srv/keys"  # of an object store
PACKAGES = "/srv/venv/lib/python3.11/site-packages"
USER = 1000  # every image of images/ has this user, and the folders above
RUN_LABEL = "distributed-ml-recipes/run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PART_OF = {"app.kubernetes.io/part-of": "distributed-ml-recipes"}  # what infra/kubernetes lets talk to each other
LOCKED_DOWN = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
Object = dict[str, Any]  # of Kubernetes, as its API takes it


def run_name(run_dir: Path) -> str:
    """What the run's objects are called: a name that Kubernetes takes. No two runs share a folder."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run_dir.parent.name}-{run_dir.name}".lower()).strip("-")


class Plain(yaml.SafeDumper):
    """YAML without references: what is said twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@dataclass(frozen=True)
class InStore:
    """What pods without a claim have instead: an object store, and the way in."""

    dataset: str  # the dataset's address there; empty for a run without one
    access: Access  # its files are below KEYS


@dataclass(frozen=True)
class PodGroup:
    """Equal pods of a TrainJob."""

    name: str
    template: Object
    is_trainer: bool = False  # whether the TrainJob's command, number and resources are meant for them
    depends_on: str | None = None  # a group that must be ready first
    count: int | None = None  # of pods; without it Trainer's policy says how many


class Pods:
    """What all pods of one run have in common."""

    tls_folder = PurePosixPath(TLS)
    packages = PACKAGES
    locked_down, security = LOCKED_DOWN, POD_SECURITY

    def __init__(
        self,
        job: Job,
        settings_text: str,
        dataset: str,
        versions: Mapping[str, str],
        in_store: InStore | None = None,
    ) -> None:
        """Notes what the pods need.

        `settings_text`: the workers' settings (YAML). `dataset`: the name of its folder. `versions`: package -> its
        version in the recipe's lock. `in_store`: for pods that share no claim.
        """
        self.job, self.cluster, self.versions, self.in_store = job, job.cluster, versions, in_store
        self.settings_text, self.dataset = settings_text, dataset
        self.name, self.namespace, self.image = run_name(job.run_dir), job.cluster["namespace"], job.cluster["image"]
        self.num_workers = job.num_workers
        self.labels = {
            **PART_OF,
            "app.kubernetes.io/name": job.recipe_dir.name.replace("_", "-"),
            RUN_LABEL: self.name,
        }
        self.metadata = {"name": self.name, "namespace": self.namespace, "labels": self.labels}
        queue = {QUEUE_LABEL: job.cluster["queue"]} if job.cluster["queue"] else {}
        self.job_metadata = {**self.metadata, "labels": {**self.labels, **queue}}  # of what starts pods
        self.folder = f"{SHARED}/runs/{job.run_dir.parent.name}/{job.run_dir.name}"
        self.program = ["python", f"{RECIPE}/{job.program.name}", f"{SETTINGS}/config.yaml", *self.folders()]

    def group(self, name: str, template: Object, **options: Any) -> PodGroup:
        """Equal pods of a TrainJob; `options`: see PodGroup."""
        return PodGroup(name, template, **options)

    def folders(self) -> list[str]:
        """The settings that name folders, as the pods see them."""
        folders = {"data_dir": self.data_dir()} if self.data_dir() else {}
        folders |= {"output_dir": self.folder}
        if not self.in_store:  # else the settings' own checkpoint_dir is an address
            folders |= {"checkpoint_dir": f"{self.folder}/checkpoints"}
        return [f"{key}={value}" for key, value in folders.items()]

    def data_dir(self) -> str:
        if self.job.config["data"]["builder"] is None:
            return ""
        return self.cluster["data_dir"] or f"{SHARED}/data/{self.dataset}"

    def recorded(self, command: Sequence[str], *options: str) -> list[str]:
        """A command whose run record is written into the pod's log."""
        return ["python", "-m", "podrun", "--output-dir", self.folder, *options, "--", *command]

    def environment(self, **more: str) -> list[dict[str, str]]:
        own = {
            "OMP_NUM_THREADS": str(self.job.num_threads),
            "PYTHONUNBUFFERED": "1",
            "HOME": "/tmp",
            "PYTHONPATH": RECIPE,
        }
        notice = self.cluster["notice_file"]
        own |= {**ALLOCATOR, **({"NOTICE_FILE": notice} if notice else {}), **more}
        own |= self.in_store.access.environment if self.in_store else {}
        return [{"name": name, "value": value} for name, value in own.items()]

    def resources(self, gpus: bool = True) -> Object:
        limits = {"cpu": str(self.cluster["cpus_per_worker"]), "memory": f"{self.cluster['memory_mb_per_worker']}Mi"}
        if gpus and self.cluster["gpus_per_worker"]:
            limits["nvidia.com/gpu"] = str(self.cluster["gpus_per_worker"])
        return {"requests": dict(limits), "limits": limits}

    def volumes(self, with_tls: bool = False) -> list[Object]:
        return [volume for _, volume in self._volumes(with_tls)]

    def mounts(self, with_tls: bool = False) -> list[Object]:
        return [
            {"name": volume["name"], "mountPath": path} | ({"readOnly": True} if path in (SETTINGS, TLS, KEYS) else {})
            for path, volume in self._volumes(with_tls)
        ]

    def _volumes(self, with_tls: bool) -> list[tuple[str, Object]]:
        shm_mb = max(256, self.job.recipe.get("object_store_mb", 0))
        claim = {"persistentVolumeClaim": {"claimName": self.cluster["claim"]}}
        secret = {"secretName": self.name, "defaultMode": 0o440}
        own = [
            (SHARED, {"name": "shared", **({"emptyDir": {}} if self.in_store else claim)}),
            (SETTINGS, {"name": "settings", "configMap": {"name": self.name}}),
            ("/tmp", {"name": "tmp", "emptyDir": {}}),
            ("/dev/shm", {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mb}Mi"}}),
        ]
        if self.in_store and self.in_store.access.files:
            own.append((KEYS, {"name": "keys", "secret": secret}))
        return [*own, (TLS, {"name": "tls", "secret": secret})] if with_tls else own

    def pod(
        self,
        container: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        with_tls: bool = False,
        gpus: bool = True,
        restart: str | None = None,
        **fields: object,
    ) -> Object:
        """A pod's spec with one container: not root, no rights, nothing writable but the shared claim and memory.

        Without a claim the pod takes its dataset from the object store before its container starts.
        """
        common = {
            "image": self.image,
            "env": self.environment(**(environment or {})),
            "resources": self.resources(gpus),
            "securityContext": LOCKED_DOWN,
            "volumeMounts": self.mounts(with_tls),
        }
        made = {"name": container, **common}
        if argv:
            made |= {"command": list(argv[:1]), "args": list(argv[1:])}
        first: list[Object] = []
        if self.in_store and self.in_store.dataset:
            take = ["-m", "storage", "get", self.in_store.dataset, self.data_dir()]
            common["resources"] = self.resources(gpus=False)
            first = [{"name": "data", **common, "command": ["python"], "args": take}]
        account = self.cluster["service_account"]
        return {
            **({"serviceAccountName": account} if account else {}),
            "automountServiceAccountToken": False,
            # Between SIGTERM and SIGKILL when the pod has to leave: the workers save meanwhile.
            "terminationGracePeriodSeconds": math.ceil(self.cluster["notice_grace_seconds"]),
            "securityContext": POD_SECURITY,
            **({"initContainers": first} if first else {}),
            "containers": [made | fields],
            "volumes": self.volumes(with_tls),
            **({"restartPolicy": restart} if restart else {}),
        }

    def template(self, container: str, argv: Sequence[str], **options: Any) -> Object:
        """A pod with the run's labels; `options`: see `pod`."""
        return {"metadata": {"labels": self.labels}, "spec": self.pod(container, argv, **options)}

    def from_template(self, name: str, **values: object) -> list[Object]:
        """The objects of systems/<name>.yaml.j2, filled in."""
        folder = jinja2.FileSystemLoader(ROOT / "cookbook/systems")
        environment = jinja2.Environment(
            loader=folder, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
        text = environment.get_template(f"{name}.yaml.j2").render(pods=self, **values)
        return list(yaml.safe_load_all(text))

    def train_job(
        self,
        policy: Mapping[str, Object],
        command: Sequence[str],
        groups: Sequence[PodGroup],
        success: Object | None = None,
        num_nodes: int | None = None,
    ) -> list[Object]:
        """[TrainingRuntime, TrainJob] of Kubeflow Trainer: the runtime says what the pods are, the job what they do.

        `num_nodes`: pods that carry out the `command`; as many as there are workers, unless it is given.
        """
        values = {"policy": policy, "command": command, "groups": groups, "success": success}
        return self.from_template("trainjob", **values, num_nodes=num_nodes or self.num_workers)

    def objects(self, *own: Object, secrets: Mapping[str, str] | None = None) -> list[Process]:
        """What is submitted, in this order; each Job is waited for before the next object is made."""
        settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata}
        settings["data"] = {"config.yaml": self.settings_text}
        text = yaml.dump_all([settings, *self.data_job(), *own], Dumper=Plain, sort_keys=False)
        path = str(self.job.run_dir / "objects.yaml")
        argv = ["kubectl", "create", "--namespace", self.namespace, "--filename", path]
        keys = self.in_store.access.files if self.in_store else {}
        hidden = {PurePosixPath(name).name: content for name, content in keys.items()} | dict(secrets or {})
        return [Process("kubernetes", argv, files={path: text}, secrets=hidden, takes_settings=False)]

    def data_job(self) -> list[Object]:
        """A Job that builds the dataset on the claim unless it is there.

        None where the settings name a folder of the claim, and where each pod takes the dataset from an object store.
        """
        data = self.job.config["data"]
        if data["builder"] is None or self.cluster["data_dir"] or self.in_store:
            return []
        parameters = dict(data["parameters"])
        if parameters.get("path"):
            raise UserError(
                f"data.path={parameters['path']} is read on this machine, not in the pods: copy the dataset to the "
                f"claim {self.cluster['claim']!r}, and say cluster.data_dir={SHARED}/... "
                "(it is the folder that the data stage names); or, for recipes that can, "
                "cluster.storage=s3://bucket/prefix"
            )
        if "download_dir" in parameters:
            parameters["download_dir"] = "/tmp/downloads"
        arguments = datasets.as_arguments(parameters)
        build = shlex.join(["python", f"{DATA}/{data['builder']}.py", self.data_dir(), *arguments])
        script = f"test -e {self.data_dir()}/manifest.json || {build}"
        return [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {**self.job_metadata, "name": f"{self.name}-data"},
                "spec": {
                    "backoffLimit": 1,
                    "template": self.template("data", ["sh", "-c", script], gpus=False, restart="Never"),
                },
            }
        ]
