"""Measures the recipe against a bare torchrun script on the same model and data, and Ray itself.

Call: make bench RECIPE=ray_train

Prints the tables of the recipe's README.
"""

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import BARE_DDP, print_table, run_bare, run_recipe, say, steady, times_of_steps
from cookbook import ROOT

HERE, BINARIES = ROOT / "recipes/ray_train", ROOT / ".venvs/ray_train/bin"
REPEATS, ROWS, BATCH, STEPS, WIDTH = 3, 16384, 256, 30, 32


def training(root):
    """Rows of the table: steady state and start, each repetition by turns."""
    words = [
        "scale=bench",
        "data=images",
        f"scale.max_steps={STEPS}",
        f"recipe.global_batch_size={BATCH}",
        f"recipe.base_batch_size={BATCH}",
        f"recipe.width={WIDTH}",
    ]
    launcher = [BINARIES / "torchrun", "--standalone", "--nproc-per-node", 2]
    found = {name: [] for name in ("ours", "bare", "start", "pytorch start", "ray")}
    for number in range(REPEATS):
        say(f"repetition {number + 1} of {REPEATS}: recipe, bare script")
        content = run_recipe("ray_train", 2, *words, root=root)
        found["ours"].append(steady(times_of_steps(content), BATCH))
        arguments = [HERE, content["dataset"]["folder"], BATCH, STEPS, WIDTH]
        found["bare"].append(steady(run_bare(BARE_DDP, launcher, arguments, {"GLOO_SOCKET_IFNAME": "lo"}), BATCH))
        found["ray"].append(content["metrics"]["seconds/ray_start"])
        found["start"].append(times_of_steps(content)[0] - content["started"])
        plain = run_recipe("pytorch", 2, *words, "scale.max_steps=2", root=root)
        found["pytorch start"].append(times_of_steps(plain)[0] - plain["started"])
    middle = {name: statistics.median(values) for name, values in found.items()}
    every = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    ratio = statistics.median(every)
    rows = [
        (
            f"| recipe, 2 workers ({ROWS:,} images 32x32x3, global batch {BATCH}), "
            f"rows prepared beside the training | {middle['ours']:,.0f} samples/s | |"
        ),
        f"| bare torchrun script, same model and data | {middle['bare']:,.0f} samples/s | "
        f"recipe / bare = {ratio:.3f} ({min(every):.3f} to {max(every):.3f}) |",
    ]
    rows.append(
        f"| from the command to the first step | {middle['start']:.1f} s, {middle['ray']:.1f} of them Ray's start | "
        f"`pytorch` recipe: {middle['pytorch start']:.1f} s |"
    )
    return content["machine"], rows, {"recipe / bare >= 0.9": ratio >= 0.9}


def core(root):
    say("tasks, actors, objects")
    names = (
        "tasks_per_second",
        "actor_calls_per_second",
        *(f"object_store/{name}_gb_per_second" for name in ("put", "get", "memcpy")),
    )
    runs = []
    for _ in range(REPEATS):
        content = run_recipe("ray_train", 2, "recipe.mode=core", "recipe.num_tasks=3000", root=root)
        runs.append([content["metrics"][name] for name in names])
    tasks, calls, put, get, copy = (statistics.median(column) for column in zip(*runs, strict=True))
    table = {row["what"]: row for row in json.loads((Path(content["folder"]) / "tables/tour.json").read_text())["rows"]}
    return [
        f"| tasks that do nothing | {tasks:,.0f} a second | |",
        f"| calls of one actor | {calls:,.0f} a second | |",
        f"| `ray.put` of 64 MB | {put:.1f} GB/s | {put / copy:.2f} of a copy within the process ({copy:.1f} GB/s) |",
        f"| `ray.get` of 64 MB | {get:,.0f} GB/s | nothing is copied |",
        f"| back pressure by `ray.wait`, 4 tasks under way | {table['back pressure']['measured']} | |",
    ]


def main():
    with tempfile.TemporaryDirectory() as root:
        machine, rows, bounds = training(root)
        print_table("ray_train", machine, rows + core(root), bounds)


if __name__ == "__main__":
    main()
