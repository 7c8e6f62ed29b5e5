"""The cluster whose workers do the work: connecting to it, and room in it, with errors that say what to do."""

import os
import socket
import time
from pathlib import Path

import ray

import runrecord


def connect(run):
    """Connects to the cluster that RAY_ADDRESS names: the one that rayrun has started, or one that was there before.

    Raises SystemExit when nobody listens there, the token is wrong, or Ray's or Python's version is another one.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise SystemExit(
            "RAY_ADDRESS is not set: start this program by rayrun, or name a running cluster (cluster.ray_address)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"no Ray cluster answers at {address}: {error}; start one (`ray start --head`), or leave "
            "cluster.ray_address=null"
        ) from None
    options = {}
    if "RAYRUN_SECONDS" not in os.environ:
        # Distributed: the processes of a running cluster have neither this folder's modules nor runrecord: they
        # are sent along.
        options["runtime_env"] = {"working_dir": str(Path(__file__).parent), "py_modules": [runrecord.__file__]}
    try:
        ray.init(address, log_to_driver=True, logging_level="warning", **options)
    except (RuntimeError, ConnectionError, ray.exceptions.AuthenticationError) as error:
        words = " ".join(f"{error} {error.__cause__ or ''}".split())
        if "authentication token" in words.lower():
            raise SystemExit(
                f"the cluster at {address} does not take this token: put the cluster's own into RAY_AUTH_TOKEN, or "
                "into the file that RAY_AUTH_TOKEN_PATH names (`ray get-auth-token` prints it on a machine of the "
                "cluster)"
            ) from None
        if "version mismatch" in words.lower():
            raise SystemExit(f"the cluster at {address} has other versions: {words}") from None
        raise SystemExit(f"the cluster at {address} cannot be used: {words}") from None
    run.metric("seconds/ray_start", float(os.environ.get("RAYRUN_SECONDS", 0)), step=0, unit="s")


def require_free(number, need):
    """Raises SystemExit when the cluster has no room for so many workers of {resource: amount} at this moment."""
    free = ray.available_resources()
    for name, amount in need.items():
        if free.get(name, 0) < number * amount:
            raise SystemExit(
                f"{number} workers need {number * amount:g} {name}, and the cluster has {free.get(name, 0):g} free of "
                f"{ray.cluster_resources().get(name, 0):g}: ask for fewer (cluster.num_workers), or wait for others "
                "to end"
            )


def keep_profile(config):
    """With `profile=true`: which process did which task when, in traces/tasks.json (for https://ui.perfetto.dev)."""
    if config.profile:
        path = Path(config.output_dir, "traces/tasks.json")
        path.parent.mkdir(exist_ok=True)
        time.sleep(2)  # Distributed: processes tell Ray of their tasks once a second (task_events_report_interval_ms).
        ray.timeline(str(path))
