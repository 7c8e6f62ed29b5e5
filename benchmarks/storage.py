"""What checkpoints in a bucket cost the training: make bench RECIPE=storage

The pytorch recipe with a checkpoint every 20 steps, sent to a bucket beside the training, against no checkpoint before
the end. `STORE=s3://bucket/prefix` names a bucket (keys and endpoint as in docs/storage.md); without it an S3 server is
started on loopback. That server takes its share of this machine's cores.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import print_table, run_recipe, say, times_of_steps

REPEATS, BATCH, STEPS, EVERY, WIDTH = 5, 256, 120, 20, 32
LOOPBACK = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


@contextlib.contextmanager
def store() -> Iterator[str]:
    """The address of a bucket."""
    if place := os.environ.get("STORE"):
        yield place
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    uv = [Path(sys.executable).with_name("uv"), "run", "--isolated", "--no-project", "--with", "moto[server]"]
    process = subprocess.Popen([*uv, "moto_server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        os.environ.update(LOOPBACK | {"AWS_ENDPOINT_URL": url})
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=bench/20260101/us-east-1/s3/aws4_request, x"}
        request = urllib.request.Request(f"{url}/checkpoints", method="PUT", headers=signed)
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request).close()
                break
            time.sleep(0.2)
        yield "s3://checkpoints/bench"
    finally:
        process.terminate()
        process.wait()


def rows_per_second(content: dict) -> float:
    """Over all steps but the first sixth, a warm-up: what a save costs counts here, as in no median of steps."""
    times = times_of_steps(content)
    first = len(times) // 6
    return BATCH * (len(times) - 1 - first) / (times[-1] - times[first])


def main() -> None:
    words = ["scale=bench", "data=images", f"scale.max_steps={STEPS}", f"recipe.global_batch_size={BATCH}"]
    words += [f"recipe.base_batch_size={BATCH}", f"recipe.width={WIDTH}", "recipe.num_epochs=2"]
    found: dict[str, list[float]] = {"none": [], "bucket": [], "folder": []}
    os.environ["NETRUN_NETWORK"] = "host"  # else there would be nothing but loopback, and no store in it
    with store() as place, tempfile.TemporaryDirectory() as root:
        ways = {
            "none": [],
            "bucket": [f"recipe.checkpoint_every_steps={EVERY}", f"cluster.storage={place}"],
            "folder": [f"recipe.checkpoint_every_steps={EVERY}"],
        }
        for number in range(REPEATS):
            for name, more in ways.items():
                say(f"repetition {number + 1} of {REPEATS}: {name}")
                content = run_recipe("pytorch", 2, *words, *more, root=root)
                found[name].append(rows_per_second(content))
    rows = [f"| no checkpoint before the end | {statistics.median(found['none']):,.0f} samples/s | |"]
    ratios = {}
    for name in ("bucket", "folder"):
        each = [ours / none for ours, none in zip(found[name], found["none"], strict=True)]
        ratios[name] = statistics.median(each)
        rows.append(
            f"| every {EVERY} steps, in a {name} | {statistics.median(found[name]):,.0f} samples/s | {name} / none = "
            f"{ratios[name]:.2f} ({min(each):.2f} to {max(each):.2f}) |"
        )
    print_table(
        "storage", content["machine"], rows, {"checkpoints in a bucket >= 0.95 of none": ratios["bucket"] >= 0.95}
    )


if __name__ == "__main__":
    main()
