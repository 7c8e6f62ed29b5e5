"""Where the time of a step goes (`profile=true`): torch.profiler over a few steps, and what it says in shares.

Each rank keeps a trace, traces/rank<N>.json.gz, which https://ui.perfetto.dev opens. The report gets a table with the
shares of all ranks.
"""

import contextlib
import gzip
import json
from pathlib import Path

import torch
import torch.distributed as dist

SKIPPED, STEPS = 4, 20  # the first ones warm up
DATA, EXCHANGE = "enumerate(DataLoader)", ("gloo:", "nccl:")  # the names of PyTorch's own ranges


@contextlib.contextmanager
def profiled(config, run):
    """Profiles the steps in the block. A step ends where its exchange does. Without `profile` nothing is done.

    Every rank must come to the end of the block: the ranks put their shares together there.
    """
    if not config.profile:
        yield
        return
    rank, waits, shares = dist.get_rank(), [], {}  # Distributed: each rank keeps a trace of its own.
    folder = Path(config.output_dir, "traces")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(profiler):
        path = folder / f"rank{rank}.json.gz"
        profiler.export_chrome_trace(str(path))
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        shares.update(shares_of(ranges_of(events), waits[SKIPPED + 1 : SKIPPED + 1 + STEPS]))

    schedule = torch.profiler.schedule(skip_first=SKIPPED, wait=0, warmup=1, active=STEPS, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=keep) as profiler:

        def took_step(waited):
            waits.append(waited)
            profiler.step()

        run.after_exchange = took_step
        yield
        run.after_exchange = None
    # Distributed: each rank has looked at its own steps only.
    of_ranks = [None] * dist.get_world_size() if rank == 0 else None
    dist.gather_object({"rank": rank, **shares}, of_ranks)
    if rank == 0 and all(len(one) > 1 for one in of_ranks):
        run.table("where the time of a step goes, in percent", of_ranks)


def ranges_of(events):
    """[(name, start, end)] in microseconds of a trace's ranges; a GPU's copies of the program's own are left out."""
    kept = [one for one in events if one.get("ph") == "X" and one.get("cat") != "gpu_user_annotation"]
    return [(one["name"], one["ts"], one["ts"] + one["dur"]) for one in kept]


def shares_of(ranges, waits):
    """Percent of the profiled steps by what they were spent for.

    `ranges`: (name, start, end) in microseconds. `waits`: seconds of each step in which this rank had done its own
    share and waited. The exchange overlaps with computing: its share is beside the others, which add up to 100.
    """
    steps = [(start, end) for name, start, end in ranges if name.startswith("ProfilerStep#")]
    whole = sum(end - start for start, end in steps)
    if not whole:
        return {}
    data = length([(start, end) for name, start, end in ranges if name.startswith(DATA)])
    exchange = length([(start, end) for name, start, end in ranges if name.startswith(EXCHANGE)])
    parts = {"data": data, "waiting": 1e6 * sum(waits[: len(steps)])}
    percent = {name: round(100 * part / whole, 1) for name, part in parts.items()}
    computing = round(100 - sum(percent.values()), 1)
    return {
        "steps": len(steps),
        "ms for a step": round(whole / len(steps) / 1000, 3),
        "data": percent["data"],
        "computing and the rest": computing,
        "waiting for the others": percent["waiting"],
        "an exchange under way": round(100 * exchange / whole, 1),
    }


def length(spans):
    """How much time is in at least one of the spans (start, end)."""
    total, reached = 0, float("-inf")
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
