"""Horovod's own launcher, horovodrun ("Run Horovod" and "Elastic Horovod" in Horovod's documentation)."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from cookbook import UserError, machine
from cookbook.job import Hosts, Job, Process, Settings, flags
from cookbook.systems import TRAIN_JOB_ENDS, TRAIN_JOB_KINDS, WHO_AM_I, System

if TYPE_CHECKING:
    from cookbook.pods import Pods

# Open MPI 5 has no option -bind-to with one dash, Horovod's own default: it would take "none" for the program.
BINDING = "--binding-args=--bind-to none --map-by slot"
SHUNNED = [*flags(blacklist_cooldown_range=2), "10"]  # seconds after which a shunned host may come back: 2 to 10
# Lists the hosts that can be reached. horovodrun runs it every second: so a lost host is not waited for, and one that
# answers again gets workers again.
DISCOVERY = """\
#!/bin/sh
for host in {slots}; do
    timeout 5 bash -c "</dev/tcp/${{host%:*}}/{port}" 2>/dev/null && echo "$host" &
done
wait
"""
POD_SSH_PORT = 2222
POD_KEYS = "/srv/ssh"
# This sshd does not run as root, so only its own user can log in.
SSHD = (
    "ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key && "
    "exec /usr/sbin/sshd -D -e -p {port} -h /tmp/host_key -o PidFile=none "
    "-o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile={keys}/authorized_keys"
)


class Horovod(System):
    kubernetes_kinds, kubernetes_ends = TRAIN_JOB_KINDS, TRAIN_JOB_ENDS
    network_switch = "NETRUN_NETWORK"

    def check(self, config: Settings, place: str) -> None:
        super().check(config, place)
        recipe = config["recipe"]
        if place == "local":
            machine.check_localhost()
        elif recipe["timeline"]:
            raise UserError(
                f"recipe.timeline=true: with cluster={place} the file would stay on the machine of rank 0; "
                "it is written with cluster=local only"
            )
        if not recipe["elastic"]:
            return
        if place == "slurm":
            raise UserError(
                "recipe.elastic=true: a Slurm job has a fixed size; set recipe.elastic=false, or use cluster=hosts"
            )
        if place == "kubernetes":
            raise UserError(
                "recipe.elastic=true needs horovodrun; cluster=kubernetes starts the workers by mpirun: "
                "choose cluster=hosts, or false"
            )
        if place == "hosts" and len(config["cluster"]["hosts"]) > 1 and not recipe["allow_unsafe_elastic"]:
            raise UserError(
                "recipe.elastic=true on several hosts: the servers of Horovod 0.28.1's elastic driver listen on "
                "all addresses and unpickle what they are sent (CVE-2024-10190): who reaches a port of the head "
                "can run programs there. Use recipe.elastic=false, or, in a network that nobody else can reach, "
                "recipe.allow_unsafe_elastic=true"
            )

    def on_local(self, job: Job) -> list[Process]:
        """All workers under one horovodrun, on loopback."""
        recipe, num_workers = job.recipe, job.num_workers
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        # netrun: see runrecord/netrun.py
        argv = [str(job.python), "-m", "netrun", *self._horovodrun(job), *self._knobs(job)]
        if recipe["timeline"]:
            argv += flags(timeline_filename=job.run_dir / "timeline.json")
        environment = job.environment()
        files: dict[str, str] = {}
        if recipe["elastic"]:
            # Horovod shuns a whole host when a worker on it fails. So this machine is listed as two hosts, by the two
            # names that horovodrun takes for it: when a worker of one fails, the workers of the other go on.
            slots = {"localhost": -(-num_workers // 2), "127.0.0.1": num_workers // 2}
            listed = "".join(f"echo {host}:{count}\n" for host, count in slots.items() if count)
            argv += self._elastic(job, f"#!/bin/sh\n{listed}", files)
            argv += flags(network_interfaces=loopback)
        elif recipe["controller"] == "mpi":
            argv += ["-H", f"localhost:{num_workers}", "--mpi", *flags(network_interfaces=loopback), BINDING]
            environment["OMPI_MCA_btl_tcp_if_include"] = loopback
        else:
            argv += ["-H", f"localhost:{num_workers}", "--gloo", *flags(network_interfaces=loopback)]
        argv += [str(job.python), *job.program_and_settings]
        return [Process("horovodrun", argv, environment, files=files)]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """horovodrun on the head, which starts the workers of all hosts by ssh."""
        recipe, interface = job.recipe, self._interface(hosts)
        slots = [f"{node.address}:{node.slots}" for node in hosts.nodes]
        port = hosts.ssh_port or 22
        argv = [*self._horovodrun(job), *self._knobs(job)]
        if hosts.ssh_port:
            argv += flags(ssh_port=hosts.ssh_port)
        files: dict[str, str] = {}
        if recipe["elastic"]:
            argv += self._elastic(job, DISCOVERY.format(slots=" ".join(slots), port=port), files)
        else:
            argv += ["-H", ",".join(slots)]
        environment = job.environment(GLOO_SOCKET_IFNAME=interface)
        if recipe["controller"] == "mpi":
            # mpirun's ssh would ask about host keys where nobody answers.
            options = ["StrictHostKeyChecking=accept-new"]
            if hosts.known_hosts:
                known = str(job.run_dir / "scratch/secrets/known_hosts")
                files[known] = hosts.known_hosts
                options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}"]
            argv += ["--mpi", BINDING]
            ssh_options = [*(f"-o {option}" for option in options), f"-p {port}"]
            environment |= {
                "PRTE_MCA_plm_ssh_args": " ".join(ssh_options),
                "PRTE_MCA_prte_if_include": interface,
                "OMPI_MCA_btl_tcp_if_include": interface,
            }
        else:
            argv += ["--gloo"]
        argv += [*flags(network_interfaces=interface), str(job.python), *job.program_and_settings]
        return [Process("horovodrun", argv, environment, host=hosts.head.address, files=files)]

    def on_slurm(self, job: Job) -> str:
        """horovodrun on the first node, which reaches the others by ssh; on one node it needs none."""
        num_nodes = job.cluster["num_nodes"]
        per_node = job.num_workers // num_nodes
        hostnames = 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
        lines = [f"slots=$({hostnames} | sed 's/$/:{per_node}/' | paste -sd, -)", WHO_AM_I]
        if num_nodes == 1:
            lines += [f"slots=localhost:{per_node}", "export GLOO_SOCKET_IFNAME=lo"]
        # Slurm was asked for one task on each node, with CPUs for all workers there. mpirun counts tasks as slots, so
        # it has to be allowed to oversubscribe them.
        mapping = f"--bind-to none --map-by ppr:{per_node}:node:OVERSUBSCRIBE"
        controller = ["--gloo"] if job.recipe["controller"] == "gloo" else ["--mpi", f"'--binding-args={mapping}'"]
        argv = [*self._horovodrun(job), *self._knobs(job), "-H", '"$slots"', *controller]
        argv += flags(network_interfaces='"$interface"' if num_nodes > 1 else "lo")
        argv += [shlex.quote(word) for word in (str(job.python), *job.program_and_settings)]
        return "\n".join([*lines, "exec " + " ".join(argv)])

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """A TrainJob with Trainer's MPI policy: mpirun on the launcher, sshd on the other pods.

        Source: "MPI" in Trainer's user guide.
        """
        recipe = job.recipe
        knobs = {"HOROVOD_CONTROLLER": "mpi", "HOROVOD_CPU_OPERATIONS": "mpi"}
        if recipe["fusion_threshold_mb"] is not None:
            knobs["HOROVOD_FUSION_THRESHOLD"] = str(recipe["fusion_threshold_mb"] << 20)
        if recipe["cycle_time_ms"] is not None:
            knobs["HOROVOD_CYCLE_TIME"] = str(recipe["cycle_time_ms"])
        mpirun = ["mpirun", *flags(np=pods.num_workers, hostfile="/etc/mpi/hostfile")]
        mpirun += flags(bind_to="none", map_by="ppr:1:node")
        # Where mpirun's daemon is on the other pods, and how it is started there (in Open MPI 5 both belong to PRRTE).
        ssh_options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        ssh = f"-p {POD_SSH_PORT} -i {POD_KEYS}/id_rsa " + " ".join(f"-o {option}" for option in ssh_options)
        mpirun += ["--prefix", "/srv/venv", "--prtemca", "plm_ssh_args", ssh]
        for name in ["PATH", *(entry["name"] for entry in pods.environment(**knobs))]:
            mpirun += ["-x", name]
        argv = ["env", *(f"{name}={value}" for name, value in knobs.items()), *mpirun, *pods.program]
        sshd = ["sh", "-c", SSHD.format(port=POD_SSH_PORT, keys=POD_KEYS)]
        probe = {"tcpSocket": {"port": POD_SSH_PORT}, "periodSeconds": 2}
        groups = [
            pods.group("node", pods.template("node", sshd, restart="Never", readinessProbe=probe)),
            pods.group("launcher", pods.template("node", [], restart="Never"), is_trainer=True, depends_on="node"),
        ]
        policy = {
            "mpiImplementation": "OpenMPI",
            "numProcPerNode": 1,
            "sshAuthMountPath": POD_KEYS,
            "runLauncherAsNode": True,
        }
        success = {"operator": "All", "targetReplicatedJobs": ["launcher"]}
        return pods.objects(*pods.train_job({"mpi": policy}, pods.recorded(argv, "--all"), groups, success))

    def _horovodrun(self, job: Job) -> list[str]:
        # Its cache would lie in the home, which may be read-only. It would only save checks of other hosts.
        argv = [str(job.bin / "horovodrun"), "--disable-cache", "-np", str(job.num_workers)]
        return argv + flags(start_timeout=job.cluster["start_timeout_seconds"])

    def _knobs(self, job: Job) -> list[str]:
        chosen = {key: job.recipe[key] for key in ("fusion_threshold_mb", "cycle_time_ms")}
        return flags(**{key: value for key, value in chosen.items() if value is not None})

    def _elastic(self, job: Job, discovery: str, files: dict[str, str]) -> list[str]:
        """The options of an elastic run; adds the script that lists its hosts to `files`."""
        script = str(job.run_dir / "discover_hosts.sh")
        files[script] = discovery
        sizes = flags(min_np=1, max_np=job.num_workers)
        return [*sizes, *flags(host_discovery_script=shlex.quote(script)), *SHUNNED]

    def _interface(self, hosts: Hosts) -> str:
        found = {node.interface for node in hosts.nodes}
        if len(found) > 1:
            listed = ", ".join(f"{node.interface} ({node.name})" for node in hosts.nodes)
            raise UserError(
                f"horovodrun wants the network interface to have the same name everywhere, but the hosts have {listed}"
            )
        return found.pop()
