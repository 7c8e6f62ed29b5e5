"""Ray ("Starting Ray", "Launching an On-Premise Cluster" and "KubeRay" in Ray's documentation)."""

from __future__ import annotations

import json
import secrets
import shlex
from typing import TYPE_CHECKING, ClassVar

from cookbook import UserError, machine
from cookbook.job import Hosts, Job, Process, Settings, flags
from cookbook.systems import Cluster, System, is_here, running_or_own_cluster

if TYPE_CHECKING:
    from cookbook.pods import Pods

# Ray Train calls the training in a thread. glibc gives threads memory arenas of their own, where job.ALLOCATOR has no
# effect.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


class Ray(System):
    kubernetes_kinds: ClassVar = {"RayJob": "ray.io/v1"}
    network_switch = "RAYRUN_NETWORK"
    address_form = (r"[^\s:/]+:\d+|\[[0-9a-fA-F:]+\]:\d+", "host:6379")
    places_with_port = ("hosts", "slurm")
    kubernetes_ends: ClassVar = {"RayJob": {"Complete": True, "Failed": False}}

    def check(self, config: Settings, place: str) -> None:
        super().check(config, place)
        if place == "kubernetes" and config["recipe"].get("elastic", False):
            raise UserError(
                "recipe.elastic=true was not tried with cluster=kubernetes, where KubeRay replaces lost pods: choose "
                "cluster=local or cluster=hosts, or false"
            )
        if place == "slurm" and config["recipe"].get("elastic", False):
            raise UserError(
                "recipe.elastic=true: a Slurm job has a fixed size; set recipe.elastic=false, or use cluster=hosts"
            )
        if place == "local" and not config["cluster"]["ray_address"]:
            machine.check_object_store(config["recipe"]["object_store_mb"], machine.memory_bytes())

    def on_local(self, job: Job) -> list[Process]:
        """The program, on a cluster that runrecord/rayrun.py starts for it, or on that of cluster.ray_address."""
        environment, client = job.environment(**ONE_ARENA), self._client(job)
        if address := job.cluster["ray_address"]:
            environment["RAY_ADDRESS"] = address
            if not is_here(f"//{address}"):
                # A client shows the cluster's token: RAY_AUTH_TOKEN, or the file that `ray get-auth-token` writes.
                environment["RAY_AUTH_MODE"] = "token"
            return [Process("ray", [str(job.python), *client], environment)]
        slots = self._slots_here(job)
        num_cpus = slots[0] * self._cpus_per_worker(job) + self._other_cpus(job)
        options = flags(num_cpus=num_cpus, object_store_mb=job.recipe["object_store_mb"])
        if self._is_elastic(job):
            options += flags(slots=slots[0])
            for more in slots[1:]:
                options += flags(node=f"{more * self._cpus_per_worker(job)}:{more}")
        argv = [str(job.python), "-m", "rayrun", *options, *flags(temp_dir=job.run_dir / "scratch/ray")]
        return [Process("rayrun", [*argv, *client], environment)]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """The program on the head, with a Ray cluster on the hosts."""
        started, access = running_or_own_cluster(self, job, hosts)
        environment = self._environment(job) | {"RAY_ADDRESS": access["address"]}
        secret, argv = {"RAY_AUTH_TOKEN": access["token"]}, [str(job.python), *self._client(job)]
        return [*started, Process("ray", argv, environment, host=hosts.head.address, secrets=secret)]

    def cluster_on_hosts(self, job: Job, hosts: Hosts) -> Cluster:
        """`ray start` on each host, with a token of the run's own."""
        port, token = job.cluster["port"], secrets.token_hex(32)
        access = {"address": f"{hosts.head.address}:{port}", "token": token}
        # A socket's path has 107 bytes at most, and the run folder's path is too long for Ray's sockets. All users of
        # a host can write to /tmp. So the folder's name is random: nobody can guess it and make the folder first.
        temp = f"/tmp/ray-{secrets.token_hex(8)}"
        started = []
        for node in hosts.nodes:
            num_cpus = node.slots * self._cpus_per_worker(job)
            argv = [str(job.bin / "ray"), "start", "--block", "--disable-usage-stats"]
            argv += flags(node_ip_address=node.address)
            if node is hosts.head:
                num_cpus += self._other_cpus(job)
                argv += ["--head", *flags(port=port, include_dashboard="false", temp_dir=temp)]
            else:
                argv += flags(address=access["address"])
            argv += flags(num_cpus=num_cpus, object_store_memory=job.recipe["object_store_mb"] << 20)
            if self._is_elastic(job):
                argv += flags(resources=json.dumps({"slot": node.slots}))
            started.append(
                Process(
                    f"ray-{node.name}",
                    argv,
                    self._environment(job),
                    host=node.address,
                    secrets={"RAY_AUTH_TOKEN": token},
                    service=True,
                    comes_back=self._is_elastic(job) and node is not hosts.head,
                    ready="Ray runtime started",
                    cleanup_paths=(temp,),
                )
            )
        return started, access

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """KubeRay's RayJob: a cluster of its own, and the program as its job.

        The cluster is a head without workers, and a pod for each worker.
        """
        program = [*pods.program, f"num_workers={pods.num_workers}"]
        return pods.objects(
            *pods.from_template(
                "ray",
                entrypoint=shlex.join(pods.recorded(program, "--all")),
                environment={**ONE_ARENA, "RAY_USAGE_STATS_ENABLED": "0"},
                head_cpus=self._other_cpus(job),  # the head has room for what is not a worker, as on hosts
                worker_cpus=self._cpus_per_worker(job),
                object_store_bytes=job.recipe["object_store_mb"] << 20,
                ray_version=pods.versions["ray"],
            )
        )

    def _is_elastic(self, job: Job) -> bool:
        return bool(job.recipe.get("elastic", False))

    def _slots_here(self, job: Job) -> list[int]:
        """The workers of each Ray node on this machine: one node, or two in an elastic run, which may lose one."""
        if not self._is_elastic(job) or job.num_workers == 1:
            return [job.num_workers]
        return [-(-job.num_workers // 2), job.num_workers // 2]

    def _client(self, job: Job) -> list[str]:
        return [*job.program_and_settings, f"num_workers={job.num_workers}"]

    def _cpus_per_worker(self, job: Job) -> int:
        cpus_per_trial: int = job.recipe.get("cpus_per_trial", 1)
        return max(job.num_threads, cpus_per_trial)

    def _other_cpus(self, job: Job) -> int:
        """Logical CPUs beside those of the workers: for Ray Data's tasks, and for RLlib's learners."""
        num_cpus: int = job.recipe["num_data_cpus"] + job.recipe.get("num_learners", 0)
        return num_cpus

    def _environment(self, job: Job) -> dict[str, str]:
        return job.environment(**ONE_ARENA, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0")
