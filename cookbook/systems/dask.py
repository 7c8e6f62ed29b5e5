"""Dask ("Deploy Dask Clusters" in Dask's documentation): the program is a client of a Dask cluster.

It starts a cluster, or uses a running one.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cookbook import UserError
from cookbook.job import Hosts, Job, Process, Settings, flags
from cookbook.systems import Cluster, System, is_here, running_or_own_cluster

if TYPE_CHECKING:
    from cookbook.pods import Pods

PORT = 8786  # of a scheduler's pod


class Dask(System):
    places_with_port = ("hosts", "slurm")
    address_form = (r"(tls|tcp|ucx|wss?)://\S+:\d+", "tls://host:8786 (tcp:// on this machine)")
    kubernetes_kinds: ClassVar = {"DaskJob": "kubernetes.dask.org/v1"}
    kueue = False  # it knows no DaskJob
    kubernetes_ends: ClassVar = {"DaskJob": {"Successful": True, "Failed": False}}

    def check(self, config: Settings, place: str) -> None:
        mode = config["recipe"].get("mode", "distributed")
        if place != "local" and mode != "distributed":
            raise UserError(
                f"recipe.mode={mode} works on one machine, without a cluster, and cluster={place} would start one for "
                "nothing: choose cluster=local, or recipe.mode=distributed"
            )
        super().check(config, place)

    def on_local(self, job: Job) -> list[Process]:
        """The client. It starts an embedded cluster unless Dask finds a scheduler's address in the environment."""
        # Left alone, workers put their temporary files into /tmp/dask-scratch-space, which all runs share.
        environment = job.environment(
            DASK_TEMPORARY_DIRECTORY=str(job.run_dir / "scratch"), DASK_LOGGING__DISTRIBUTED="warning"
        )
        if address := job.cluster["dask_scheduler"]:
            if not address.startswith("tls://") and not is_here(address):
                raise UserError(
                    f"cluster.dask_scheduler={address} leaves this machine unencrypted: expected tls://...; "
                    "Dask's documentation on TLS/SSL has the settings"
                )
            environment["DASK_SCHEDULER_ADDRESS"] = address
        return [Process("dask", self._client(job), environment)]

    def on_hosts(self, job: Job, hosts: Hosts) -> list[Process]:
        """The client on the head, with a Dask cluster on the hosts."""
        started, access = running_or_own_cluster(self, job, hosts)
        environment = self._encrypted(job, "warning") | {"DASK_SCHEDULER_ADDRESS": access["address"]}
        files = {str(path): access[path.stem] for path in (self._key(job), self._cert(job))}
        client = Process("dask", self._client(job), environment, host=hosts.head.address, files=files)
        return [*started, client]

    def cluster_on_hosts(self, job: Job, hosts: Hosts) -> Cluster:
        """A scheduler on the head and a worker for each slot ("Deploy Dask Clusters: Command Line"), over TLS."""
        address = f"tls://{hosts.head.address}:{job.cluster['port']}"
        key, cert = certificate(job.run_dir.name, [node.address for node in hosts.nodes])
        files = {str(self._key(job)): key, str(self._cert(job)): cert}
        environment = self._encrypted(job, "info")

        def service(name: str, argv: list[str], host: str, ready: str, files: dict[str, str] | None = None) -> Process:
            return Process(name, argv, environment, host=host, files=files or {}, service=True, ready=ready)

        argv = [str(job.python), "-m", "distributed.cli.dask_scheduler", *flags(host=address), "--no-dashboard"]
        started = [service("dask-scheduler", argv, hosts.head.address, "Scheduler at:", files)]
        for node in hosts.nodes:
            for slot in range(node.slots):
                name = f"{node.name}-{slot}"
                argv = [str(job.python), "-m", "distributed.cli.dask_worker", address]
                argv += [*flags(host=f"tls://{node.address}"), "--no-dashboard", "--no-nanny"]
                argv += flags(nthreads=job.num_threads, name=name)
                started.append(service(f"dask-worker-{name}", argv, node.address, "Registered to:"))
        return started, {"address": address, "key": key, "cert": cert}

    def on_kubernetes(self, job: Job, pods: Pods) -> list[Process]:
        """The operator's DaskJob: a cluster of its own over TLS, and the program as its runner.

        Source: "Operator" in Dask Kubernetes' documentation.
        """
        name = f"{pods.name}-scheduler"
        host = f"{name}.{pods.namespace}.svc.cluster.local"
        key, cert = certificate(job.run_dir.name, [host, name])
        address = f"tls://{host}:{PORT}"
        environment = {"DASK_SCHEDULER_ADDRESS": address, "DASK_TEMPORARY_DIRECTORY": "/tmp"}
        environment |= tls_settings(pods.tls_folder / "key.pem", pods.tls_folder / "cert.pem")
        scheduler = ["python", "-m", "distributed.cli.dask_scheduler", *flags(protocol="tls", port=PORT)]
        worker = ["python", "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        worker += flags(nthreads=job.num_threads)
        made = pods.from_template(
            "dask",
            environment=environment,
            scheduler=scheduler,
            worker=worker,
            runner=pods.recorded([*pods.program, f"num_workers={pods.num_workers}"], "--all"),
            port=PORT,
        )
        return pods.objects(*made, secrets={"key.pem": key, "cert.pem": cert})

    def _client(self, job: Job) -> list[str]:
        return [str(job.python), *job.program_and_settings, f"num_workers={job.num_workers}"]

    def _encrypted(self, job: Job, level: str) -> dict[str, str]:
        return job.environment(**tls_settings(self._key(job), self._cert(job))) | {
            "DASK_TEMPORARY_DIRECTORY": str(job.run_dir / "scratch"),
            "DASK_LOGGING__DISTRIBUTED": level,
        }

    def _key(self, job: Job) -> Path:
        return job.run_dir / "scratch/secrets/key.pem"

    def _cert(self, job: Job) -> Path:
        return job.run_dir / "scratch/secrets/cert.pem"


def tls_settings(key: PurePath, cert: PurePath) -> dict[str, str]:
    """Dask's settings as environment variables.

    Scheduler, workers and client all show the same certificate, and refuse a connection that does not show it.
    """
    prefix = "DASK_DISTRIBUTED__COMM"
    settings = {f"{prefix}__REQUIRE_ENCRYPTION": "true", f"{prefix}__TLS__CA_FILE": str(cert)}
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        settings |= {f"{prefix}__TLS__{part}__KEY": str(key), f"{prefix}__TLS__{part}__CERT": str(cert)}
    return settings


def certificate(name: str, addresses: list[str]) -> tuple[str, str]:
    """(key, certificate) in PEM, valid for a year, for one cluster alone: all its processes share them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(a)) if a[0].isdigit() else x509.DNSName(a) for a in addresses]
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=365))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private.decode(), builder.sign(key, hashes.SHA256()).public_bytes(pem).decode()
