"""Waits for the software of new machines (infra/bootstrap.sh)."""

import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from cookbook import UserError
from cookbook.tools import terraform

POLL_SECONDS = 10.0  # between two looks at what machines say about their software


def wait_for_bootstrap(
    target: str, variables: Mapping[str, Any], where: Mapping[str, Any] | None, minutes: float
) -> None:
    """Waits until every machine has said that its software is there (infra/bootstrap.sh). `where`: an output
    of the plan, which says where to look.

    Raises UserError with the end of a machine's log when that failed, or when one says nothing for too long.
    """
    waiting: dict[str, str] = dict((where or {}).get("hosts", {}))
    deadline = time.monotonic() + minutes * 60
    if waiting:
        print(f"waiting for the software of {', '.join(waiting)}, {minutes} minutes at most", flush=True)
    while where and waiting:
        for name, machine in list(waiting.items()):
            word, _, log = said(target, variables, where, machine).partition("\n")
            if word == "done":
                del waiting[name]
            elif word:
                raise UserError(
                    f"{name} ({machine}): its bootstrap failed, so there is no inventory. "
                    f"Its log ends:\n{terraform.readable(log)}\n`make infra-down` removes what is there"
                )
        if waiting and time.monotonic() > deadline:
            raise UserError(
                f"no word of {', '.join(f'{name} ({machine})' for name, machine in waiting.items())} after "
                f"{minutes} minutes (infra.bootstrap_minutes), so there is no inventory. On the machine, "
                "/var/log/bootstrap.log says how far it came; infra-up again goes on waiting"
            )
        if waiting:
            time.sleep(POLL_SECONDS)


def said(target: str, variables: Mapping[str, Any], where: Mapping[str, Any], machine: str) -> str:
    """What a machine said about its bootstrap: `done` or `failed`, and the end of its log; empty: nothing yet."""
    if target == "aws":
        import boto3
        from botocore.exceptions import ClientError

        s3 = boto3.client("s3", region_name=variables["region"])
        try:
            reply = s3.get_object(Bucket=where["bucket"], Key=f"bootstrap/{machine}")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return ""
            raise UserError(f"the bucket {where['bucket']} cannot be read: {error}") from None
        return str(reply["Body"].read().decode(errors="replace"))
    if not shutil.which("gcloud"):
        raise UserError("gcloud is missing: what the machines say about their software cannot be read without it")
    argv = ["gcloud", "compute", "instances", "get-guest-attributes", machine, f"--zone={where['zone']}"]
    argv += [f"--project={variables['project']}", "--query-path=cookbook/", "--format=value(value)"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
