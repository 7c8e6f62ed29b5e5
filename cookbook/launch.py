"""From settings to the processes to start: data in, data out. No I/O, and no framework is imported."""

import importlib
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cookbook import UserError, redact


@dataclass(frozen=True)
class Process:
    """One process to start, and the files that have to be in the run folder before it starts."""

    name: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "localhost"
    files: dict[str, str] = field(default_factory=dict)  # path -> content; a script when it begins with #!
    secrets: dict[str, str] = field(default_factory=dict)  # more environment, which is shown and written nowhere
    service: bool = False  # serves the others, and is ended when they have ended
    leaves: tuple[str, ...] = ()  # folders of its own on its host, to be removed at the end
    ready: str = ""  # a pattern in what it writes: until then the next process is not started
    takes_settings: bool = True  # key=value words may follow

    @property
    def by_hand(self):
        """What a user would type to start the same."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if name != "PATH"]
        if folders := self.environment.get("PATH", "").split(os.pathsep)[0]:
            variables.insert(0, f"PATH={shlex.quote(folders)}:$PATH")
        where = "" if self.host == "localhost" else f"# on {self.host}:\n"
        return where + " ".join([*variables, shlex.join(self.argv)])


def worker_settings(config, data_dir, run_dir):
    """The flat settings that the workers read: the recipe's own (without its `driver` part), the caps and the folders."""
    recipe = {key: value for key, value in config["recipe"].items() if key != "driver"}
    return {
        "seed": config["seed"],
        **recipe,
        "max_rows": config["scale"]["max_rows"],
        "max_steps": config["scale"]["max_steps"],
        "data_dir": str(data_dir),
        "output_dir": str(run_dir),
        "checkpoint_dir": str(Path(run_dir) / "checkpoints"),
    }


def num_processes(config):
    """How many workers are to prove themselves: one where a mode drives several devices from a single process."""
    return config["recipe"]["driver"].get("num_processes") or config["cluster"]["num_workers"]


def num_hosts(config):
    """On how many hosts the workers are to prove themselves."""
    if config["cluster"]["kind"] == "kubernetes" and config["recipe"]["driver"]["launcher"] != "kfp_client":
        return config["cluster"]["num_workers"]  # a pod for each
    # Loopback addresses are one machine, whatever they are called.
    addresses = {
        "127" if host["address"].startswith("127.") else host["address"] for host in config["cluster"].get("hosts", ())
    }
    return len(addresses) or config["cluster"].get("num_nodes", 1)


def owns_workers(config):
    """Whether the run starts its own workers here; of those of other machines this machine's system does not know."""
    if config["cluster"]["kind"] != "local":
        return False
    return config["cluster"].get(config["recipe"]["driver"].get("address", "")) is None


def check(config, num_cores):
    """Raises UserError for numbers of workers that cannot be started; returns a warning for those that will be slow, or None."""
    num_workers, most = config["cluster"]["num_workers"], config["scale"]["max_workers"]
    if num_workers < 1:
        raise UserError(f"cluster.num_workers={num_workers}: expected at least 1")
    if most is not None and num_workers > most:
        raise UserError(
            f"cluster.num_workers={num_workers} is more than this scale allows ({most}); choose scale=default, or fewer workers"
        )
    threads = num_workers * config["cluster"]["num_threads_per_worker"]
    if threads > num_cores:
        return f"{threads} worker threads share {num_cores} cores: this runs, but its speed says nothing"
    return None


def plan(config, recipe_dir, python, run_dir):
    """The processes of a run, as the recipe's launcher wants them."""
    name = config["recipe"]["driver"]["launcher"]
    if name not in LAUNCHERS:
        raise UserError(f"launcher {name!r} is unknown; there are: {', '.join(sorted(LAUNCHERS))}")
    launchers, kind = LAUNCHERS, config["cluster"]["kind"]
    if kind != "local":
        launchers = importlib.import_module(f"cookbook.launch_{kind}").LAUNCHERS
    if name not in launchers:
        raise UserError(
            f"cluster={kind}: {name} does not start workers there; those that do: {', '.join(sorted(launchers))}"
        )
    return launchers[name](config, Path(recipe_dir), Path(python), Path(run_dir))


def program_of(recipe_dir, variant):
    """The program of a recipe's variant: main_<variant>.py where there is one, else main.py."""
    own = recipe_dir / f"main_{variant}.py"
    return own if own.exists() else recipe_dir / "main.py"


# glibc gives large freed blocks back to the system and asks for them again in the next step: on a CPU a training step then
# spends an eighth to a fifth of its time on page faults. These keep them (mallopt(3); PyTorch's performance tuning guide on allocators).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def worker_environment(config, python):
    """What every worker finds in its environment, whatever starts it."""
    return {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "OMP_NUM_THREADS": str(config["cluster"]["num_threads_per_worker"]),
        "PYTHONUNBUFFERED": "1",
    } | ALLOCATOR


def own_network(python):
    """The words before a launcher that listens on all addresses, whatever it is told: see runrecord/netrun.py."""
    return [str(python), "-m", "netrun"]


def horovodrun(config, recipe_dir, python, run_dir):
    """Horovod's own launcher ("Run Horovod", "Elastic Horovod: Running with horovodrun" in its documentation)."""
    recipe, cluster = config["recipe"], config["cluster"]
    num_workers = cluster["num_workers"]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    argv = [
        *own_network(python),
        str(python.parent / "horovodrun"),
        "--disable-cache",  # it would lie in the home, which may be read-only, and only spares checks of other hosts
        "-np",
        str(num_workers),
        "--start-timeout",
        str(cluster["start_timeout_seconds"]),
    ]
    for key in ("fusion_threshold_mb", "cycle_time_ms"):
        if recipe[key] is not None:
            argv += [f"--{key.replace('_', '-')}", str(recipe[key])]
    if recipe["timeline"]:
        argv += ["--timeline-filename", str(run_dir / "timeline.json")]
    environment, files = worker_environment(config, python), {}
    if recipe["elastic"]:
        # Horovod shuns a whole host when a worker on it fails, so one machine must look like two for one worker to survive:
        # these two names are the ones that horovodrun takes for this machine. A shunned host comes back after a while.
        script = run_dir / "discover_hosts.sh"
        slots = {"localhost": -(-num_workers // 2), "127.0.0.1": num_workers // 2}
        files[str(script)] = "#!/bin/sh\n" + "".join(f"echo {host}:{count}\n" for host, count in slots.items() if count)
        argv += ["--min-np", "1", "--max-np", str(num_workers), "--host-discovery-script", shlex.quote(str(script))]
        argv += ["--blacklist-cooldown-range", "2", "10", "--network-interfaces", loopback]
    elif recipe["controller"] == "mpi":
        argv += ["-H", f"localhost:{num_workers}", "--mpi", "--network-interfaces", loopback]
        # Horovod's own default, -bind-to with one dash, is no option of Open MPI 5: it would take "none" for the program.
        argv += ["--binding-args=--bind-to none --map-by slot"]
        environment["OMPI_MCA_btl_tcp_if_include"] = loopback
    else:
        argv += ["-H", f"localhost:{num_workers}", "--gloo", "--network-interfaces", loopback]
    argv += [str(python), str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return [Process("horovodrun", argv, environment, files=files)]


def torchrun(config, recipe_dir, python, run_dir):
    """PyTorch's own launcher ("torchrun (Elastic Launch)" in its documentation), all workers on this machine."""
    cluster, loopback = config["cluster"], "lo0" if sys.platform == "darwin" else "lo"
    port = cluster["port"] or 0  # 0: torchrun takes a free one
    argv = [*own_network(python), str(python.parent / "torchrun"), "--nnodes", "1"]
    argv += ["--nproc-per-node", str(num_processes(config))]
    argv += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", "is_host=1"]
    argv += ["--local-addr", "127.0.0.1", "--max-restarts", str(config["recipe"]["max_restarts"])]
    argv += [
        "--tee",
        "3",
        "--log-dir",
        str(run_dir / "logs/torchrun"),
    ]  # each line with its rank, and a file for each rank
    argv += [str(program_of(recipe_dir, config["recipe"]["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return [Process("torchrun", argv, worker_environment(config, python) | {"GLOO_SOCKET_IFNAME": loopback})]


def tf_config(config, recipe_dir, python, run_dir):
    """TensorFlow has no launcher of its own: `tfrun` gives each process its TF_CONFIG, as "Distributed training with
    TensorFlow" describes it, and ends those that serve (ps, workers of a chief) when the work is done."""
    recipe, cluster = config["recipe"], config["cluster"]
    argv = [str(python), "-m", "tfrun", "--num-workers", str(num_processes(config))]
    if recipe["driver"].get("chief"):
        argv += ["--chief", "--num-ps", str(recipe["num_ps"])]
    if cluster["port"]:
        argv += ["--port", str(cluster["port"])]
    argv += ["--max-restarts", str(recipe["max_restarts"])]
    argv += [str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return [Process("tfrun", argv, worker_environment(config, python))]


def spark_submit(config, recipe_dir, python, run_dir):
    """Spark's own launcher ("Submitting Applications" in its documentation). Without a master's address the cluster is an
    embedded one: a master, and workers with an executor each, as processes of their own on this machine."""
    recipe, cluster = config["recipe"], config["cluster"]
    memory, threads, master = recipe["memory_mb"], cluster["num_threads_per_worker"], cluster["spark_master"]
    argv = [str(python.parent / "spark-submit"), "--master"]
    environment = worker_environment(config, python) | {"PYSPARK_PYTHON": str(python)}
    own = {"spark.executor.instances": cluster["num_workers"], "spark.executor.cores": threads}
    own["spark.cores.max"] = cluster["num_workers"] * threads
    own["spark.executor.memory"] = (
        f"{memory}m"  # not --executor-memory: spark-submit drops that one for an embedded cluster
    )
    if master:
        argv += [master]
        if not is_here(master):
            # A standalone cluster's secret is Spark's to find, in spark-defaults.conf; Kubernetes and YARN make their own.
            own |= {"spark.authenticate": True, "spark.network.crypto.enabled": True}
    else:
        argv += [f"local-cluster[{cluster['num_workers']},{threads},{memory}]"]
        own |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        scratch = str(run_dir / "scratch")
        environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": scratch, "SPARK_WORKER_DIR": scratch}
    plain, hidden = spark_settings(recipe["spark_conf"] | own)
    files = {}
    if hidden:  # every user of the machine can read command lines
        properties = str(run_dir / "scratch/secrets/spark.conf")
        files = {properties: hidden}
        argv += ["--load-spark-defaults", "--properties-file", properties]
    for pair in plain:
        argv += ["--conf", pair]
    argv += [str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return [Process("spark-submit", argv, environment, files=files)]


def spark_settings(settings):
    """([KEY=VALUE, ...] for the command line, the lines of a properties file with those that are secrets)."""
    words = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}
    secret = {key for key, value in words.items() if redact.redacted(value, key) != value}
    escaped = {key: words[key].replace("\\", "\\\\").replace("\n", "\\n") for key in secret}
    lines = "".join(f"{key} {value}\n" for key, value in sorted(escaped.items()))
    return [f"{key}={value}" for key, value in words.items() if key not in secret], lines


def dask_client(config, recipe_dir, python, run_dir):
    """A program that is a client of Dask ("Deploy Dask Clusters" in its documentation): it starts an embedded cluster, or uses the one
    whose scheduler's address Dask finds in its environment."""
    recipe, cluster = config["recipe"], config["cluster"]
    # Left alone, workers put their temporary files into /tmp/dask-scratch-space, which all runs share.
    environment = worker_environment(config, python) | {
        "DASK_TEMPORARY_DIRECTORY": str(run_dir / "scratch"),
        "DASK_LOGGING__DISTRIBUTED": "warning",
    }
    if address := cluster["dask_scheduler"]:
        check_encrypted(address, "tls://", "cluster.dask_scheduler", "Dask's documentation on TLS/SSL has the settings")
        environment["DASK_SCHEDULER_ADDRESS"] = address
    argv = [str(python), str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return [Process("dask", [*argv, f"num_workers={cluster['num_workers']}"], environment)]


def rayrun(config, recipe_dir, python, run_dir):
    """A program that is a client of Ray ("Ray Jobs", "Starting Ray" in its documentation): on an instance that `rayrun` starts for it, or
    on the running cluster whose address Ray finds in its environment."""
    recipe, cluster = config["recipe"], config["cluster"]
    # Ray Train calls the training in a thread, and glibc gives threads arenas of their own, which ALLOCATOR does not reach.
    environment = worker_environment(config, python) | {"MALLOC_ARENA_MAX": "1"}
    program = [str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    program += [f"num_workers={cluster['num_workers']}"]
    if address := cluster["ray_address"]:
        # Who asks a cluster for anything shows its token: RAY_AUTH_TOKEN, or the file that `ray get-auth-token` writes.
        own = (
            {"RAY_ADDRESS": address} if is_here(f"//{address}") else {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
        )
        return [Process("ray", [str(python), *program], environment | own)]
    each = max(cluster["num_threads_per_worker"], recipe.get("cpus_per_trial", 1))
    num_cpus = cluster["num_workers"] * each + recipe.get("num_learners", 0) + recipe["num_data_cpus"]
    argv = [
        str(python),
        "-m",
        "rayrun",
        "--num-cpus",
        str(num_cpus),
        "--object-store-mb",
        str(recipe["object_store_mb"]),
    ]
    return [Process("rayrun", [*argv, "--temp-dir", str(run_dir / "scratch/ray"), *program], environment)]


def kfp_client(config, recipe_dir, python, run_dir):
    """A program that is a client of Kubeflow Pipelines ("Run a Pipeline", "Execute KFP pipelines locally" in its documentation): the
    steps are processes of this machine, or pods where the cluster's settings have an address."""
    cluster = config["cluster"]
    argv = [
        str(python),
        str(program_of(recipe_dir, config["recipe"]["driver"].get("variant"))),
        str(run_dir / "config.yaml"),
    ]
    return [Process("kfp", [*argv, f"num_workers={cluster['num_workers']}"], worker_environment(config, python))]


def is_here(address):
    return re.search(r"//(localhost|127\.[0-9.]+|\[::1\])(:|/|$)", address) is not None


def check_encrypted(address, wanted, setting, hint):
    """Raises UserError when an address leaves this machine without what the system has for encryption."""
    if not address.startswith(wanted) and not is_here(address):
        raise UserError(f"{setting}={address} leaves this machine unencrypted: expected {wanted}...; {hint}")


LAUNCHERS = {
    launcher.__name__: launcher
    for launcher in (horovodrun, torchrun, tf_config, spark_submit, dask_client, rayrun, kfp_client)
}
