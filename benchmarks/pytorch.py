"""Measures the recipe against a bare torchrun script, and what each mode costs: make bench RECIPE=pytorch

Prints the tables of the recipe's README.
"""

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import BARE_DDP, print_table, run_bare, run_recipe, say, steady, steady_table, times_of_steps
from cookbook import ROOT
from cookbook.job import ALLOCATOR

HERE, BINARIES = ROOT / "recipes/pytorch", ROOT / ".venvs/pytorch/bin"
REPEATS, ROWS, BATCH, STEPS, WIDTH = 5, 16384, 256, 30, 32

MODES = ("single", "fsdp", "tensor_parallel", "pipeline")


def ddp(root):
    words = [
        "scale=bench",
        "data=images",
        f"scale.max_steps={STEPS}",
        f"recipe.global_batch_size={BATCH}",
        f"recipe.base_batch_size={BATCH}",
        f"recipe.width={WIDTH}",
    ]
    launcher = [BINARIES / "torchrun", "--standalone", "--nproc-per-node", 2]
    plain = {"GLOO_SOCKET_IFNAME": "lo"}
    ours, bare, one, untuned = [], [], [], []
    for number in range(REPEATS):
        say(f"repetition {number + 1} of {REPEATS}: recipe, bare script, one worker")
        content = run_recipe("pytorch", 2, *words, root=root)
        ours.append(steady(times_of_steps(content), BATCH))
        arguments = [HERE, content["dataset"]["folder"], BATCH, STEPS, WIDTH]
        bare.append(steady(run_bare(BARE_DDP, launcher, arguments, plain), BATCH))
        untuned.append(steady(run_bare(BARE_DDP, launcher, arguments, plain | dict.fromkeys(ALLOCATOR)), BATCH))
        one.append(steady(times_of_steps(run_recipe("pytorch", 1, *words, root=root)), BATCH))
    what = f"{ROWS:,} images 32x32x3, global batch {BATCH}"
    rows, bounds = steady_table("torchrun", ours, bare, one, what)
    gain = statistics.median(a / b for a, b in zip(bare, untuned, strict=True))
    rows.append(
        f"| bare script, glibc's allocator as it comes | {statistics.median(untuned):,.0f} samples/s | with / without "
        f"= {gain:.2f} |"
    )
    return content["machine"], rows, bounds


def modes(root):
    """The language model in each mode: speed and memory, 2 workers (single: 1)."""
    rows, speeds, memory = [], {mode: [] for mode in MODES}, {}
    for number in range(3):
        say(f"language model, repetition {number + 1} of 3")
        for mode in MODES:
            content = run_recipe("pytorch", 2, f"recipe.mode={mode}", "scale.max_steps=40", root=root)
            speeds[mode].append(steady(times_of_steps(content), 16))
            memory.setdefault(mode, content["metrics"].get("memory/peak_mb"))
    single = statistics.median(speeds["single"])
    for mode in MODES:
        speed = statistics.median(speeds[mode])
        rows.append(f"| language model, `{mode}` | {speed:.1f} windows/s | {mode} / single = {speed / single:.2f} |")
    one = run_recipe("pytorch", 1, "recipe.mode=fsdp", "scale.max_steps=2", root=root)["metrics"]["memory/peak_mb"]
    share = memory["fsdp"] / one
    rows.append(
        f"| `fsdp`, peak memory of parameters and optimizer per rank | {memory['fsdp']:.1f} MB | 2 workers / 1 worker "
        f"({one:.1f} MB) = {share:.2f} |"
    )
    return rows, {"fsdp memory, 2 workers / 1 worker <= 0.6": share <= 0.6}


def collectives(root):
    say("collectives")
    folder = Path(run_recipe("pytorch", 2, "recipe.mode=collectives", root=root)["folder"])
    table = json.loads((folder / "tables/bus bandwidth in MB per second.json").read_text())["rows"]
    names = [name for name in table[0] if name != "message_bytes"]
    print("\n| message | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for row in table:
        print(f"| {row['message_bytes'] // 1024:,} KiB | " + " | ".join(f"{row[name]:,.0f}" for name in names) + " |")


def main():
    with tempfile.TemporaryDirectory() as root:
        machine, rows, bounds = ddp(root)
        more_rows, more_bounds = modes(root)
        try:
            print_table("pytorch", machine, rows + more_rows, bounds | more_bounds)
        finally:
            collectives(root)


if __name__ == "__main__":
    main()
