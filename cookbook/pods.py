"""What the pods of a run have in common on Kubernetes: folders, user, rights, volumes, and the objects that every run makes."""

import json
import re
import shlex

import yaml

from cookbook import UserError
from cookbook.launch import ALLOCATOR, Process, program_of

RECIPE, DATA, SETTINGS, SHARED, TLS = "/srv/recipe", "/srv/data", "/srv/settings", "/srv/shared", "/srv/tls"
PACKAGES = "/srv/venv/lib/python3.11/site-packages"
USER = 1000  # all these in every image of images/
RUN_LABEL = "distributed-ml-recipes/run"
PART_OF = {"app.kubernetes.io/part-of": "distributed-ml-recipes"}  # what infra/kubernetes lets talk to each other
LOCKED_DOWN = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
POD_SECURITY = {
    "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip


def run_name(run_dir):
    """What the run's objects are called: a name that Kubernetes takes. No two runs share a folder."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run_dir.parent.name}-{run_dir.name}".lower()).strip("-")


class Plain(yaml.SafeDumper):
    """YAML without references: what is said twice is written twice."""

    def ignore_aliases(self, data):
        return True


class Pods:
    """What all pods of one run have in common."""

    def __init__(self, config, recipe_dir, run_dir):
        self.config, self.cluster, self.recipe = config, config["cluster"], config["recipe"]
        self.name, self.namespace = run_name(run_dir), config["cluster"]["namespace"]
        self.num_workers, self.run_dir = config["cluster"]["num_workers"], run_dir
        self.labels = PART_OF | {"app.kubernetes.io/name": recipe_dir.name.replace("_", "-"), RUN_LABEL: self.name}
        self.folder = f"{SHARED}/runs/{run_dir.parent.name}/{run_dir.name}"
        program = program_of(recipe_dir, self.recipe["driver"].get("variant")).name
        self.program = ["python", f"{RECIPE}/{program}", f"{SETTINGS}/config.yaml", *self.places()]

    def places(self):
        """The settings that name folders, as the pods see them."""
        folders = {"output_dir": self.folder, "checkpoint_dir": f"{self.folder}/checkpoints"}
        return [
            f"{key}={value}"
            for key, value in (({"data_dir": self.data_dir()} if self.data_dir() else {}) | folders).items()
        ]

    def data_dir(self):
        if self.config["data"]["builder"] is None:
            return ""
        return self.cluster["data_dir"] or f"{SHARED}/data/{self.cluster['dataset']}"

    def told(self, command, *options):
        """A command whose run record is said in the pod's log."""
        return ["python", "-m", "podrun", "--output-dir", self.folder, *options, "--", *command]

    def environment(self, **more):
        own = {
            "OMP_NUM_THREADS": str(self.cluster["num_threads_per_worker"]), "PYTHONUNBUFFERED": "1", "HOME": "/tmp", "PYTHONPATH": RECIPE,
        } | ALLOCATOR  # fmt: skip
        return [{"name": name, "value": value} for name, value in (own | more).items()]

    def resources(self, gpus=True):
        limits = {"cpu": str(self.cluster["cpus_per_worker"]), "memory": f"{self.cluster['memory_mb_per_worker']}Mi"}
        if gpus and self.cluster["gpus_per_worker"]:
            limits["nvidia.com/gpu"] = str(self.cluster["gpus_per_worker"])
        return {"requests": dict(limits), "limits": limits}

    def volumes(self, *more):
        """(volumes, mounts)."""
        shm = max(256, self.recipe.get("object_store_mb", 0))
        entries = [
            (SHARED, {"name": "shared", "persistentVolumeClaim": {"claimName": self.cluster["claim"]}}),
            (SETTINGS, {"name": "settings", "configMap": {"name": self.name}}),
            ("/tmp", {"name": "tmp", "emptyDir": {}}),
            ("/dev/shm", {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm}Mi"}}),
            *more,
        ]
        return [volume for _, volume in entries], [
            {"name": volume["name"], "mountPath": path} | ({"readOnly": True} if path in (SETTINGS, TLS) else {})
            for path, volume in entries
        ]

    def pod(self, container, words, environment=None, more=(), gpus=True, **fields):
        """A pod's spec with one container: not root, no rights, nothing writable but the shared claim and memory."""
        volumes, mounts = self.volumes(*more)
        made = {
            "name": container, "image": self.cluster["image"], "env": self.environment(**(environment or {})),
            "resources": self.resources(gpus), "securityContext": LOCKED_DOWN, "volumeMounts": mounts,
        }  # fmt: skip
        if words:
            made |= {"command": words[:1], "args": words[1:]}
        own = {"serviceAccountName": self.cluster["service_account"]} if self.cluster["service_account"] else {}
        return {
            **own, "automountServiceAccountToken": False, "securityContext": POD_SECURITY, "containers": [made | fields], "volumes": volumes,
        }  # fmt: skip

    def template(self, *words, **options):
        return {"metadata": {"labels": self.labels}, "spec": self.pod(*words, **options)}

    def made(self, api_version, kind, **content):
        metadata = {"name": self.name, "namespace": self.namespace, "labels": self.labels}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}

    def objects(self, *own, secrets=None):
        """[Process]: what is submitted, in this order; each Job is waited for before the next object is made."""
        settings = self.made("v1", "ConfigMap", data={"config.yaml": self.cluster["config_yaml"]})
        text = yaml.dump_all([settings, *self.data_job(), *own], Dumper=Plain, sort_keys=False)
        path = str(self.run_dir / "objects.yaml")
        argv = ["kubectl", "create", "--namespace", self.namespace, "--filename", path]
        return [Process("kubernetes", argv, files={path: text}, secrets=secrets or {}, takes_settings=False)]

    def data_job(self):
        """A Job that builds the dataset on the claim, unless it is there; nothing when the settings say where one is."""
        data = self.config["data"]
        if data["builder"] is None or self.cluster["data_dir"]:
            return []
        if data["parameters"].get("path"):
            raise UserError(
                f"data.path={data['parameters']['path']} is on this machine: copy the dataset to the claim {self.cluster['claim']!r}, and say "
                f"cluster.data_dir={SHARED}/... (it is the folder that the data stage names)"
            )
        parameters = data["parameters"] | (
            {"download_dir": "/tmp/downloads"} if "download_dir" in data["parameters"] else {}
        )
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in parameters.items()]
        build = shlex.join(["python", f"{DATA}/{data['builder']}.py", self.data_dir(), *words])
        script = f"test -e {self.data_dir()}/manifest.json || {build}"
        job = self.made("batch/v1", "Job", spec={
            "backoffLimit": 1,
            "template": self.template("data", ["sh", "-c", script], gpus=False),
        })  # fmt: skip
        job["spec"]["template"]["spec"]["restartPolicy"] = "Never"
        job["metadata"]["name"] += "-data"
        return [job]

    def train_job(self, policy, words, pods, more=None):
        """[TrainingRuntime, TrainJob] of Kubeflow Trainer: the runtime says what the pods are, the job what they do."""
        jobs = []
        for name, template, labelled, depends in pods:
            # A pod that fails fails the job: what is tried again is the whole run, from its checkpoint.
            template["spec"]["restartPolicy"] = "Never"
            job = {"name": name, "template": {"spec": {"backoffLimit": 0, "template": template}}}
            if labelled:  # which pods the trainer's words, number and resources are meant for
                job["template"]["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
            if depends:
                job["dependsOn"] = [{"name": depends, "status": "Ready"}]
            jobs.append(job)
        runtime = self.made("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", spec={
            "mlPolicy": {"numNodes": self.num_workers, **policy},
            "template": {"spec": {"replicatedJobs": jobs, "network": {"publishNotReadyAddresses": True}, **(more or {})}},
        })  # fmt: skip
        job = self.made("trainer.kubeflow.org/v1alpha1", "TrainJob", spec={
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": self.name},
            "trainer": {
                "image": self.cluster["image"], "command": words[:1], "args": words[1:], "numNodes": self.num_workers,
                "env": self.environment(), "resourcesPerNode": self.resources(),
            },
        })  # fmt: skip
        return [runtime, job]
