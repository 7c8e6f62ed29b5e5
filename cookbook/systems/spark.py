"""Spark, by its own launcher spark-submit ("Submitting Applications" in Spark's documentation)."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any, ClassVar

from cookbook import UserError, machine, redact
from cookbook.job import Hosts, Job, Node, Process, Settings, flags
from cookbook.settings.files import is_changed
from cookbook.systems import Cluster, System, is_here, running_or_own_cluster

if TYPE_CHECKING:
    from cookbook.pods import Pods

# Spark's own names for what other settings say: spark-submit would be told both.
SAID_ELSEWHERE = {
    "spark.master": "cluster.spark_master",
    "spark.executor.memory": "recipe.memory_mb",
    "spark.executor.cores": "cluster.num_threads_per_worker",
    "spark.executor.instances": "cluster.num_workers",
    "spark.cores.max": "cluster.num_workers and cluster.num_threads_per_worker",
}
ENCRYPTED = {"spark.authenticate": True, "spark.network.crypto.enabled": True}


class Spark(System):
    places_with_port = ("hosts", "slurm")
    address_form = (r"(spark|k8s)://\S+|yarn", "spark://host:7077")
    kubernetes_kinds: ClassVar = {"SparkApplication": "sparkoperator.k8s.io/v1beta2"}
    kubernetes_ends: ClassVar = {"SparkApplication": {"COMPLETED": True, "FAILED": False, "SUBMISSION_FAILED": False}}

    def check(self, config: Settings, place: str) -> None:
        super().check(config, place)
        if place == "local":
            machine.check_localhost()  # PySpark's driver listens on that name
        for key, value in config["recipe"]["spark_conf"].items():
            if other := SAID_ELSEWHERE.get(key):
                raise UserError(f"recipe.spark_conf.{key}={value}: a run takes it from {other}; set that one")
            if not key.startswith("spark."):
                raise UserError(f"recipe.spark_conf.{key}: Spark ignores it; its settings begin with spark.")
        for host in config["cluster"].get("hosts") or ():
            if "_" in host["address"]:  # to java.net.URI that is no host name
                raise UserError(
                    f"{config['cluster']['inventory']}: Spark takes no address with an underscore, {host['address']}: "
                    "give the host's IP address"
                )
        if place == "kubernetes" and is_changed("memory_mb_per_worker", config, place):
            raise UserError(
                f"cluster.memory_mb_per_worker={config['cluster']['memory_mb_per_worker']}: Spark asks for its pods' "
                "memory itself, recipe.memory_mb and its own overhead; set recipe.memory_mb"
            )

    def on_local(self, job: Job) -> list[Process]:
        """spark-submit, with a cluster elsewhere or an embedded one.

        Without a master's address the cluster is embedded: a master, and workers with an executor each, each a process.
        """
        memory_mb, master = job.recipe["memory_mb"], job.cluster["spark_master"]
        environment = job.environment(PYSPARK_PYTHON=str(job.python))
        # Memory is not given by --executor-memory: spark-submit drops that option for an embedded cluster.
        conf = self._resources(job)
        if master:
            if not is_here(master):
                # Spark finds a standalone cluster's secret in spark-defaults.conf. Kubernetes and YARN make their own.
                conf |= ENCRYPTED
        else:
            master = f"local-cluster[{job.num_workers},{job.num_threads},{memory_mb}]"
            conf |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
            scratch = str(job.run_dir / "scratch")
            environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": scratch, "SPARK_WORKER_DIR": scratch}
            environment |= own_home(job)
        argv = [str(job.bin / "spark-submit"), *flags(master=master)]
        plain, hidden = split_secrets(job.recipe["spark_conf"] | conf)
        files = {}
        if hidden:  # every user of the machine can read command lines
            properties = self._properties_file(job)
            files = {properties: hidden}
            argv += ["--load-spark-defaults", *flags(properties_file=properties)]
        argv += [*plain, *job.program_and_settings]
        return [Process("spark-submit", argv, environment, files=files)]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """spark-submit on the head, with a standalone cluster on the hosts."""
        started, access = running_or_own_cluster(self, job, hosts)
        address, properties = hosts.head.address, self._properties_file(job)
        conf = self._resources(job) | {"spark.driver.host": address, "spark.driver.bindAddress": address} | ENCRYPTED
        plain, hidden = split_secrets(job.recipe["spark_conf"] | conf)
        argv = [str(job.bin / "spark-submit"), *flags(master=access["address"], properties_file=properties)]
        argv += [*plain, *job.program_and_settings]
        environment = self._environment(job, hosts.head) | {"SPARK_LOCAL_DIRS": str(job.run_dir / "scratch")}
        files = {properties: f"spark.authenticate.secret {access['secret']}\n{hidden}"}
        return [*started, Process("spark-submit", argv, environment, host=address, files=files)]

    def cluster_on_hosts(self, job: Job, hosts: Hosts) -> Cluster:
        """A standalone cluster ("Spark Standalone Mode": classes Master and Worker)."""
        port, secret = job.cluster["port"], secrets.token_hex(16)
        access = {"address": f"spark://{hosts.head.address}:{port}", "secret": secret}
        scratch = str(job.run_dir / "scratch")

        def daemon(name: str, node: Node, kind: str, *options: str, ready: str) -> Process:
            environment = self._environment(job, node) | {
                "SPARK_DAEMON_JAVA_OPTS": " ".join(f"-D{key}=true" for key in ENCRYPTED),
                "SPARK_LOCAL_DIRS": scratch,
                "SPARK_WORKER_DIR": scratch,
            }
            argv = [str(job.bin / "spark-class"), f"org.apache.spark.deploy.{kind}"]
            argv += [*flags(host=node.address, webui_port=0), *options]
            # Daemons take the secret from their environment, spark-submit from a file of properties.
            own = {"_SPARK_AUTH_SECRET": secret}
            return Process(name, argv, environment, host=node.address, secrets=own, service=True, ready=ready)

        ready = "I have been elected leader"
        started = [daemon("spark-master", hosts.head, "master.Master", *flags(port=port), ready=ready)]
        for node in hosts.nodes:
            cores, memory_mb = node.slots * job.num_threads, node.slots * job.recipe["memory_mb"]
            options = [*flags(cores=cores, memory=f"{memory_mb}m"), access["address"]]
            ready = "Successfully registered with master"
            started.append(daemon(f"spark-worker-{node.name}", node, "worker.Worker", *options, ready=ready))
        return started, access

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """The Spark operator's SparkApplication: a driver, and an executor for each worker.

        The operator calls spark-submit.
        """
        cluster, command = job.cluster, pods.recorded(pods.program, "--all")
        conf = job.recipe["spark_conf"] | ENCRYPTED
        # The executors' account is not the driver's, which may make pods.
        conf["spark.kubernetes.authenticate.executor.serviceAccountName"] = "default"
        num_gpus = cluster["gpus_per_worker"]
        return pods.objects(
            *pods.from_template(
                "spark",
                # The driver makes the executors' pods; the operator's chart has an account that may.
                account=cluster["service_account"] or "spark-operator-spark",
                arguments=command[command.index("--output-dir") :],  # podrun starts the program in its place
                conf={key: as_text(value) for key, value in conf.items()},
                cpus=str(cluster["cpus_per_worker"]),
                gpu={"name": "nvidia.com/gpu", "quantity": num_gpus} if num_gpus else None,
                memory=f"{job.recipe['memory_mb']}m",
                num_threads=job.num_threads,
                spark_version=pods.versions["pyspark"],
            )
        )

    def _resources(self, job: Job) -> dict[str, Any]:
        return {
            "spark.executor.instances": job.num_workers,
            "spark.executor.cores": job.num_threads,
            "spark.cores.max": job.num_workers * job.num_threads,
            "spark.executor.memory": f"{job.recipe['memory_mb']}m",
        }

    def _environment(self, job: Job, node: Node) -> dict[str, str]:
        return job.environment(PYSPARK_PYTHON=str(job.python), SPARK_LOCAL_IP=node.address)

    def _properties_file(self, job: Job) -> str:
        return str(job.run_dir / "scratch/secrets/spark.conf")


def own_home(job: Job) -> dict[str, str]:
    """SPARK_HOME for an environment that cannot be written: a folder of the run, with links into the environment.

    The workers of an embedded cluster write into SPARK_HOME/work, whatever SPARK_WORKER_DIR says.
    """
    installed = next(job.bin.parent.glob("lib/python3*/site-packages/pyspark"), None)
    if installed is None or os.access(installed, os.W_OK):
        return {}
    home = job.run_dir / "spark-home"
    home.mkdir(exist_ok=True)
    for path in installed.iterdir():
        if path.name != "work" and not (home / path.name).is_symlink():
            (home / path.name).symlink_to(path)
    return {"SPARK_HOME": str(home)}


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_secrets(conf: Settings) -> tuple[list[str], str]:
    """Spark's settings as options for the command line, and those with secret values as lines of a properties file."""
    texts = {key: as_text(value) for key, value in conf.items()}
    secret = {key for key, value in texts.items() if redact.redacted(value, key) != value}
    escaped = {key: texts[key].replace("\\", "\\\\").replace("\n", "\\n") for key in secret}
    lines = "".join(f"{key} {value}\n" for key, value in sorted(escaped.items()))
    options = [word for key, value in texts.items() if key not in secret for word in ("--conf", f"{key}={value}")]
    return options, lines
