"""Calls terraform (python-terraform), and says what its errors mean."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged, Terraform

from cookbook import UserError
from cookbook.prepare import doctor, remedies
from cookbook.prepare.tools import TOOLS


def call(
    source: Path, folder: Path, command: str, *arguments: str, failure: str, stream: bool = False, **options: Any
) -> str:
    """Runs one terraform command on the plan in `source`; returns what it printed. `folder` has the state.

    Raises UserError with `failure` and terraform's own error, without secrets. `stream`: its output is shown.
    """
    # Terraform's own files (providers, which backend) lie beside the state, so that two sets do not share them.
    os.environ["TF_DATA_DIR"] = str(folder / ".terraform")
    os.environ["TF_IN_AUTOMATION"] = "1"
    options |= {"capture_output": not stream, "no_color": IsFlagged}
    status, output, error = Terraform(working_dir=str(source)).cmd(command, *arguments, **options)
    if status not in (0, None):
        text = " ".join(re.sub(r"[╷│╵]", " ", readable(error or output or "")).split())
        raise UserError(f"{failure}: {advice(text)}{text[-1500:]}")
    return str(output or "")


def backend_of(state: str, name: str, region: str) -> tuple[str, dict[str, str]]:
    """(kind, settings) of terraform's backend for a bucket's address.

    Raises UserError for an address that is neither S3's nor Google's.
    """
    found = re.fullmatch(r"(s3|gs)://([^/]+)(?:/(.*?))?/*", state)
    if not found:
        raise UserError(f"infra.state={state}: expected s3://bucket/path, gs://bucket/path, or null for a file")
    scheme, bucket, path = found.groups()
    place = f"{path}/{name}" if path else name
    if scheme == "gs":
        return "gcs", {"bucket": bucket, "prefix": place}  # the bucket itself locks it
    backend = {"bucket": bucket, "key": f"{place}.tfstate", "region": region, "use_lockfile": "true", "encrypt": "true"}
    if os.environ.get("AWS_ENDPOINT_URL_S3"):  # a private store that has the interface of S3, and no other of AWS
        missing = ("credentials_validation", "metadata_api_check", "region_validation", "requesting_account_id")
        backend |= {"use_path_style": "true", **{f"skip_{what}": "true" for what in missing}}
    return "s3", backend


def resources_of(module: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The resources of a module of terraform's state, and of the modules in it."""
    yield from module.get("resources", [])
    for child in module.get("child_modules", []):
        yield from resources_of(child)


# A sign in terraform's or a provider's error, and what to do about it.
ADVICE = {
    "Backend configuration changed": (
        "infra.state is another one than before: bring the state there first (terraform init -migrate-state). "
    ),
    "Error acquiring the state lock": "another apply is under way: wait for its end. ",
    "ExpiredToken": "the credentials have expired: log in again. ",
    "No valid credential sources": "no credentials: AWS_PROFILE, or `aws configure`. ",
    "VcpuLimitExceeded": "the account's quota of machines of this kind is used up: ask for more, or take fewer. ",
    "InsufficientInstanceCapacity": "the region has no such machine free now: another type, zone or time. ",
    "state snapshot was created by Terraform": "the state is a newer terraform's: install that version. ",
}


def advice(text: str) -> str:
    """What to do about an error of terraform's or a provider's; empty if that is unknown."""
    return next((what for sign, what in ADVICE.items() if sign in text), "")


def readable(text: str) -> str:
    """The text without what looks like a secret."""
    return re.sub(r"(AKIA|ASIA)[A-Z0-9]{12,}|(?i:(secret|token|password)[a-z_]*\s*[=:]\s*)[^\s,]+", "***", text)


def check_terraform() -> None:
    """Raises UserError when terraform is missing or too old."""
    (tool,) = (tool for tool in TOOLS if tool.name == "terraform")
    found = doctor.examine(tool)
    if found.problem:
        raise UserError(f"terraform: {found.problem}; {remedies.remedy([tool])}")


def check_variables(environment: Mapping[str, str]) -> None:
    """Raises UserError for a variable by which terraform would take another state, or do something else than asked."""
    for name, value in environment.items():
        if name == "TF_WORKSPACE" or name.startswith("TF_CLI_ARGS"):
            raise UserError(
                f"{name}={value} is set, and terraform would heed it: what is made with it cannot be found without it. "
                f"Unset {name}; a second set of machines has a state of its own with infra.folder=FOLDER"
            )
