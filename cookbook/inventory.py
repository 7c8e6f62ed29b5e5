"""The list of hosts that a run may use, from a YAML file. `infra/` writes one after an apply, or a person does.

hosts:
  - {name: head, address: 10.0.0.4, slots: 2}          # the first one is the head: launchers and services run there
  - {name: worker1, address: 10.0.0.5, slots: 2, gpus: 2}
ssh: {user: ubuntu, port: 22, key: ~/.ssh/id_ed25519, known_hosts: ~/.ssh/known_hosts}
shared: false                                          # true: all hosts see this machine's files under the same paths
services: services                                     # default: the folder `services` beside this file

The word `skypilot` instead of a file means the nodes of the SkyPilot task in which the driver runs (infra/skypilot).

`address` is an IP address of the host, by which the hosts reach each other. `slots` is the number of workers that it
takes (default: 1). `gpus` is a note for people (default: 0): workers find out themselves which GPUs their host has, and
use them when there is one for each worker. `ssh` may be left out, and so may each of its keys.
`services` is the folder with the files of the Spark, Dask and Ray clusters that stay up on the hosts (services.py).
"""

import contextlib
import getpass
import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import psutil
import yaml

from cookbook import UserError
from cookbook.job import Settings

SKYPILOT = "skypilot"
SKYPILOT_KEY = "~/.ssh/sky-cluster-key"  # its nodes reach each other by it
HOST_KEYS = {"name": str, "address": str, "slots": int, "gpus": int}
SSH_KEYS = {"user": str, "port": int, "key": str, "known_hosts": str}


class Host(TypedDict):
    """A host that a run may use."""

    slots: int  # how many workers may run there
    gpus: int
    name: str
    address: str


class Inventory(TypedDict):
    """The content of an inventory file. Paths are absolute, and nothing is left out."""

    hosts: list[Host]
    ssh: dict[str, Any]  # some of SSH_KEYS
    shared: bool  # whether all hosts see this machine's files under the same paths
    services: str


class EachOnce(yaml.SafeLoader):
    """Takes no key twice: of two lists of hosts, one pasted below the other, YAML itself would keep the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {twice[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> Inventory:
    """Reads an inventory file, or the one in a folder.

    Raises UserError, with what was found and what was expected, for a file that does not say which hosts there are.
    """
    if str(path) == "???":  # Hydra's word for a setting without a default
        raise UserError(
            "cluster.inventory is not set: cluster=hosts needs a file with the list of hosts (docs/places.md has one), "
            "or a folder of infra/ after `make infra-up`: cluster.inventory=hosts.yaml"
        )
    if str(path) == SKYPILOT:
        return nodes_of_skypilot(os.environ)
    file = Path(path).expanduser()
    file = file / "inventory.yaml" if file.is_dir() else file
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), EachOnce)
    except OSError as error:
        raise UserError(
            f"cluster.inventory={path}: {error.strerror}: {file}; expected a list of hosts, as conf/cluster/hosts.yaml "
            "describes it, or a folder of infra/ after `make infra-up`"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no UTF-8: save it in that encoding") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("hosts"), list) or not content["hosts"]:
        raise UserError(f"{file}: expected `hosts:`, a list of at least one host with name, address and slots")
    _check(content, {"hosts": list, "ssh": dict, "shared": bool, "services": str}, str(file))
    hosts = [_host(entry, file) for entry in content["hosts"]]
    named = {"name": [host["name"] for host in hosts], "address": [host["address"] for host in hosts]}
    for key, values in named.items():
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(
                f"{file}: the {key} {twice[0]} stands there twice; each host once, with as many slots as it has"
            )
    ssh = content.get("ssh") or {}
    _check(ssh, SSH_KEYS, f"{file}, ssh")
    _check_ssh(ssh, file)
    return {
        "hosts": hosts,
        "ssh": {
            key: str(Path(value).expanduser()) if key in ("key", "known_hosts") else value for key, value in ssh.items()
        },
        "shared": bool(content.get("shared")),
        "services": str((file.parent / Path(content.get("services") or "services").expanduser()).resolve()),
    }


def nodes_of_skypilot(environment: Mapping[str, str]) -> Inventory:
    """The nodes of a SkyPilot task as hosts, with a worker for each GPU. Raises UserError outside of a task.

    Source of the variables: "Distributed Multi-Node Jobs" in SkyPilot's documentation.
    """
    addresses = environment.get("SKYPILOT_NODE_IPS", "").split()
    if not addresses:
        raise UserError(
            "cluster=skypilot: SKYPILOT_NODE_IPS is not set; the driver runs on the first node of a SkyPilot task, as "
            "infra/skypilot/task.yaml starts it: sky launch -c mine infra/skypilot/task.yaml --env RECIPE=pytorch"
        )
    gpus = int(environment.get("SKYPILOT_NUM_GPUS_PER_NODE") or 0)
    names = [f"node{number}" for number in range(len(addresses))]
    hosts = [
        Host(slots=max(1, gpus), gpus=gpus, name=name, address=address)
        for name, address in zip(names, addresses, strict=True)
    ]
    ssh = {"user": getpass.getuser(), "key": str(Path(SKYPILOT_KEY).expanduser())}
    return {"hosts": hosts, "ssh": ssh, "shared": False, "services": str(Path("services").resolve())}


def _host(entry: object, file: Path) -> Host:
    if not isinstance(entry, dict):
        raise UserError(f"{file}: {entry!r} is no host; expected name, address and slots")
    _check(entry, HOST_KEYS, f"{file}, host {entry.get('name', '?')}")
    for key in ("name", "address"):
        if not entry.get(key):
            raise UserError(f"{file}: a host without {key}: {entry}")
        # Both become words of commands. ssh must not take them for an option, nor a shell for another command.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", entry[key]):
            raise UserError(f"{file}: {key}={entry[key]!r}: expected letters, digits, dots and dashes")
    if re.fullmatch(r"[0-9.]+", entry["address"]):
        try:
            ipaddress.ip_address(entry["address"])
        except ValueError:
            raise UserError(f"{file}: address {entry['address']} of {entry['name']} is no IP address") from None
    if ":" in entry["address"]:
        raise UserError(f"{file}: address {entry['address']} of {entry['name']}: expected an IPv4 address, or a name")
    given = {key: entry[key] for key in ("slots", "gpus") if entry.get(key) is not None}
    host = Host(slots=given.get("slots", 1), gpus=given.get("gpus", 0), name=entry["name"], address=entry["address"])
    if host["gpus"] < 0:
        raise UserError(f"{file}: {host['name']} has gpus={host['gpus']}: expected 0 or more")
    if host["slots"] < 1:
        raise UserError(f"{file}: {host['name']} has slots={host['slots']}: expected at least 1 worker")
    return host


def _check_ssh(ssh: Settings, file: Path) -> None:
    """Raises UserError for a value that ssh or rsync would take for an option, a command, or more than one word."""
    user, port = ssh.get("user"), ssh.get("port")
    if user is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?", user):
        raise UserError(
            f"{file}: ssh.user={user!r}: expected a user's name: letters, digits, dots and dashes, and no dash first"
        )
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"{file}: ssh.port={port}: expected a number from 1 to 65535")
    for key in ("key", "known_hosts"):
        if (path := ssh.get(key)) and (path.startswith("-") or re.search(r'[\x00-\x1f"\'\\]', path)):
            raise UserError(
                f"{file}: ssh.{key}={path!r}: expected a path without quotes and backslashes, and no dash first"
            )


def _check(content: Settings, kinds: Mapping[str, type], where: str) -> None:
    """Raises UserError for an unknown key, or a value of the wrong kind."""
    for key, value in content.items():
        if key not in kinds:
            raise UserError(f"{where}: {key!r} is unknown; there are: {', '.join(kinds)}")
        if value is not None and (not isinstance(value, kinds[key]) or (kinds[key] is int and isinstance(value, bool))):
            raise UserError(f"{where}: {key}={value!r}: expected {kinds[key].__name__}")


def with_hosts(cluster: Settings) -> Settings:
    """A cluster's settings with the hosts of its inventory; `num_workers: null` becomes the number of all slots."""
    if cluster["kind"] != "hosts":
        return cluster
    found = load(cluster["inventory"])
    slots = sum(host["slots"] for host in found["hosts"])
    num_workers = cluster["num_workers"] or slots
    if num_workers > slots:
        raise UserError(
            f"cluster.num_workers={num_workers} is more than the {slots} slots of {cluster['inventory']}; "
            "fewer, or more slots there"
        )
    # The first slots are taken, host by host; a host that gets no worker is left alone.
    left: int = num_workers
    hosts: list[Host] = []
    for host in found["hosts"]:
        taken = min(host["slots"], left)
        left -= taken
        if taken:
            hosts.append({**host, "slots": taken})
    return {**cluster, **found, "hosts": hosts, "num_workers": num_workers}


def access_to(services: str, recipe: str) -> Settings | None:
    """How to reach a recipe's running cluster (services.py): {address, secrets, ...}. None: there is none.

    `services`: the inventory's folder of that name. Raises UserError when the process is gone that kept the cluster up.
    """
    path = Path(services) / recipe / "access.json"
    if not path.exists():
        return None
    state = json.loads(path.with_name("supervisor.json").read_text())
    if state["host"] == socket.gethostname() and not supervisor(state):
        raise UserError(
            f"{path}: the cluster that it describes is gone. `make services-up RECIPE={recipe} INVENTORY=...` starts "
            "it again; cluster.use_services=false: the run starts its own"
        )
    access: Settings = json.loads(path.read_text())
    return access


def supervisor(state: Settings) -> psutil.Process | None:
    """The process that keeps a service up; None when it is gone. `state`: the service's supervisor.json."""
    with contextlib.suppress(KeyError, psutil.Error):
        process = psutil.Process(state["pid"])
        if process.status() != psutil.STATUS_ZOMBIE and "cookbook.tools.services" in process.cmdline():
            return process
    return None
