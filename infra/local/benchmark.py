"""Ring all-reduce over limited links, measured and predicted. Run as root: make bench-hosts

Two hosts of network namespaces; `tc` limits what each may send. Measured: the pytorch recipe's collectives, between the
two hosts. The model is the alpha-beta model of ring all-reduce, n bytes over p workers: T = 2 (p-1) alpha + 2 (p-1)/p n
/ beta (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"). beta is the limit itself; alpha, one step's
start-up, comes from the smallest messages over the unlimited link. The third column adds what the same message takes
without a limit: the processors' share, copying and adding, which the model leaves out.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import hosts as local_hosts

from benchmarks.measure import say
from cookbook import ROOT
from cookbook.report import pages
from tests.helpers import run_cookbook

LIMITS = (None, 2000, 1000, 400, 100)  # Mbit/s
LARGE = (
    1 << 20
)  # messages from here on are compared with the model: below it the buckets of tc's limit are not yet empty
# Sergeev and Del Balso 2018, "Horovod: fast and easy distributed deep learning in TensorFlow", figure 6 and
# text: 512 GPUs, 25 Gbit/s.
PUBLISHED = {"Inception V3": 0.90, "ResNet-101": 0.90, "VGG-16": 0.68}


def ring(num_workers, num_bytes, alpha, bytes_per_second):
    return 2 * (num_workers - 1) * alpha + 2 * (num_workers - 1) / num_workers * num_bytes / bytes_per_second


def measured(place, folder, limit):
    """{message bytes: seconds of an all-reduce} between the two hosts."""
    for number in (1, 2):
        namespace = place.namespace(number)
        subprocess.run(["tc", "-n", namespace, "qdisc", "del", "dev", "eth0", "root"], capture_output=True)
        if limit:
            rate = ["rate", f"{limit}mbit", "burst", "64k", "latency", "50ms"]
            subprocess.run(["tc", "-n", namespace, "qdisc", "add", "dev", "eth0", "root", "tbf", *rate], check=True)
    words = [
        "recipe=pytorch",
        "recipe.mode=collectives",
        "cluster=hosts",
        f"cluster.inventory={place.folder}",
        "recipe.num_message_sizes=8",
    ]
    content, run_dir, _ = run_cookbook(*words, output_root=folder / f"limit-{limit}")
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    rows = json.loads((run_dir / "tables/bus bandwidth in MB per second.json").read_text())["rows"]
    # The table has bus bandwidth: 2 (p-1)/p n / T, which for two workers is n / T.
    return {row["message_bytes"]: row["message_bytes"] / (row["all_reduce"] * 1e6) for row in rows}


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = local_hosts.Hosts(Path(folder) / "hosts")
        place.up()
        try:
            times = {}
            for limit in LIMITS:
                say(f"limit {limit or 'none'}")
                times[limit] = measured(place, Path(folder), limit)
        finally:
            place.down()
    smallest = sorted(times[None])[:2]
    alpha = statistics.median(times[None][size] for size in smallest) / 2
    print(f"Machine: {pages.machine()}. Command: `make bench-hosts`. alpha {alpha * 1e6:.0f} us.\n")
    print("| limit | message | measured | model | model and processors |\n| --- | --- | --- | --- | --- |")
    errors, fuller = [], []
    for limit in LIMITS[1:]:
        for size, seconds in times[limit].items():
            if size >= LARGE:
                predicted = ring(2, size, alpha, limit * 1e6 / 8)
                errors.append(predicted / seconds - 1)
                more = predicted + times[None][size]
                fuller.append(more / seconds - 1)
                both = f"{predicted * 1e3:.1f} ms ({errors[-1]:+.0%}) | {more * 1e3:.1f} ms ({fuller[-1]:+.0%})"
                print(f"| {limit} Mbit/s | {size >> 20} MiB | {seconds * 1e3:.1f} ms | {both} |")
    for name, found in (("model", errors), ("model and processors", fuller)):
        print(
            f"\n{name}: median of the absolute errors {statistics.median(map(abs, found)):.0%}, largest "
            f"{max(map(abs, found)):.0%}"
        )
    print()
    predict(alpha)
    draw(times, alpha)


def predict(alpha):
    """A prediction, not a measurement: the same model for a data-parallel step, nothing overlapped, on 25 Gbit/s."""
    print("| workers | efficiency predicted, 100 MB of gradients, a step of 300 ms |\n| --- | --- |")
    for num_workers in (8, 32, 128, 512):
        exchange = ring(num_workers, 100e6, 20e-6, 25e9 / 8)
        print(f"| {num_workers} | {0.3 / (0.3 + exchange):.2f} |")
    print("\npublished, 512 GPUs: " + ", ".join(f"{model} {share:.0%}" for model, share in PUBLISHED.items()))


def draw(times, alpha):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (limit, found) in enumerate(times.items()):
        colour = f"C{number}"
        axes.loglog(
            list(found),
            [seconds * 1e3 for seconds in found.values()],
            "o",
            color=colour,
            label=f"{limit} Mbit/s" if limit else "no limit",
        )
        if limit:
            axes.loglog(
                list(found),
                [ring(2, size, alpha, limit * 1e6 / 8) * 1e3 for size in found],
                "--",
                color=colour,
                linewidth=1,
            )
    axes.set(xlabel="message in bytes", ylabel="all-reduce in ms", title="measured (dots) and alpha-beta model (lines)")
    axes.legend()
    figure.savefig(ROOT / "infra/local/bandwidth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
