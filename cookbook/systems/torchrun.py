"""PyTorch's own launcher, torchrun ("torchrun (Elastic Launch)" in PyTorch's documentation)."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

from cookbook import UserError, machine
from cookbook.job import Hosts, Job, Process, Settings, flags
from cookbook.systems import TRAIN_JOB_ENDS, TRAIN_JOB_KINDS, WHO_AM_I, System

if TYPE_CHECKING:
    from cookbook.pods import Pods

REPLICAS = """\
#!/bin/sh
# Each worker is a replica group of its own, under a torchrun of its own. The lighthouse says who takes part in a step.
{lighthouse} &
lighthouse=$!
trap 'kill $lighthouse' EXIT
export STARTED=$(date +%s) NUM_REPLICA_GROUPS={num_workers} TORCHFT_LIGHTHOUSE=http://127.0.0.1:{port}
replicas=
for number in $(seq 0 {last}); do
    REPLICA_GROUP_ID=$number {torchrun} --log-dir {logs}/$number {program} "$@" &
    replicas="$replicas $!"
done
status=0
for replica in $replicas; do
    wait $replica || status=$?
done
exit $status
"""


class Torchrun(System):
    kubernetes_kinds, kubernetes_ends, kubernetes_without_claim = TRAIN_JOB_KINDS, TRAIN_JOB_ENDS, True
    network_switch = "NETRUN_NETWORK"
    places_with_port = ("local", "hosts", "slurm")

    def check(self, config: Settings, place: str) -> None:
        super().check(config, place)
        if config["recipe"].get("mode") == "ft_ddp" and place != "local":
            raise UserError(
                "recipe.mode=ft_ddp was tried with cluster=local only: torchft's servers listen on all addresses, and "
                "its workers unpickle what they are sent"
            )
        loaders = config["recipe"].get("num_loader_workers", 0)
        if place == "local" and loaders and config["recipe"].get("pool", "process") == "process":
            machine.check_shared_memory(loaders * config["cluster"]["num_workers"])

    def on_local(self, job: Job) -> list[Process]:
        """All workers under one torchrun, which meet on loopback."""
        if job.recipe.get("mode") == "ft_ddp":
            return [self._replicas(job)]
        port = job.cluster["port"] or 0  # 0: torchrun takes a free one
        argv = [str(job.python), "-m", "netrun", str(job.bin / "torchrun")]  # netrun: see runrecord/netrun.py
        argv += flags(nnodes=1, nproc_per_node=job.num_processes)
        argv += flags(rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}", rdzv_conf="is_host=1")
        argv += flags(local_addr="127.0.0.1", max_restarts=job.recipe["max_restarts"])
        argv += self._logs(job) + job.program_and_settings
        interface = "lo0" if sys.platform == "darwin" else "lo"
        return [Process("torchrun", argv, job.environment(GLOO_SOCKET_IFNAME=interface))]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """One torchrun on each host; they meet at the head."""
        started, timeout = [], job.cluster["start_timeout_seconds"]
        for node in hosts.nodes:
            argv = [str(job.bin / "torchrun"), *flags(nnodes=len(hosts.nodes), nproc_per_node=node.slots)]
            argv += flags(rdzv_backend="c10d", rdzv_endpoint=f"{hosts.head.address}:{job.cluster['port']}")
            # Without is_host and local_addr, hosts that do not know each other's names wait for ever.
            is_host = int(node is hosts.head)
            argv += flags(rdzv_id=job.run_dir.name, rdzv_conf=f"is_host={is_host},join_timeout={timeout}")
            argv += flags(local_addr=node.address, max_restarts=job.recipe["max_restarts"])
            argv += self._logs(job) + job.program_and_settings
            environment = job.environment(GLOO_SOCKET_IFNAME=node.interface, NCCL_SOCKET_IFNAME=node.interface)
            started.append(Process(f"torchrun-{node.name}", argv, environment, host=node.address))
        return started

    def on_slurm(self, job: Job) -> str:
        """srun starts one torchrun on each node, as PyTorch's tutorials do."""
        per_node = job.num_workers // job.cluster["num_nodes"]
        argv = [str(job.bin / "torchrun"), *flags(nnodes='"$SLURM_NNODES"', nproc_per_node=per_node)]
        argv += flags(rdzv_backend="c10d", rdzv_endpoint=f'"$head:{job.cluster["port"]}"')
        argv += flags(rdzv_id='"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"')
        argv += flags(rdzv_conf='"is_host=$((SLURM_NODEID == 0))"', local_addr='"$address"')
        argv += flags(max_restarts=job.recipe["max_restarts"]) + [shlex.quote(w) for w in job.program_and_settings]
        on_node = shlex.quote(f"{WHO_AM_I}\nexec {' '.join(argv)}")
        options = "--cpus-per-task=$SLURM_CPUS_PER_TASK --kill-on-bad-exit=1"
        return f"export head\nsrun {options} bash -c {on_node}"

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """Kubeflow Trainer's TrainJob. Each pod runs torchrun with one worker.

        Trainer sets environment variables by which the pods find each other.
        """
        argv = ["torchrun", *flags(nproc_per_node=1, max_restarts=job.recipe["max_restarts"]), *pods.program[1:]]
        nodes = pods.group("node", pods.template("node", [], restart="Never"), is_trainer=True)
        return pods.objects(*pods.train_job({"torch": {}}, pods.recorded(argv), [nodes]))

    def _replicas(self, job: Job) -> Process:
        """torchft's lighthouse, and for each worker a torchrun that starts it again when it dies.

        Source: "Getting Started" in torchft's README.
        """
        network = os.environ.get(self.network_switch, "own")
        if network == "host" and not job.cluster["port"]:
            raise UserError(
                f"{self.network_switch}=host with recipe.mode=ft_ddp: all runs would share one port; set cluster.port"
            )
        # In a network of the run's own every port is free.
        port, interface = job.cluster["port"] or 29510, "lo0" if sys.platform == "darwin" else "lo"
        lighthouse = [str(job.bin / "torchft_lighthouse"), "--bind", f"[::]:{port}"]
        lighthouse += ["--min_replicas", str(job.recipe["min_workers"]), "--heartbeat_timeout_ms", "5000"]
        torchrun = [str(job.bin / "torchrun"), *flags(nnodes=1, nproc_per_node=1)]
        torchrun += flags(rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", rdzv_conf="is_host=1")
        torchrun += flags(local_addr="127.0.0.1", max_restarts=job.recipe["max_restarts"], tee=3)
        script = str(job.run_dir / "replicas.sh")
        files = {
            script: REPLICAS.format(
                lighthouse=shlex.join(lighthouse),
                torchrun=shlex.join(torchrun),
                program=shlex.join(job.program_and_settings),
                logs=shlex.quote(str(job.run_dir / "logs/torchrun")),
                last=job.num_workers - 1,
                num_workers=job.num_workers,
                port=port,
            )
        }
        environment = job.environment(GLOO_SOCKET_IFNAME=interface, RUST_LOG="warn")  # six lines a step otherwise
        # netrun: all that torchft has listens on all addresses, and a worker unpickles what another one sends it.
        environment[self.network_switch] = network
        return Process("torchrun", [str(job.python), "-m", "netrun", "sh", script], environment, files=files)

    def _logs(self, job: Job) -> list[str]:
        """Each line with its rank, and a file for each rank."""
        return flags(tee=3, log_dir=job.run_dir / "logs/torchrun")
