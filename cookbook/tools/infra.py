"""Makes and removes machines with terraform (python-terraform); a guard checks the price before anything is made.

Run: make infra-plan|-up|-status|-down TARGET=aws ARGS="infra.variables.ttl_hours=8 infra.max_cost_usd=30"
"""

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cookbook import ROOT, UserError, inventory, settings
from cookbook.files import write_whole
from cookbook.programs import run_program
from cookbook.tools import bootstrapped, leaks, prices, terraform

COMMANDS = ("plan", "up", "status", "down")
# Google Cloud cannot list all kinds of things by label. These commands list what costs most.
LISTED_BY = {
    "gcp": "gcloud compute instances list --filter labels.distributed-ml",
    "gke": "gcloud container clusters list --filter resourceLabels.distributed-ml",
}


class Target:
    """One target of infra/ and its state. `folder` has the plan, the state, the lock and the inventory."""

    def __init__(self, name: str, overrides: Sequence[str] = (), source: str | Path | None = None) -> None:
        self.name, self.source = name, Path(source or ROOT / "infra" / name)
        self.settings = settings.compose_infra(name, overrides)
        check_numbers(self.settings)
        self.folder = Path(self.settings["folder"] or ROOT / "infra" / name).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        given = self.settings["variables"]
        self.variables: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if name == "local":
            self.variables |= {"folder": str(self.folder / "hosts"), "python": sys.executable}
        if "ttl_hours" in self.settings["variables"]:
            self.variables |= {"created": self.created(), "max_cost_usd": self.settings["max_cost_usd"]}
        self.plan_file = self.folder / "plan.tfplan"

    def created(self) -> str:
        """When this set was first made. Its time to live counts from then, however often it is changed."""
        path = self.folder / "created.txt"
        return path.read_text() if path.exists() else datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def call(self, command: str, *arguments: str, failure: str, stream: bool = False, **options: Any) -> str:
        """One command of terraform: see terraform.call."""
        return terraform.call(self.source, self.folder, command, *arguments, failure=failure, stream=stream, **options)

    def init(self) -> None:
        """Fetches providers, and tells terraform where the state is: in a file, or in a bucket; both have a lock."""
        override = self.source / "backend_override.tf"
        if self.settings["state"]:
            kind, backend = terraform.backend_of(
                self.settings["state"], self.name, self.variables.get("region", "us-east-1")
            )
            override.write_text(f'terraform {{\n  backend "{kind}" {{}}\n}}\n')
        else:
            override.unlink(missing_ok=True)
            backend = {"path": str(self.folder / "terraform.tfstate")}
        arguments = [f"-backend-config={key}={value}" for key, value in backend.items()]
        self.call("init", "-input=false", *arguments, failure="terraform cannot be set up here")

    def variables_file(self) -> dict[str, str]:
        """Writes the variables into a file that only this user reads; returns terraform's option that names it."""
        path = self.folder / "variables.tfvars.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(self.variables, indent=1) + "\n")
        return {"var_file": str(path)}

    def plan(self) -> tuple[list[dict[str, Any]], prices.Price]:
        """Plans; returns (what would change, its price until it expires). Raises UserError when the guard says no."""
        self.init()
        options: dict[str, Any] = {"out": str(self.plan_file), "lock_timeout": "5s", **self.variables_file()}
        self.call("plan", "-input=false", failure="terraform cannot plan this", **options)
        self.plan_file.chmod(0o600)
        content = json.loads(self.call("show", "-json", str(self.plan_file), failure="the plan cannot be read"))
        managed = [change for change in content.get("resource_changes", []) if change["mode"] == "managed"]
        changes = [change for change in managed if change["change"]["actions"] != ["no-op"]]
        return changes, self.guard(content)

    def guard(self, plan: Mapping[str, Any]) -> prices.Price:
        """The plan's price until everything expires. Raises UserError when it may not be made: see prices.guard."""
        now = datetime.datetime.now(datetime.UTC)
        return prices.guard(plan, self.variables, self.source / "prices.yaml", self.settings["max_cost_usd"], now)

    def up(self) -> None:
        """Makes or changes the machines; prints how to use them and when they end."""
        changes, price = self.plan()
        print(price.text() if price.lines else "costs nothing")
        if "created" in self.variables:
            (self.folder / "created.txt").write_text(self.variables["created"])
        # `down` needs these again, whatever its own settings are: name, region, and variables without a default.
        (self.folder / "applied.json").write_text(json.dumps(self.variables))
        if not changes:
            print("nothing to change: everything is as it was asked for")
        else:
            failure = "terraform could not make everything; `make infra-down` removes what is there"
            self.call("apply", "-input=false", str(self.plan_file), stream=True, failure=failure)
        found = self.outputs()
        if "next" in found:
            print(found["next"])
        else:
            minutes = self.settings.get("bootstrap_minutes") or 0
            bootstrapped.wait_for_bootstrap(self.name, self.variables, found.get("bootstrap"), minutes)
            self.write_inventory(found)
        if expires := found.get("expires"):
            print(f"everything is terminated at {expires}; make infra-down TARGET={self.name} does it before")

    def outputs(self) -> dict[str, Any]:
        """Terraform's outputs: {name: value}."""
        text = self.call("output", "-json", failure="the outputs cannot be read")
        return {name: entry["value"] for name, entry in json.loads(text or "{}").items()}

    def write_inventory(self, found: Mapping[str, Any]) -> None:
        """Writes inventory.yaml of these outputs; prints the command that uses it."""
        path = self.folder / "inventory.yaml"
        if "inventory" in found:
            text = Path(found["inventory"]).read_text()
        else:
            text = yaml.safe_dump({"hosts": found["hosts"], "ssh": found["ssh"], "shared": False}, sort_keys=False)
        write_whole(path, text)
        shown = path.parent.relative_to(ROOT) if path.is_relative_to(ROOT) else path.parent
        command = f'make recipe-pytorch ARGS="cluster=hosts cluster.inventory={shown}"'
        if self.name == "local":
            print(f"{command} runs on it")
            for name in self.variables.get("services", []):
                if inventory.access_to(inventory.load(path)["services"], name):
                    print(command.replace("recipe-pytorch", f"recipe-{name}"), "uses its running cluster")
                else:
                    print(f"its {name} cluster has ended: make services-up RECIPE={name} INVENTORY={shown}")
        else:
            print(f"on the head, with {path} and your key (`ssh.key` in it) brought there: {command}")

    def status(self) -> int:
        """Prints what the state knows; returns how many resources that are."""
        self.init()
        text = self.call("show", "-json", failure="the state cannot be read")
        resources = list(terraform.resources_of(json.loads(text or "{}").get("values", {}).get("root_module", {})))
        for resource in resources:
            print(resource["address"])
        print(f"{len(resources)} resources" if resources else "nothing is there")
        return len(resources)

    def down(self) -> None:
        """Destroys what the state knows, then looks for anything else that has this set's tag.

        Raises UserError when something is left.
        """
        applied = self.folder / "applied.json"
        if applied.exists():
            self.variables = json.loads(applied.read_text())
        elif "created" in self.variables:
            self.variables.setdefault("ttl_hours", 1)  # terraform wants a value even to remove things
        self.init()
        self.forget_a_gone_cluster()
        # force=None: python-terraform would send -force, which terraform no longer knows.
        options = {"force": None, "auto_approve": True, **self.variables_file()}
        failure = "terraform could not remove everything; run it again"
        self.call("destroy", "-input=false", stream=True, failure=failure, **options)
        (self.folder / "inventory.yaml").unlink(missing_ok=True)
        self.plan_file.unlink(missing_ok=True)
        if left := self.left_over():
            raise UserError(
                f"still there, with the tag distributed-ml={self.variables['name']}: {', '.join(left)}; "
                "remove it by hand, it may cost money"
            )
        for name in ("variables.tfvars.json", "created.txt", "applied.json"):
            (self.folder / name).unlink(missing_ok=True)
        if self.name in LISTED_BY:
            print(f"what the state did not know: {LISTED_BY[self.name]}={self.variables['name']}")
        print("nothing is left")

    def forget_a_gone_cluster(self) -> None:
        """TARGET=kubernetes: when its cluster has been deleted, so is all that was in it; the state forgets it.

        Only when you say so (infra.cluster_is_gone=true): a cluster that does not answer may be there.
        """
        if not self.settings.get("cluster_is_gone"):
            return
        options = ["--kubeconfig", str(Path(self.variables.get("kubeconfig") or "~/.kube/config").expanduser())]
        options += ["--context", self.variables["context"], "--request-timeout=20s", "get", "--raw", "/version"]
        if shutil.which("kubectl") and subprocess.run(["kubectl", *options], capture_output=True).returncode == 0:
            raise UserError(f"the cluster {self.variables['context']} answers: infra.cluster_is_gone=true is not true")
        for address in self.call("state list", failure="the state cannot be read").split():
            self.call("state rm", address, failure=f"the state cannot forget {address}")

    def left_over(self) -> list[str]:
        """ARNs of what still has this set's tag, whatever the state says.

        The list of tags goes on naming for an hour or more what is gone, and keys for the week in which they can be
        had back. So each service is asked whether its thing is there.
        """
        if self.name not in ("aws", "eks"):
            return []
        import boto3

        region = self.variables["region"]
        client = boto3.client("resourcegroupstaggingapi", region_name=region)
        tag = {"Key": "distributed-ml", "Values": [self.variables["name"]]}
        pages = client.get_paginator("get_resources").paginate(TagFilters=[tag])
        found = {entry["ResourceARN"] for page in pages for entry in page["ResourceTagMappingList"]}
        return sorted(arn for arn in found if not leaks.gone(arn, region))


def check_numbers(values: Mapping[str, Any], path: str = "infra") -> None:
    """Raises UserError for a number that is none (nan) or has no end (inf): no limit would hold against it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            check_numbers(value, f"{path}.{name}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}.{name}={value}: expected a number")


def main(argv: Sequence[str]) -> None:
    command, target, *overrides = argv or ["", ""]
    if command not in COMMANDS or not target:
        commands, targets = f"infra-{'|infra-'.join(COMMANDS)}", "local|aws|gcp|eks|gke|kubernetes"
        raise SystemExit(f'usage: make {commands} TARGET={targets} [ARGS="infra.variables.num_hosts=3"]')
    terraform.check_terraform()
    terraform.check_variables(os.environ)
    chosen = Target(target, overrides)
    lock = FileLock(chosen.folder / ".infra.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another make infra-... is at work on {chosen.folder}: wait for its end") from None
    with lock:
        if command == "plan":
            changes, price = chosen.plan()
            for change in changes:
                print(f"{'/'.join(change['change']['actions']):<16} {change['address']}")
            if not changes:
                print("nothing to change")
            print(price.text() if price.lines else "costs nothing")
        else:
            getattr(chosen, command)()


if __name__ == "__main__":
    run_program(main)
