"""From settings to the objects of a Kubernetes cluster: what launch.py is for one machine. Pure as that one.

Each system's own operator does the work: Kubeflow Trainer (PyTorch, TensorFlow, MPI), KubeRay, Dask's and Spark's operators. A worker
is a pod. All pods share one claim, where datasets, checkpoints and results are; what they write into the run's record comes home by
their logs (runrecord/podrun.py).
"""

import shlex

from cookbook import UserError
from cookbook.launch import LAUNCHERS as LOCAL
from cookbook.launch_hosts import certificate
from cookbook.pods import LOCKED_DOWN, PACKAGES, POD_SECURITY, TLS, Pods

MPI_PORT, TF_PORT, DASK_PORT = 2222, 2222, 8786


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
