"""TensorFlow, which has no launcher of its own: each process finds its task and all others in TF_CONFIG.

Source: "Distributed training with TensorFlow" in TensorFlow's documentation.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cookbook import UserError
from cookbook.job import Hosts, Job, Node, Process, Settings, flags
from cookbook.systems import TRAIN_JOB_ENDS, TRAIN_JOB_KINDS, System

if TYPE_CHECKING:
    from cookbook.pods import Pods

POD_PORT = 2222


class TensorFlow(System):
    kubernetes_kinds, kubernetes_ends, kubernetes_without_claim = TRAIN_JOB_KINDS, TRAIN_JOB_ENDS, True
    network_switch, places_with_port = "TFRUN_NETWORK", ("local", "hosts", "slurm")

    def check(self, config: Settings, place: str) -> None:
        super().check(config, place)
        if place != "local" and config["recipe"]["max_restarts"]:
            raise UserError(
                f"recipe.max_restarts={config['recipe']['max_restarts']}: with cluster={place} a lost process ends the "
                "run, and the same command goes on from its checkpoint; leave it out"
            )

    def on_local(self, job: Job) -> list[Process]:
        """runrecord/tfrun.py gives each process its TF_CONFIG. When the chief has ended, it ends ps and workers."""
        argv = [str(job.python), "-m", "tfrun", *flags(num_workers=job.num_processes)]
        if job.recipe["driver"].get("chief"):
            argv += ["--chief", *flags(num_ps=job.recipe["num_ps"])]
        if job.cluster["port"]:
            argv += flags(port=job.cluster["port"])
        argv += flags(max_restarts=job.recipe["max_restarts"]) + job.program_and_settings
        return [Process("tfrun", argv, job.environment())]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """Each process with its TF_CONFIG, by ssh.

        A chief works on the head; workers and ps serve it then. A lost process ends the run, and the same command goes
        on from the checkpoint.
        """
        has_chief, first_port = job.recipe["driver"].get("chief"), job.cluster["port"]
        placed: list[tuple[str, Node]] = [("worker", node) for node in hosts.nodes for _ in range(node.slots)]
        if has_chief:
            placed += [("ps", hosts.nodes[index % len(hosts.nodes)]) for index in range(job.recipe["num_ps"])]
            placed += [("chief", hosts.head)]
        members: dict[str, list[str]] = {}
        tasks: list[tuple[str, int, Node]] = []
        for number, (kind, node) in enumerate(placed):
            addresses = members.setdefault(kind, [])
            tasks.append((kind, len(addresses), node))
            addresses.append(f"{node.address}:{first_port + number}")
        started = []
        for kind, index, node in tasks:
            task = json.dumps({"cluster": members, "task": {"type": kind, "index": index}})
            environment = job.environment(TF_CONFIG=task, TFRUN_ATTEMPT="0")
            serves, argv = bool(has_chief) and kind != "chief", [str(job.python), *job.program_and_settings]
            started.append(Process(f"{kind}-{index}", argv, environment, host=node.address, service=serves))
        return started

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """A TrainJob with a runtime of its own.

        Trainer sets no TF_CONFIG, but each pod has an index and a name in the DNS.
        """

        def names(group: str, count: int) -> str:
            return ",".join(f"{pods.name}-{group}-0-{index}.{pods.name}:{POD_PORT}" for index in range(count))

        if not job.recipe["driver"].get("chief"):
            argv = pods.recorded(pods.program, "--tf-workers", names("node", pods.num_workers))
            nodes = pods.group("node", pods.template("node", [], restart="Never"), is_trainer=True)
            return pods.objects(*pods.train_job({}, argv, [nodes]))
        # The chief is what the TrainJob waits for. Workers and ps serve it, and are told to end when it has ended.
        counts = {"worker": pods.num_workers, "ps": job.recipe["num_ps"]}
        members = ["--tf-workers", names("worker", counts["worker"]), "--tf-ps", names("ps", counts["ps"])]
        members += ["--tf-chief", names("chief", 1), "--tf-task"]
        groups = [pods.group("chief", pods.template("chief", [], restart="Never"), is_trainer=True)]
        for kind, count in counts.items():
            template = pods.template(kind, pods.recorded(pods.program, *members, kind), restart="Never")
            groups.append(pods.group(kind, template, count=count))
        argv = pods.recorded(pods.program, *members, "chief")
        return pods.objects(*pods.train_job({}, argv, groups, num_nodes=1))
