"""From settings to the objects of a Kubernetes cluster: what launch.py is for one machine. Pure as that one.

Each system's own operator does the work: Kubeflow Trainer (PyTorch, TensorFlow, MPI), KubeRay, Dask's and Spark's operators. A worker
is a pod. All pods share one claim, where datasets, checkpoints and results are; what they write into the run's record comes home by
their logs (runrecord/podrun.py).
"""

import json
import re
import shlex

import yaml

from cookbook import UserError
from cookbook.launch import ALLOCATOR, Process, program_of
from cookbook.launch import LAUNCHERS as LOCAL

RECIPE, DATA, SETTINGS, SHARED, TLS = "/srv/recipe", "/srv/data", "/srv/settings", "/srv/shared", "/srv/tls"
PACKAGES = "/srv/venv/lib/python3.11/site-packages"
USER = 1000  # all these in every image of images/
RUN_LABEL = "distributed-ml-recipes/run"
PART_OF = {"app.kubernetes.io/part-of": "distributed-ml-recipes"}  # what infra/kubernetes lets talk to each other
LOCKED_DOWN = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
POD_SECURITY = {
    "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
MPI_PORT, TF_PORT, DASK_PORT = 2222, 2222, 8786


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


def torchrun(config, recipe_dir, python, run_dir):
    """Kubeflow Trainer's TrainJob: on each pod torchrun with one worker, which finds the others by the variables that Trainer sets."""
    pods = Pods(config, recipe_dir, run_dir)
    words = pods.told(
        [
            "torchrun",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            str(config["recipe"]["max_restarts"]),
            *pods.program[1:],
        ]
    )
    return pods.objects(*pods.train_job({"torch": {}}, words, [("node", pods.template("node", []), True, None)]))


def tf_config(config, recipe_dir, python, run_dir):
    """A TrainJob with a runtime of its own: Trainer sets no TF_CONFIG, but gives every pod an index and a name in the cluster's DNS."""
    pods, recipe = Pods(config, recipe_dir, run_dir), config["recipe"]
    if recipe["driver"].get("chief"):
        raise UserError(
            f"recipe.strategy={recipe['strategy']} runs on one machine here; cluster=kubernetes: recipe.strategy=multi_worker"
        )
    addresses = ",".join(f"{pods.name}-node-0-{index}.{pods.name}:{TF_PORT}" for index in range(pods.num_workers))
    words = pods.told(pods.program, "--tf-workers", addresses)
    return pods.objects(*pods.train_job({}, words, [("node", pods.template("node", []), True, None)]))


SSHD = (
    "ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key && exec /usr/sbin/sshd -D -e -p {port} -h /tmp/host_key -o PidFile=none "
    "-o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile={keys}/authorized_keys"
)  # not root's: it lets in its own user only
KEYS = "/srv/ssh"


def horovodrun(config, recipe_dir, python, run_dir):
    """A TrainJob with Trainer's MPI policy ("MPI" in its user guide): mpirun on the launcher, sshd on the other pods."""
    pods, recipe = Pods(config, recipe_dir, run_dir), config["recipe"]
    if recipe["elastic"]:
        raise UserError(
            "recipe.elastic=true needs horovodrun; cluster=kubernetes starts the workers by mpirun: choose cluster=hosts, or false"
        )
    knobs = {"HOROVOD_CONTROLLER": "mpi", "HOROVOD_CPU_OPERATIONS": "mpi"}
    if recipe["fusion_threshold_mb"] is not None:
        knobs["HOROVOD_FUSION_THRESHOLD"] = str(recipe["fusion_threshold_mb"] << 20)
    if recipe["cycle_time_ms"] is not None:
        knobs["HOROVOD_CYCLE_TIME"] = str(recipe["cycle_time_ms"])
    words = [
        "mpirun",
        "--np",
        str(pods.num_workers),
        "--hostfile",
        "/etc/mpi/hostfile",
        "--bind-to",
        "none",
        "--map-by",
        "ppr:1:node",
    ]
    # Where its other half is on the other pods, and how it gets there (in Open MPI 5 both belong to PRRTE).
    words += ["--prefix", "/srv/venv", "--prtemca", "plm_ssh_args", f"-p {MPI_PORT} -i {KEYS}/id_rsa -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"]  # fmt: skip
    for name in ["PATH", *(entry["name"] for entry in pods.environment(**knobs))]:
        words += ["-x", name]
    words = ["env", *(f"{name}={value}" for name, value in knobs.items()), *words, *pods.program]
    sshd = ["sh", "-c", SSHD.format(port=MPI_PORT, keys=KEYS)]
    node = pods.template("node", sshd, readinessProbe={"tcpSocket": {"port": MPI_PORT}, "periodSeconds": 2})
    policy = {
        "mpi": {
            "mpiImplementation": "OpenMPI",
            "numProcPerNode": 1,
            "sshAuthMountPath": KEYS,
            "runLauncherAsNode": True,
        }
    }
    return pods.objects(
        *pods.train_job(
            policy,
            pods.told(words, "--all"),
            [("node", node, False, None), ("launcher", pods.template("node", []), True, "node")],
            {"successPolicy": {"operator": "All", "targetReplicatedJobs": ["launcher"]}},
        )
    )


def rayrun(config, recipe_dir, python, run_dir):
    """KubeRay's RayJob: a Ray cluster of its own (a head without workers, a pod for each worker), and the program as its job."""
    pods, recipe, cluster = Pods(config, recipe_dir, run_dir), config["recipe"], config["cluster"]
    each = max(cluster["num_threads_per_worker"], recipe.get("cpus_per_trial", 1))
    store = str(recipe["object_store_mb"] << 20)
    environment = {"MALLOC_ARENA_MAX": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    program = [*pods.program, f"num_workers={pods.num_workers}"]
    # The head has room for what is not a worker, as on hosts.
    head = {
        "num-cpus": str(recipe["num_data_cpus"] + recipe.get("num_learners", 0)),
        "object-store-memory": store,
        "dashboard-host": "0.0.0.0",
    }
    workers = {
        "groupName": "workers", "replicas": pods.num_workers, "minReplicas": pods.num_workers, "maxReplicas": pods.num_workers,
        "rayStartParams": {"num-cpus": str(each), "object-store-memory": store},
        "template": pods.template("ray-worker", [], environment=environment),
    }  # fmt: skip
    submitter = pods.template("submitter", [], gpus=False)
    submitter["spec"]["restartPolicy"] = "Never"
    return pods.objects(pods.made("ray.io/v1", "RayJob", spec={
        "entrypoint": shlex.join(pods.told(program, "--all")), "submissionMode": "K8sJobMode", "backoffLimit": 0,
        "shutdownAfterJobFinishes": True, "submitterPodTemplate": submitter, "submitterConfig": {"backoffLimit": 0},
        "rayClusterSpec": {
            "rayVersion": cluster["versions"]["ray"],
            "authOptions": {"mode": "token"},  # KubeRay makes the token, and hands it to the pods
            "headGroupSpec": {"rayStartParams": head, "template": pods.template("ray-head", [], environment=environment, gpus=False)},
            "workerGroupSpecs": [workers],
        },
    }))  # fmt: skip


def dask_client(config, recipe_dir, python, run_dir):
    """Dask's DaskJob ("Operator" in Dask Kubernetes' documentation): a cluster of its own over TLS, and the program as its runner."""
    from cookbook.launch_hosts import certificate

    pods, cluster = Pods(config, recipe_dir, run_dir), config["cluster"]
    scheduler = f"{pods.name}-scheduler.{pods.namespace}.svc.cluster.local"
    pem = {
        path.rpartition("/")[2]: text
        for path, text in certificate(run_dir, [scheduler, f"{pods.name}-scheduler"]).items()
    }
    prefix, tls = (
        "DASK_DISTRIBUTED__COMM__TLS",
        (TLS, {"name": "tls", "secret": {"secretName": pods.name, "defaultMode": 0o440}}),
    )
    environment = {
        "DASK_SCHEDULER_ADDRESS": f"tls://{scheduler}:{DASK_PORT}", "DASK_TEMPORARY_DIRECTORY": "/tmp",
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true", f"{prefix}__CA_FILE": f"{TLS}/cert.pem",
    }  # fmt: skip
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        environment |= {f"{prefix}__{part}__KEY": f"{TLS}/key.pem", f"{prefix}__{part}__CERT": f"{TLS}/cert.pem"}

    def pod(container, words, **options):
        return pods.pod(container, words, environment=environment, more=[tls], **options)

    at = ["--protocol", "tls", "--port", str(DASK_PORT)]
    scheduling = pod("scheduler", ["python", "-m", "distributed.cli.dask_scheduler", *at], gpus=False, ports=[
        {"name": "tcp-comm", "containerPort": DASK_PORT, "protocol": "TCP"}, {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
    ])  # fmt: skip
    working = [
        "python",
        "-m",
        "distributed.cli.dask_worker",
        environment["DASK_SCHEDULER_ADDRESS"],
        "--no-nanny",
        "--no-dashboard",
    ]
    working = pod("worker", [*working, "--nthreads", str(cluster["num_threads_per_worker"])])
    runner = pod("job", pods.told([*pods.program, f"num_workers={pods.num_workers}"], "--all"), gpus=False)
    ports = [{"name": "tcp-comm", "protocol": "TCP", "port": DASK_PORT, "targetPort": "tcp-comm"}, {"name": "http-dashboard", "protocol": "TCP", "port": 8787, "targetPort": "http-dashboard"}]  # fmt: skip
    service = {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": pods.name, "dask.org/component": "scheduler"},
        "ports": ports,
    }
    job = pods.made("kubernetes.dask.org/v1", "DaskJob", spec={
        "job": {"spec": runner | {"restartPolicy": "Never"}},
        "cluster": {"spec": {"worker": {"replicas": pods.num_workers, "spec": working}, "scheduler": {"spec": scheduling, "service": service}}},
    })  # fmt: skip
    return pods.objects(job, secrets=pem)


def spark_submit(config, recipe_dir, python, run_dir):
    """The Spark operator's SparkApplication: a driver, and an executor for each worker; the operator calls spark-submit."""
    pods, recipe, cluster = Pods(config, recipe_dir, run_dir), config["recipe"], config["cluster"]
    volumes, mounts = pods.volumes()
    command = pods.told(pods.program, "--all")
    threads, memory = cluster["num_threads_per_worker"], f"{recipe['memory_mb']}m"
    conf = recipe["spark_conf"] | {
        "spark.authenticate": True,
        "spark.network.crypto.enabled": True,
        "spark.kubernetes.authenticate.executor.serviceAccountName": "default",  # not the driver's, which may make pods
    }
    conf = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in conf.items()}

    def side(**more):
        return {
            "cores": threads, "coreRequest": str(cluster["cpus_per_worker"]), "coreLimit": str(cluster["cpus_per_worker"]), "memory": memory,
            "labels": pods.labels, "volumeMounts": mounts, "securityContext": LOCKED_DOWN, "podSecurityContext": POD_SECURITY,
            "env": pods.environment(), **more,
        }  # fmt: skip

    account = (
        cluster["service_account"] or "spark-operator-spark"
    )  # it makes the executors' pods: the operator's chart has this one
    gpu = (
        {"gpu": {"name": "nvidia.com/gpu", "quantity": cluster["gpus_per_worker"]}}
        if cluster["gpus_per_worker"]
        else {}
    )
    return pods.objects(pods.made("sparkoperator.k8s.io/v1beta2", "SparkApplication", spec={
        "type": "Python", "pythonVersion": "3", "mode": "cluster", "image": cluster["image"], "imagePullPolicy": "IfNotPresent",
        "sparkVersion": cluster["versions"]["pyspark"], "restartPolicy": {"type": "Never"}, "volumes": volumes, "sparkConf": conf,
        # The driver's Python is the one that has the recipe's packages; podrun starts the program in its place.
        "mainApplicationFile": f"local://{PACKAGES}/podrun.py", "arguments": command[command.index("--output-dir"):],
        "driver": side(serviceAccount=account),
        "executor": side(instances=pods.num_workers, **gpu),
    }))  # fmt: skip


LAUNCHERS = {
    launcher.__name__: launcher for launcher in (horovodrun, torchrun, tf_config, spark_submit, dask_client, rayrun)
} | {"kfp_client": LOCAL["kfp_client"]}  # its program talks to the cluster itself
