"""From settings to the processes to start on several hosts: what launch.py is for one machine. Pure as that one.

A cluster's `hosts` are dictionaries with name, address, slots (workers of this run) and interface; the first one is the head.
"""

import json
import secrets
import shlex
from pathlib import Path

from cookbook import UserError
from cookbook.launch import Process, program_of, spark_settings, worker_environment

SPARK_LOCKED = ("spark.authenticate", "spark.network.crypto.enabled")


def _parts(config, recipe_dir, run_dir):
    """(recipe, cluster, hosts, head, [program, its settings])."""
    recipe, cluster = config["recipe"], config["cluster"]
    if address := cluster.get(setting := recipe["driver"].get("address")):
        raise UserError(
            f"cluster.{setting}={address} is for cluster=local: with cluster=hosts a run starts its cluster, or uses one of cookbook/services.py"
        )
    program = [str(program_of(recipe_dir, recipe["driver"].get("variant"))), str(run_dir / "config.yaml")]
    return recipe, cluster, cluster["hosts"], cluster["hosts"][0], program


def _same(hosts, key, what):
    values = {host[key] for host in hosts}
    if len(values) > 1:
        raise UserError(
            f"{what}, but the hosts have {', '.join(host[key] + ' (' + host['name'] + ')' for host in hosts)}"
        )
    return values.pop()


def torchrun(config, recipe_dir, python, run_dir):
    """One torchrun on each host, meeting at the head ("torchrun (Elastic Launch)", multi-node)."""
    recipe, cluster, hosts, head, program = _parts(config, recipe_dir, run_dir)
    started = []
    for host in hosts:
        is_head = host is head
        argv = [str(python.parent / "torchrun"), "--nnodes", str(len(hosts)), "--nproc-per-node", str(host["slots"])]
        argv += [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"{head['address']}:{cluster['port']}",
            "--rdzv-id",
            run_dir.name,
        ]
        # Without these two, hosts that do not know each other's names wait for ever.
        argv += [
            "--rdzv-conf",
            f"is_host={int(is_head)},join_timeout={cluster['start_timeout_seconds']}",
            "--local-addr",
            host["address"],
        ]
        argv += [
            "--max-restarts",
            str(recipe["max_restarts"]),
            "--tee",
            "3",
            "--log-dir",
            str(run_dir / "logs/torchrun"),
            *program,
        ]
        environment = worker_environment(config, python) | {
            "GLOO_SOCKET_IFNAME": host["interface"],
            "NCCL_SOCKET_IFNAME": host["interface"],
        }
        started.append(Process(f"torchrun-{host['name']}", argv, environment, host=host["address"]))
    return started


def horovodrun(config, recipe_dir, python, run_dir):
    """horovodrun on the head, which starts the workers of all hosts by ssh ("Run Horovod" in its documentation)."""
    recipe, cluster, hosts, head, program = _parts(config, recipe_dir, run_dir)
    interface = _same(hosts, "interface", "horovodrun wants the network interface to have the same name everywhere")
    slots = [f"{host['address']}:{host['slots']}" for host in hosts]
    argv = [
        str(python.parent / "horovodrun"),
        "--disable-cache",
        "-np",
        str(cluster["num_workers"]),
        "--start-timeout",
        str(cluster["start_timeout_seconds"]),
    ]
    for key in ("fusion_threshold_mb", "cycle_time_ms"):
        if recipe[key] is not None:
            argv += [f"--{key.replace('_', '-')}", str(recipe[key])]
    if cluster["ssh"].get("port"):
        argv += ["--ssh-port", str(cluster["ssh"]["port"])]
    files = {}
    if recipe["elastic"]:
        if not recipe["allow_unsafe_elastic"] and len(hosts) > 1:
            raise UserError(
                "recipe.elastic=true on several hosts: the servers of Horovod 0.28.1's elastic driver listen on all addresses and unpickle what "
                "they are sent (CVE-2024-10190): who reaches a port of the head can run programs there. Use recipe.elastic=false, or, in a "
                "network that nobody else can reach, recipe.allow_unsafe_elastic=true"
            )
        script = str(run_dir / "discover_hosts.sh")
        files[script] = "#!/bin/sh\n" + "".join(f"echo {slot}\n" for slot in slots)
        argv += [
            "--min-np",
            "1",
            "--max-np",
            str(cluster["num_workers"]),
            "--host-discovery-script",
            shlex.quote(script),
        ]
        argv += ["--blacklist-cooldown-range", "2", "10"]
    else:
        argv += ["-H", ",".join(slots)]
    environment = worker_environment(config, python) | {"GLOO_SOCKET_IFNAME": interface}
    if recipe["controller"] == "mpi":
        # mpirun's ssh would ask about host keys where nobody answers.
        options = ["StrictHostKeyChecking=accept-new"]
        if cluster.get("known_hosts"):
            known = str(run_dir / "scratch/secrets/known_hosts")
            files[known] = cluster["known_hosts"]
            options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}"]
        argv += ["--mpi", "--binding-args=--bind-to none --map-by slot"]  # see launch.horovodrun
        environment |= {
            "PRTE_MCA_plm_ssh_args": " ".join([*(f"-o {option}" for option in options), "-p", str(cluster["ssh"].get("port", 22))]),
            "PRTE_MCA_prte_if_include": interface, "OMPI_MCA_btl_tcp_if_include": interface,
        }  # fmt: skip
    else:
        argv += ["--gloo"]
    argv += ["--network-interfaces", interface, str(python), *program]
    return [Process("horovodrun", argv, environment, host=head["address"], files=files)]


def tf_config(config, recipe_dir, python, run_dir):
    """Each process with its TF_CONFIG, by ssh ("Distributed training with TensorFlow": every process is told of all). With a chief, which is
    on the head, workers and ps are servers: a lost one ends the run, and the same command goes on from the checkpoint."""
    recipe, cluster, hosts, head, program = _parts(config, recipe_dir, run_dir)
    chief = recipe["driver"].get("chief")
    places = [("worker", host) for host in hosts for _ in range(host["slots"])]
    if chief:
        places += [("ps", hosts[index % len(hosts)]) for index in range(recipe["num_ps"])] + [("chief", head)]
    members, tasks = {}, []
    for number, (kind, host) in enumerate(places):
        addresses = members.setdefault(kind, [])
        tasks.append((kind, len(addresses), host))
        addresses.append(f"{host['address']}:{cluster['port'] + number}")
    started = []
    for kind, index, host in tasks:
        task = json.dumps({"cluster": members, "task": {"type": kind, "index": index}})
        environment = worker_environment(config, python) | {"TF_CONFIG": task, "TFRUN_ATTEMPT": "0"}
        serves, argv = bool(chief) and kind != "chief", [str(python), *program]
        started.append(Process(f"{kind}-{index}", argv, environment, host=host["address"], service=serves))
    return started


def spark_cluster(config, recipe_dir, python, run_dir):
    """A standalone cluster on the hosts ("Spark Standalone Mode": classes Master and Worker); ([processes], what its clients need)."""
    recipe, cluster, hosts, head, _ = _parts(config, recipe_dir, run_dir)
    access = {"address": f"spark://{head['address']}:{cluster['port']}", "secret": secrets.token_hex(16)}

    def of(name, host, *words, ready):
        environment = _spark_environment(config, python, host) | {
            "SPARK_DAEMON_JAVA_OPTS": " ".join(f"-D{key}=true" for key in SPARK_LOCKED),
            "SPARK_LOCAL_DIRS": str(run_dir / "scratch"), "SPARK_WORKER_DIR": str(run_dir / "scratch"),
        }  # fmt: skip
        argv = [str(python.parent / "spark-class"), f"org.apache.spark.deploy.{words[0]}", "--host", host["address"], "--webui-port", "0", *words[1:]]  # fmt: skip
        # These take the secret from their environment, spark-submit from a file of properties.
        secret = {"_SPARK_AUTH_SECRET": access["secret"]}
        return Process(name, argv, environment, host=host["address"], secrets=secret, service=True, ready=ready)

    started = [
        of("spark-master", head, "master.Master", "--port", str(cluster["port"]), ready="I have been elected leader")
    ]
    for host in hosts:
        cores, memory = (host["slots"] * each for each in (cluster["num_threads_per_worker"], recipe["memory_mb"]))
        words = ["worker.Worker", "--cores", str(cores), "--memory", f"{memory}m", access["address"]]
        started.append(of(f"spark-worker-{host['name']}", host, *words, ready="Successfully registered with master"))
    return started, access


def _spark_environment(config, python, host):
    return worker_environment(config, python) | {"PYSPARK_PYTHON": str(python), "SPARK_LOCAL_IP": host["address"]}


def spark_submit(config, recipe_dir, python, run_dir):
    """spark-submit on the head, with a standalone cluster on the hosts."""
    recipe, cluster, _, head, program = _parts(config, recipe_dir, run_dir)
    threads, properties = cluster["num_threads_per_worker"], str(run_dir / "scratch/secrets/spark.conf")
    started, access = _running_or_own(spark_cluster, config, recipe_dir, python, run_dir)
    own = {
        "spark.executor.instances": cluster["num_workers"], "spark.executor.cores": threads, "spark.executor.memory": f"{recipe['memory_mb']}m",
        "spark.cores.max": cluster["num_workers"] * threads, "spark.driver.host": head["address"], "spark.driver.bindAddress": head["address"],
    }  # fmt: skip
    argv = [str(python.parent / "spark-submit"), "--master", access["address"], "--properties-file", properties]
    plain, hidden = spark_settings(recipe["spark_conf"] | own | dict.fromkeys(SPARK_LOCKED, True))
    for pair in plain:
        argv += ["--conf", pair]
    environment = _spark_environment(config, python, head) | {"SPARK_LOCAL_DIRS": str(run_dir / "scratch")}
    files = {properties: f"spark.authenticate.secret {access['secret']}\n{hidden}"}
    return [*started, Process("spark-submit", [*argv, *program], environment, host=head["address"], files=files)]


def dask_cluster(config, recipe_dir, python, run_dir):
    """A scheduler on the head and a worker for each slot ("Deploy Dask Clusters: Command Line"), over TLS; ([processes], what its clients need)."""
    _, cluster, hosts, head, _ = _parts(config, recipe_dir, run_dir)
    files = certificate(run_dir, [host["address"] for host in hosts])
    access = {"address": f"tls://{head['address']}:{cluster['port']}"}
    access |= {Path(path).stem: content for path, content in files.items()}  # key, cert
    environment = _dask_environment(config, python, run_dir, "info")
    scheduler = [str(python), "-m", "distributed.cli.dask_scheduler", "--host", access["address"], "--no-dashboard"]
    started = [Process("dask-scheduler", scheduler, environment, host=head["address"], files=files, service=True, ready="Scheduler at:")]  # fmt: skip
    for host, slot in [(one, slot) for one in hosts for slot in range(one["slots"])]:
        name = f"{host['name']}-{slot}"
        argv = [
            str(python),
            "-m",
            "distributed.cli.dask_worker",
            access["address"],
            "--host",
            f"tls://{host['address']}",
        ]
        argv += ["--no-dashboard", "--no-nanny", "--nthreads", str(cluster["num_threads_per_worker"]), "--name", name]
        started.append(Process(f"dask-worker-{name}", argv, environment, host=host["address"], service=True, ready="Registered to:"))  # fmt: skip
    return started, access


def _dask_environment(config, python, run_dir, level):
    key, cert = (str(run_dir / f"scratch/secrets/{name}.pem") for name in ("key", "cert"))
    prefix = "DASK_DISTRIBUTED__COMM__TLS"
    tls = {f"{prefix}__CA_FILE": cert}
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {f"{prefix}__{part}__KEY": key, f"{prefix}__{part}__CERT": cert}
    return worker_environment(config, python) | tls | {
        "DASK_TEMPORARY_DIRECTORY": str(run_dir / "scratch"), "DASK_LOGGING__DISTRIBUTED": level, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
    }  # fmt: skip


def dask_client(config, recipe_dir, python, run_dir):
    """The client on the head, with a Dask cluster on the hosts."""
    _, cluster, _, head, program = _parts(config, recipe_dir, run_dir)
    started, access = _running_or_own(dask_cluster, config, recipe_dir, python, run_dir)
    environment = _dask_environment(config, python, run_dir, "warning") | {"DASK_SCHEDULER_ADDRESS": access["address"]}
    files = {str(run_dir / f"scratch/secrets/{name}.pem"): access[name] for name in ("key", "cert")}
    argv = [str(python), *program, f"num_workers={cluster['num_workers']}"]
    return [*started, Process("dask", argv, environment, host=head["address"], files=files)]


def certificate(run_dir, addresses):
    """{path: content} of a key and a certificate for this cluster alone, that all its processes share; good for a year."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, run_dir.name)]),
    )
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(a)) if a[0].isdigit() else x509.DNSName(a) for a in addresses]
    )
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(names, critical=False).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return {
        str(run_dir / "scratch/secrets/key.pem"): private,
        str(run_dir / "scratch/secrets/cert.pem"): made.public_bytes(pem).decode(),
    }


def ray_cluster(config, recipe_dir, python, run_dir):
    """A Ray cluster on the hosts ("Launching an On-Premise Cluster": ray start), with a token of its own; ([processes], what its clients need)."""
    recipe, cluster, hosts, head, _ = _parts(config, recipe_dir, run_dir)
    access = {"address": f"{head['address']}:{cluster['port']}", "token": secrets.token_hex(32)}
    each, started = max(cluster["num_threads_per_worker"], recipe.get("cpus_per_trial", 1)), []
    # Ray's sockets want a short path, 107 bytes at most: the run folder's is too long. All users of a host can write to /tmp: a name
    # that can be guessed could be made before by somebody else.
    temp = f"/tmp/ray-{secrets.token_hex(8)}"
    for host in hosts:
        num_cpus = host["slots"] * each
        argv = [str(python.parent / "ray"), "start", "--block", "--disable-usage-stats", "--node-ip-address", host["address"]]  # fmt: skip
        if host is head:
            num_cpus += recipe["num_data_cpus"] + recipe.get("num_learners", 0)
            argv += ["--head", "--port", str(cluster["port"]), "--include-dashboard", "false", "--temp-dir", temp]
        else:
            argv += ["--address", access["address"]]
        argv += ["--num-cpus", str(num_cpus), "--object-store-memory", str(recipe["object_store_mb"] << 20)]
        started.append(Process(
            f"ray-{host['name']}", argv, _ray_environment(config, python), host=host["address"], secrets={"RAY_AUTH_TOKEN": access["token"]},
            service=True, ready="Ray runtime started", leaves=(temp,),
        ))  # fmt: skip
    return started, access


def _ray_environment(config, python):
    own = {"MALLOC_ARENA_MAX": "1", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    return worker_environment(config, python) | own


def rayrun(config, recipe_dir, python, run_dir):
    """The program on the head, with a Ray cluster on the hosts."""
    _, cluster, _, head, program = _parts(config, recipe_dir, run_dir)
    started, access = _running_or_own(ray_cluster, config, recipe_dir, python, run_dir)
    argv = [str(python), *program, f"num_workers={cluster['num_workers']}"]
    environment = _ray_environment(config, python) | {"RAY_ADDRESS": access["address"]}
    secret = {"RAY_AUTH_TOKEN": access["token"]}
    return [*started, Process("ray", argv, environment, host=head["address"], secrets=secret)]


def _running_or_own(start, *words):
    """([processes], access): a cluster for this run alone, or none where a running one (services.py) has what the run needs."""
    config, _, python, _ = words
    check_shared(config)
    service = config["cluster"].get("service")
    if not service:
        return start(*words)
    mine = offer(config, python)
    if service["environment"] != mine["environment"] or any(
        service[key] < mine[key] for key in ("workers", "memory_mb")
    ):
        theirs = ", ".join(f"{key} {service[key]}" for key in mine)
        raise UserError(
            f"the running cluster {service['address']} has {theirs}; this run needs {', '.join(f'{key} {value}' for key, value in mine.items())}: "
            "start it anew with these settings (python -m cookbook.services), or cluster.use_services=false"
        )
    return [], service


def check_shared(config):
    """Raises UserError where what one worker has written is not there for the others: tables, parts, checkpoints of Spark, Dask and Ray."""
    cluster = config["cluster"]
    if len(cluster["hosts"]) > 1 and not cluster["shared"]:
        raise UserError(
            f"the workers of {config['recipe']['driver']['launcher']} read what others have written: the hosts of {cluster['inventory']} must see "
            "this checkout, its cache and output_root under the same paths (a network's disk), and the inventory say `shared: true`"
        )


def offer(config, python):
    """What a cluster has that a run may ask of it; `environment`: the folder of its Python."""
    memory = config["recipe"].get("memory_mb", 0)
    return {"environment": str(python.parent.parent), "workers": config["cluster"]["num_workers"], "memory_mb": memory}


CLUSTERS = {"spark_submit": spark_cluster, "dask_client": dask_cluster, "rayrun": ray_cluster}
LAUNCHERS = {
    launcher.__name__: launcher for launcher in (horovodrun, torchrun, tf_config, spark_submit, dask_client, rayrun)
}
