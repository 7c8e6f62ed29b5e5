"""How each system starts its workers: one module a system, with one class in it.

A recipe names its system in `driver.system`. The class's method `on_<place>` says how the system is started in a place.
A place for which the class has no method is refused. Nothing is started here: the methods say what to start.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cookbook import UserError
from cookbook.job import Hosts, Job, Process, Settings
from cookbook.settings.files import is_changed

if TYPE_CHECKING:
    from cookbook.pods import Pods

Cluster = tuple[list[Process], Settings]  # the processes of a cluster, and what its clients need: address, secrets

# Of Kubeflow Trainer: see trainjob.yaml.j2.
TRAIN_JOB_KINDS = dict.fromkeys(("TrainJob", "TrainingRuntime"), "trainer.kubeflow.org/v1alpha1")
TRAIN_JOB_ENDS = {"TrainJob": {"Complete": True, "Failed": False}}

# On a node of a Slurm job: its address for the others, and the interface that has it.
WHO_AM_I = """\
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR==1 {print $1}')
interface=$(ip -o -4 addr show | awk -v a="$address/" 'index($4, a) == 1 {print $2; exit}')
export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface"""


class System:
    """How one system is started.

    A method that is not overridden raises UserError, which names the places where the system works.
    """

    # Kinds of Kubernetes objects that the system makes: kind -> API version.
    kubernetes_kinds: ClassVar[Mapping[str, str]] = {}
    # Those of them that end by themselves: kind -> {state in its status: whether all went well}.
    kubernetes_ends: ClassVar[Mapping[str, Mapping[str, bool]]] = {}
    # True: the recipe's own program talks to the Kubernetes cluster. The driver only starts it, on this machine.
    is_kubernetes_client: ClassVar[bool] = False
    # Whether Kueue can let its jobs wait in a queue.
    kueue: ClassVar[bool] = True
    # Whether the pods need no claim that all of them see: each writes its own record into its log. Then data and
    # checkpoints can be in an object store.
    kubernetes_without_claim: ClassVar[bool] = False
    # The variable that keeps the launcher of this machine in the machine's network. Else it has a network of its own,
    # with nothing but loopback. Empty: the system has no such launcher.
    network_switch: ClassVar[str] = ""
    # How the address of a running cluster looks (a pattern), and an example of one.
    address_form: ClassVar[tuple[str, str]] = ("", "")
    # The places in which the workers' first meeting is at cluster.port; elsewhere the system finds a free one itself.
    places_with_port: ClassVar[Collection[str]] = ()

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def check(self, config: Settings, place: str) -> None:
        """Raises UserError, before any work, when the system cannot start its workers in that place.

        The reason may be the settings, or what this machine lacks.
        """
        if place not in self.places():
            raise self.refusal(place)
        self._check_port(config, place)
        check_one_process(config, place)
        self._check_address(config)
        if place == "hosts" and self.has_cluster():
            require_shared_files(config)
        if place in ("hosts", "slurm") and self.has_cluster():
            refuse_address(config, place)
        if place == "local":
            self.check_reaches_store(config, os.environ)

    def _check_port(self, config: Settings, place: str) -> None:
        """Raises UserError for a port that was chosen where nothing would heed it."""
        if place not in self.places_with_port and is_changed("port", config, place):
            heeded = f"it does with cluster={', '.join(self.places_with_port)}" if self.places_with_port else "nowhere"
            raise UserError(
                f"cluster.port={config['cluster']['port']}: with cluster={place}, {self.name} finds free ports itself "
                f"and would take no notice of it ({heeded}): leave it out"
            )

    def _check_address(self, config: Settings) -> None:
        """Raises UserError for what cannot be the address of a running cluster of this system."""
        setting, (form, example) = config["recipe"]["driver"].get("address"), self.address_form
        address = config["cluster"].get(setting)
        if form and address and not re.fullmatch(form, address):
            raise UserError(f"cluster.{setting}={address}: expected an address like {example}, or null for none")

    def check_reaches_store(self, config: Settings, environment: Mapping[str, str]) -> None:
        """Raises UserError when workers on this machine would be in a network that no object store is in."""
        store, switch = config["cluster"].get("storage"), self.network_switch
        running = config["cluster"].get(config["recipe"]["driver"].get("address"))  # in a network that is not ours
        if store and switch and not running and environment.get(switch) != "host":
            raise UserError(
                f"cluster.storage={store}: on this machine the workers of {self.name} have a network of their own with "
                f"nothing but loopback, because the launcher's ports would be open to everybody. {switch}=host in "
                "front of the command lets them reach the store; then a firewall must keep strangers out"
            )

    def on_local(self, job: Job) -> list[Process]:
        """The processes on this machine."""
        raise self.refusal("local")

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """The processes on several hosts, services first."""
        raise self.refusal("hosts")

    def cluster_on_hosts(self, job: Job, hosts: Hosts) -> Cluster:
        """A cluster of the system's own on the hosts, which can serve run after run."""
        raise UserError(f"{self.name} has no cluster that could stay up: it starts its workers itself")

    def on_slurm(self, job: Job) -> str | None:
        """The body of a job script for Slurm; it runs on the job's first node, `$head`.

        None: what `on_hosts` says, started by srun on the job's nodes (places/slurm/allocation.py).
        """
        if not self._has("on_hosts"):
            raise self.refusal("slurm")
        return None

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """What is submitted to a Kubernetes cluster, as `pods.objects` makes it."""
        raise self.refusal("kubernetes")

    def places(self) -> list[str]:
        """The places in which this system can be started."""
        own = [name.removeprefix("on_") for name in dir(self) if name.startswith("on_") and self._has(name)]
        return sorted({*own, *(["slurm"] if "hosts" in own else [])})

    def has_cluster(self) -> bool:
        """Whether `cluster_on_hosts` makes one."""
        return self._has("cluster_on_hosts")

    def refusal(self, place: str) -> UserError:
        return UserError(
            f"cluster={place}: {self.name} starts no workers there; it does with cluster={', '.join(self.places())}"
        )

    def _has(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(System, method, None)


def names() -> list[str]:
    """All systems: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def load(name: str) -> System:
    """The system of that name. Raises UserError for an unknown one."""
    if name not in names():
        raise UserError(f"driver.system={name!r} is unknown; there are: {', '.join(names())}")
    module = importlib.import_module(f"cookbook.systems.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, System) and value.__module__ == module.__name__
    ]
    return found()


def is_here(address: str) -> bool:
    """Whether an address like tls://127.0.0.1:8786 is one of this machine's loopback."""
    return re.search(r"//(localhost|127\.[0-9.]+|\[::1\])(:|/|$)", address) is not None


def check_one_process(config: Settings, place: str) -> None:
    """Raises UserError where a place would start more processes than the chosen mode has: the run would not count."""
    wanted, num_workers = config["recipe"]["driver"].get("num_processes"), config["cluster"]["num_workers"]
    if place != "local" and wanted and num_workers != wanted:
        mode = f"recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else "this recipe"
        raise UserError(
            f"{mode} is {wanted} process on one machine, and cluster={place} would "
            f"start {num_workers}: choose cluster=local, or cluster.num_workers={wanted}"
            + (" cluster.num_nodes=1" if place == "slurm" else "")
        )


def require_shared_files(config: Settings) -> None:
    """Raises UserError where workers could not read what other workers have written: tables, parts, checkpoints."""
    cluster, system = config["cluster"], config["recipe"]["driver"]["system"]
    # What a recipe with `driver.storage` writes for other workers goes into the object store.
    if len(cluster["hosts"]) > 1 and not cluster["shared"] and not cluster["storage"]:
        raise UserError(
            f"the workers of {system} read files that other workers wrote: the hosts of {cluster['inventory']} must "
            "see this checkout, its cache and output_root under the same paths (a network's disk), and the inventory "
            "say `shared: true`; or, for recipes that can, cluster.storage=s3://bucket/prefix"
        )


def refuse_address(config: Settings, place: str) -> None:
    """Raises UserError for the address of a running cluster, which only cluster=local uses."""
    setting = config["recipe"]["driver"].get("address")
    if address := config["cluster"].get(setting):
        raise UserError(
            f"cluster.{setting}={address} is for cluster=local: with cluster={place} a run starts its own cluster"
            + (", or uses one that `make services-up` has started" if place == "hosts" else "")
        )


def offer(job: Job) -> dict[str, str | int]:
    """What a cluster of this job has. A run may use the cluster if it needs no more; `environment` must be equal.

    `environment`: the folder of the cluster's Python.
    """
    return {
        "environment": str(job.python.parent.parent),
        "workers": job.num_workers,
        "memory_mb": job.recipe.get("memory_mb", 0),
    }


def running_or_own_cluster(system: System, job: Job, hosts: Hosts) -> Cluster:
    """A cluster for this run alone, or no processes where a running one (services.py) has what the run needs."""
    service = hosts.service
    if not service:
        return system.cluster_on_hosts(job, hosts)
    mine = offer(job)
    if service["environment"] != mine["environment"] or any(
        service[key] < mine[key] for key in ("workers", "memory_mb")
    ):
        theirs = ", ".join(f"{key} {service[key]}" for key in mine)
        needed = ", ".join(f"{key} {value}" for key, value in mine.items())
        raise UserError(
            f"the running cluster {service['address']} has {theirs}; this run needs {needed}: start it anew with these "
            "settings (make services-down, then make services-up with them as ARGS), or cluster.use_services=false"
        )
    return [], service
