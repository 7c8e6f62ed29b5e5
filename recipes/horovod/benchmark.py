"""Measures the recipe against the bare framework, on this machine: make bench RECIPE=horovod

Prints the tables of the recipe's README. Every figure is the median of interleaved repetitions within one run of this file.
It is started by the driver's Python and starts everything else with the recipe's environment.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
REPEATS = 5
# With a worker on every core, Horovod's own thread shares it: waking up each millisecond, as it does by default, costs speed.
CYCLE_TIME_MS = 25

BARE = """
import sys, time
import horovod.torch as hvd, numpy as np, torch
from torch.nn import functional as F
sys.path.insert(0, sys.argv[1])
from model import torch_network
hvd.init()
torch.manual_seed(0)
images = np.load(sys.argv[2] + "/train_images.npy", mmap_mode="r"); labels = np.load(sys.argv[2] + "/train_labels.npy", mmap_mode="r")
batch, steps = int(sys.argv[3]), int(sys.argv[4])
model = torch_network(images.shape[3], 10, int(sys.argv[5]))
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.03, 0.9, nesterov=True), named_parameters=model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
order = np.random.default_rng(0).permutation(len(labels))
for step in range(steps):
    if step == steps // 6:
        hvd.allreduce(torch.zeros(1)); started = time.perf_counter()
    ids = order[step * batch : (step + 1) * batch][hvd.rank() :: hvd.size()]
    x = torch.from_numpy(images[ids].astype(np.float32) / 255).permute(0, 3, 1, 2)
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.from_numpy(np.asarray(labels[ids]))).backward()
    optimizer.step()
hvd.allreduce(torch.zeros(1))
if hvd.rank() == 0:
    print("RESULT", (steps - steps // 6) * batch / (time.perf_counter() - started), flush=True)
"""

COLLECTIVES = """
import sys, time, statistics, json
import horovod.torch as hvd, torch
hvd.init()
def seconds(work, repeats=9):
    times = []
    for _ in range(repeats):
        hvd.allreduce(torch.zeros(1), name="meet"); started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
out = {}
if sys.argv[1] == "large":
    big = torch.ones(64 * 2**20 // 4); copy = torch.empty_like(big)
    out["allreduce"] = seconds(lambda: hvd.allreduce_(big, op=hvd.Sum, name="big")); out["memcpy"] = seconds(lambda: copy.copy_(big))
else:
    small = [torch.ones(1024) for _ in range(256)]
    def work():
        for handle in [hvd.allreduce_async_(tensor, op=hvd.Sum, name=f"small{n}") for n, tensor in enumerate(small)]:
            hvd.synchronize(handle)
    out["small"] = seconds(work)
if hvd.rank() == 0:
    print("RESULT", json.dumps(out), flush=True)
"""


def launch(num_workers, program, *arguments, options=()):
    """Runs a program under horovodrun; returns what rank 0 printed behind RESULT."""
    binaries = ROOT / ".venvs/horovod/bin"
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        argv = [
            binaries / "horovodrun",
            "-np",
            str(num_workers),
            "-H",
            f"localhost:{num_workers}",
            "--gloo",
            "--network-interfaces",
            "lo",
            *options,
        ]
        done = subprocess.run(
            [*argv, binaries / "python", file.name, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or len(lines) != 1:
        raise SystemExit(f"a benchmark program failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return json.loads(lines[0])


def cookbook(num_workers, *words, root):
    """One run through the driver; returns its run.json."""
    argv = [
        sys.executable,
        "-m",
        "cookbook",
        "recipe=horovod",
        f"cluster.num_workers={num_workers}",
        *words,
        f"output_root={root}",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a run failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return json.loads((Path(root) / "horovod/latest/run.json").read_text())


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main():
    rows, batch, steps, width = 16384, 256, 18, 32
    words = [
        "scale=bench",
        "data=images",
        f"recipe.global_batch_size={batch}",
        f"recipe.base_batch_size={batch}",
        f"recipe.width={width}",
        f"recipe.cycle_time_ms={CYCLE_TIME_MS}",
    ]
    with tempfile.TemporaryDirectory() as root:
        cookbook(2, *words, "scale.max_steps=2", root=root)  # environment and data are there from now on
        first = json.loads((Path(root) / "horovod/latest/run.json").read_text())
        data = first["dataset"]["folder"]
        ours, bare, one = [], [], []
        for number in range(REPEATS):
            say(f"repetition {number + 1} of {REPEATS}: recipe, bare script, one worker")
            ours.append(steady(cookbook(2, *words, f"scale.max_steps={steps}", root=root), batch))
            bare.append(
                launch(2, BARE, HERE, data, batch, steps, width, options=("--cycle-time-ms", str(CYCLE_TIME_MS)))
            )
            one.append(steady(cookbook(1, *words, f"scale.max_steps={steps}", root=root), batch))
        say("collectives")
        large = [launch(2, COLLECTIVES, "large") for _ in range(3)]
        fused, unfused = (
            [launch(2, COLLECTIVES, "small", options=options)["small"] for _ in range(3)]
            for options in ((), ("--fusion-threshold-mb", "0"))
        )
        say("start-up")
        starts = [start_up(root) for _ in range(REPEATS)]
        warm = [wall(root) for _ in range(3)]
    median = statistics.median
    allreduce, memcpy = median(x["allreduce"] for x in large), median(x["memcpy"] for x in large)
    print(f"Machine: {first['machine']}. Command: `make bench RECIPE=horovod`.\n")
    print("| what | measured | ratio |\n| --- | --- | --- |")
    print(
        f"| recipe, 2 workers ({rows:,} images 32x32x3, global batch {batch}, cycle time {CYCLE_TIME_MS} ms) | {median(ours):,.0f} samples/s | |"
    )
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    print(
        f"| bare Horovod script, same model and data | {median(bare):,.0f} samples/s | recipe / bare = {median(ratios):.3f} |"
    )
    scaling = [a / b for a, b in zip(ours, one, strict=True)]
    print(f"| recipe, 1 worker | {median(one):,.0f} samples/s | 2 workers / 1 worker = {median(scaling):.2f} |")
    print(
        f"| all-reduce of 64 MiB over Gloo, 2 workers | {allreduce * 1e3:.0f} ms | all-reduce / memcpy of 64 MiB ({memcpy * 1e3:.0f} ms) = {allreduce / memcpy:.1f} |"
    )
    print(
        f"| 256 tensors of 4 KiB, fused | {median(fused) * 1e3:.1f} ms | unfused ({median(unfused) * 1e3:.1f} ms) / fused = {median(unfused) / median(fused):.1f} |"
    )
    print(f"| driver: command to first child process, warm | {median(starts):.2f} s | |")
    print(f"| warm `make recipe-horovod` from end to end | {median(warm):.0f} s | |")
    bounds = {
        "recipe / bare >= 0.97": median(ratios) >= 0.97,
        "2 workers / 1 worker >= 1.8": median(scaling) >= 1.8,
        "start-up <= 1.5 s": median(starts) <= 1.5,
        "warm run <= 60 s": median(warm) <= 60,
    }
    if missed := [name for name, held in bounds.items() if not held]:
        raise SystemExit(f"missed: {', '.join(missed)}")


def steady(content, batch):
    """Samples per second of all but the first sixth of the steps, from the moments at which rank 0 took them."""
    folder = Path(content["folder"])
    (record,) = folder.glob("workers/rank0-*.jsonl")
    events = [json.loads(line) for line in record.read_text().splitlines()]
    times = [event["time"] for event in events if event["event"] == "rows"]
    end = next(event["time"] for event in events if event["event"] == "metric" and event["name"] == "train/loss")
    first = len(times) // 6
    return (len(times) - first) * batch / (end - times[first])


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
