"""Measures the recipe against the bare framework, on this machine: make bench RECIPE=horovod

Prints the tables of the recipe's README.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import print_table, run_bare, run_recipe, say, steady, steady_table, times_of_steps
from cookbook import ROOT

HERE = ROOT / "recipes/horovod"
REPEATS = 5
# With a worker on every core, Horovod's own thread shares it: waking up each millisecond, as it does by
# default, costs speed.
CYCLE_TIME_MS = 25

BARE = """
import json, sys, time
import horovod.torch as hvd, numpy as np, torch
from torch.nn import functional as F
sys.path.insert(0, sys.argv[1])
from model import torch_network
hvd.init()
torch.manual_seed(0)
images = np.load(sys.argv[2] + "/train_images.npy", mmap_mode="r")
labels = np.load(sys.argv[2] + "/train_labels.npy", mmap_mode="r")
batch, steps = int(sys.argv[3]), int(sys.argv[4])
model = torch_network(images.shape[3], 10, int(sys.argv[5]))
optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.9, nesterov=True)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
order, times = np.random.default_rng(0).permutation(len(labels)), []
for step in range(steps):
    ids = order[step * batch : (step + 1) * batch][hvd.rank() :: hvd.size()]
    x = torch.from_numpy(images[ids].astype(np.float32) / 255).permute(0, 3, 1, 2)
    times.append(time.time())
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.from_numpy(np.asarray(labels[ids]))).backward()
    optimizer.step()
if hvd.rank() == 0:
    print("RESULT", json.dumps(times), flush=True)
"""

COLLECTIVES = """
import sys, time, statistics, json
import horovod.torch as hvd, torch
hvd.init()
def seconds(work, repeats=9):
    times = []
    for _ in range(repeats):
        hvd.allreduce(torch.zeros(1), name="meet")
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
out = {}
if sys.argv[1] == "large":
    big = torch.ones(64 * 2**20 // 4)
    copy = torch.empty_like(big)
    out["allreduce"] = seconds(lambda: hvd.allreduce_(big, op=hvd.Sum, name="big"))
    out["memcpy"] = seconds(lambda: copy.copy_(big))
else:
    small = [torch.ones(1024) for _ in range(256)]
    def work():
        for handle in [hvd.allreduce_async_(tensor, op=hvd.Sum, name=f"small{n}") for n, tensor in enumerate(small)]:
            hvd.synchronize(handle)
    out["small"] = seconds(work)
if hvd.rank() == 0:
    print("RESULT", json.dumps(out), flush=True)
"""


def launch(program, *arguments, options=()):
    """Runs a program on two workers under horovodrun; returns what rank 0 printed behind RESULT."""
    binaries = ROOT / ".venvs/horovod/bin"
    argv = [binaries / "horovodrun", "-np", 2, "-H", "localhost:2", "--gloo", "--network-interfaces", "lo", *options]
    return run_bare(program, [*argv, binaries / "python"], arguments)


def main():
    rows, batch, steps, width = 16384, 256, 18, 32
    words = [
        "scale=bench",
        "data=images",
        f"scale.max_steps={steps}",
        f"recipe.global_batch_size={batch}",
        f"recipe.base_batch_size={batch}",
        f"recipe.width={width}",
        f"recipe.cycle_time_ms={CYCLE_TIME_MS}",
    ]
    cycle = ("--cycle-time-ms", str(CYCLE_TIME_MS))
    with tempfile.TemporaryDirectory() as root:
        ours, bare, one = [], [], []
        for number in range(REPEATS):
            say(f"repetition {number + 1} of {REPEATS}: recipe, bare script, one worker")
            content = run_recipe("horovod", 2, *words, root=root)
            ours.append(steady(times_of_steps(content), batch))
            times = launch(BARE, HERE, content["dataset"]["folder"], batch, steps, width, options=cycle)
            bare.append(steady(times, batch))
            one.append(steady(times_of_steps(run_recipe("horovod", 1, *words, root=root)), batch))
        say("collectives")
        large = [launch(COLLECTIVES, "large") for _ in range(3)]
        fused, unfused = (
            [launch(COLLECTIVES, "small", options=options)["small"] for _ in range(3)]
            for options in ((), ("--fusion-threshold-mb", "0"))
        )
        say("start-up")
        starts = [start_up(root) for _ in range(REPEATS)]
        warm = [wall(root) for _ in range(3)]
    median = statistics.median
    allreduce, memcpy = median(x["allreduce"] for x in large), median(x["memcpy"] for x in large)
    what = f"{rows:,} images 32x32x3, global batch {batch}, cycle time {CYCLE_TIME_MS} ms"
    table, bounds = steady_table("Horovod", ours, bare, one, what)
    table += [
        (
            f"| all-reduce of 64 MiB over Gloo, 2 workers | {allreduce * 1e3:.0f} ms | "
            f"all-reduce / memcpy of 64 MiB ({memcpy * 1e3:.0f} ms) = {allreduce / memcpy:.1f} |"
        ),
        (
            f"| 256 tensors of 4 KiB, fused | {median(fused) * 1e3:.1f} ms | "
            f"unfused ({median(unfused) * 1e3:.1f} ms) / fused = {median(unfused) / median(fused):.1f} |"
        ),
        f"| driver: command to first child process, warm | {median(starts):.2f} s | |",
        f"| warm `make recipe-horovod` from end to end | {median(warm):.0f} s | |",
    ]
    bounds |= {"start-up <= 1.5 s": median(starts) <= 1.5, "warm run <= 60 s": median(warm) <= 60}
    print_table("horovod", content["machine"], table, bounds)


def start_up(root):
    """Seconds from the command to the launcher's process."""
    logs = set(Path(root).glob("horovod/*/logs/horovodrun.log"))
    started = time.perf_counter()
    driver = subprocess.Popen(
        [sys.executable, "-m", "cookbook", "recipe=horovod", "resume=never", f"output_root={root}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not set(Path(root).glob("horovod/*/logs/horovodrun.log")) - logs:
        if driver.poll() is not None:
            raise SystemExit("the driver ended before it started the workers")
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    driver.terminate()
    driver.wait()
    return seconds


def wall(root):
    started = time.perf_counter()
    subprocess.run(
        ["make", "recipe-horovod", f"ARGS=output_root={root}"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
