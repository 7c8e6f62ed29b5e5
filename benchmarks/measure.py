"""What the recipes' benchmarks share. They run as: make bench RECIPE=pytorch

Every figure is the median of interleaved repetitions within one run of one benchmark. The driver's Python runs the
benchmark, and the benchmark starts everything else in the recipe's environment.
"""

import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from cookbook import ROOT, UserError
from cookbook.files import write_block
from cookbook.job import ALLOCATOR

# Plain data-parallel training by torchrun. Arguments: folder of model.py, dataset, global batch, steps, width.
# It prints RESULT and the times at which each step began.
BARE_DDP = """
import json, sys, time
import numpy as np, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from model import torch_network
dist.init_process_group("gloo")
torch.manual_seed(0)
images = np.load(sys.argv[2] + "/train_images.npy", mmap_mode="r")
labels = np.load(sys.argv[2] + "/train_labels.npy", mmap_mode="r")
batch, steps = int(sys.argv[3]), int(sys.argv[4])
model = DistributedDataParallel(torch_network(images.shape[3], 10, int(sys.argv[5])))
optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.9, nesterov=True)
order, times = np.random.default_rng(0).permutation(len(labels)), []
for step in range(steps):
    ids = order[step * batch : (step + 1) * batch][dist.get_rank() :: dist.get_world_size()]
    x = torch.from_numpy(images[ids].astype(np.float32) / 255).permute(0, 3, 1, 2)
    times.append(time.time())
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.from_numpy(np.asarray(labels[ids]))).backward()
    optimizer.step()
if dist.get_rank() == 0:
    print("RESULT", json.dumps(times), flush=True)
dist.barrier()
time.sleep(0.2)
dist.destroy_process_group()
"""


def run_recipe(recipe: str, num_workers: int, *words: str, root: str | Path) -> dict[str, Any]:
    """Makes one run through the driver; returns its run.json."""
    argv = [sys.executable, "-m", "cookbook", f"recipe={recipe}", f"cluster.num_workers={num_workers}", *words]
    done = subprocess.run([*argv, f"output_root={root}", "resume=never"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a run failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    content: dict[str, Any] = json.loads((Path(root) / recipe / "latest/run.json").read_text())
    return content


def run_bare(
    program: str,
    launcher: Sequence[str | Path],
    arguments: Iterable[object],
    environment: Mapping[str, str | None] | None = None,
) -> Any:
    """Runs the text of a program as `launcher FILE arguments`; returns what one of its processes printed behind RESULT.

    Each process has one thread, and the allocator of the recipe's workers, unless `environment` says otherwise. A
    variable that is None there is not set at all.
    """
    binaries = Path(launcher[0]).parent
    path = ALLOCATOR | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    wanted: dict[str, str | None] = {**os.environ, **path, **(environment or {})}
    variables = {name: value for name, value in wanted.items() if value is not None}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        command = [*map(str, launcher), file.name, *map(str, arguments)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or len(lines) != 1:
        raise SystemExit(f"a benchmark program failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return json.loads(lines[0])


def watched(
    argv: Iterable[object],
    environment: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    only: str = "",
) -> tuple[str, float, float]:
    """Runs a command; returns (what it printed, seconds, peak memory in MB).

    The memory is the resident set of all its processes together, the largest sum of many looks. With `only`, those
    processes count that have this word in their command line.
    """
    started, peak = time.perf_counter(), 0
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(list(map(str, argv)), stdout=output, stderr=subprocess.STDOUT, env=variables, cwd=cwd)
        while process.poll() is None:
            total = 0
            with contextlib.suppress(psutil.Error):
                for one in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        total += one.memory_info().rss if only in " ".join(one.cmdline()) else 0
            peak = max(peak, total)
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"a benchmark program failed:\n{text[-4000:]}")
    return text, seconds, peak / 1e6


def times_of_steps(content: Mapping[str, Any]) -> list[float]:
    """The moments at which rank 0 took the rows of each step, in seconds since 1970."""
    (record,) = Path(content["folder"]).glob("workers/rank0-*.jsonl")
    events = [json.loads(line) for line in record.read_text().splitlines()]
    return [event["time"] for event in events if event["event"] == "rows"]


def steady(times: Sequence[float], batch: int) -> float:
    """Samples per second of the median step. `times`: when each step began; the first sixth, a warm-up, is left out."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[len(times) // 6 :])]
    return batch / statistics.median(gaps)


def steady_table(
    recipe: str, ours: Sequence[float], bare: Sequence[float], one: Sequence[float], what: str
) -> tuple[list[str], dict[str, bool]]:
    """Rows of a README's table, and {bound: whether it held}, from interleaved repetitions in samples per second."""
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    scaling = [a / b for a, b in zip(ours, one, strict=True)]
    ratio, factor = statistics.median(ratios), statistics.median(scaling)
    rows = [
        f"| recipe, 2 workers ({what}) | {statistics.median(ours):,.0f} samples/s | |",
        f"| bare {recipe} script, same model and data | {statistics.median(bare):,.0f} samples/s | "
        f"recipe / bare = {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
        f"| recipe, 1 worker | {statistics.median(one):,.0f} samples/s | "
        f"2 workers / 1 worker = {factor:.2f} ({min(scaling):.2f} to {max(scaling):.2f}) |",
    ]
    return rows, {"recipe / bare >= 0.97": ratio >= 0.97, "2 workers / 1 worker >= 1.8": factor >= 1.8}


def print_table(recipe: str, machine: str, rows: Sequence[str], bounds: Mapping[str, bool]) -> None:
    """Prints the table. Puts it into the page TO, and appends its ratios to the file HISTORY, where these are set.

    A missed bound on a figure (`a / b >= 0.9`) is only reported, because machines differ. The exit status is 1 when a
    result is wrong (a bound without a figure), or when a ratio fell out of its own history on this class of machine.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime())
    head = f"Machine: {machine}, on {day}. Command: `make bench RECIPE={recipe}`."
    text = "\n".join([head, "", "| what | measured | ratio (lowest to highest) |", "| --- | --- | --- |", *rows])
    print(text)
    if to := os.environ.get("TO"):
        try:
            write_block(Path(to), "bench", text)
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
    missed = [name for name, held in bounds.items() if not held]
    if figures := [name for name in missed if re.search(r"[<>]", name)]:
        print(f"\nmissed on this machine (reported, not a failure): {', '.join(figures)}")
    if history := os.environ.get("HISTORY"):
        from cookbook.tools import health

        if health.record_ratios(recipe, machine, ratios_of(rows), history):
            raise SystemExit(f"{recipe}: a ratio fell out of its history (the lines above); look at `make health`")
    if wrong := [name for name in missed if name not in figures]:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


def ratios_of(rows: Iterable[str]) -> dict[str, float]:
    """{name: value} of all `name = value` in the last column of a table's rows."""
    found = {}
    for row in rows:
        for name, value in re.findall(r"([\w /.,-]*[\w)]) = (\d+(?:\.\d+)?)", row.rstrip(" |").rpartition("|")[2]):
            found[name.strip(" ,").removeprefix("of the time, ")] = float(value)
    return found


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
