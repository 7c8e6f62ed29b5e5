"""The exchanges that all distributed training is made of, one by one: what each does, and what it costs.

Shows:   all-reduce, broadcast, all-gather, reduce-scatter, all-to-all and barrier, each compared with the same result
         computed in one process; a bandwidth table; and ring all-reduce written out with point-to-point calls.
Choose:  to learn the vocabulary, and to measure a cluster's links before blaming the training program.
Run:     torchrun --nproc-per-node 2 main_collectives.py config.yaml
Expect:  every check equal, and a plot of bus bandwidth over message size that rises and then levels off.
Source:  Patarasuk and Yuan 2009 (ring all-reduce); bus bandwidth as NVIDIA's nccl-tests define it (PERFORMANCE.md).
"""

import statistics
import time

import torch
import torch.distributed as dist

from runrecord import RunRecord, load_config
from settings import check_settings
from workers import facts, joined_world, max_over_ranks


def ring_all_reduce(tensor):
    """Sums `tensor` (any shape) over all ranks, in place, by passing chunks around a ring.

    Each of n ranks sends 2 (n - 1) / n of the tensor: less than twice its size, however many ranks there are. That is
    why the ring scales.
    """
    # Distributed: a ring: each rank sends to the next one and receives from the one before.
    rank, world_size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.flatten().tensor_split(world_size))
    right, left = (rank + 1) % world_size, (rank - 1) % world_size

    def pass_on(outgoing, incoming):
        # Distributed: sending and receiving are begun together; one after the other, the whole ring would
        # wait for itself.
        received = torch.empty_like(chunks[incoming])
        sends = dist.P2POp(dist.isend, chunks[outgoing].contiguous(), right)
        receives = dist.P2POp(dist.irecv, received, left)
        for exchange in dist.batch_isend_irecv([sends, receives]):
            exchange.wait()
        return received

    # Distributed: reduce-scatter: in round k each rank adds what comes to its chunk; in the end rank r has the whole
    # sum of chunk r + 1.
    for k in range(world_size - 1):
        incoming = (rank - k - 1) % world_size
        chunks[incoming] += pass_on((rank - k) % world_size, incoming)
    # Distributed: all-gather: the finished chunks go around once more.
    for k in range(world_size - 1):
        incoming = (rank - k) % world_size
        chunks[incoming] = pass_on((rank - k + 1) % world_size, incoming)
    return tensor.copy_(torch.cat(chunks).view_as(tensor))


def given(rank, num_values):
    """What rank `rank` brings: whole numbers, so that sums are exact in any order.

    Every rank can compute everybody's.
    """
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-1000, 1000, (num_values,), generator=generator).float()


def check_all(rank, world_size, device, num_values=1200):
    """Runs each exchange on small tensors; returns {name: the largest difference from the single-process result}."""
    everyone = [given(other, num_values * world_size) for other in range(world_size)]
    whole, mine = torch.stack(everyone), everyone[rank].to(device)
    sums, parts = whole.sum(0), list(range(rank * num_values, (rank + 1) * num_values))
    found = {}

    def compare(name, got, expected):
        found[name] = (got.cpu() - expected).abs().max().item()

    got = mine.clone()
    dist.all_reduce(got)  # Distributed: everybody ends with the sum of all.
    compare("all_reduce", got, sums)

    compare("ring_all_reduce", ring_all_reduce(mine.clone()), sums)

    got = mine.clone()
    dist.broadcast(got, src=world_size - 1)  # Distributed: everybody ends with what the last rank had.
    compare("broadcast", got, whole[-1])

    got = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(got, mine)  # Distributed: everybody ends with a list of what all had.
    compare("all_gather", torch.stack(got), whole)

    got = torch.empty(num_values, device=device)
    dist.reduce_scatter_tensor(got, mine.clone())  # Distributed: the sum is dealt out: rank r gets its r-th part.
    compare("reduce_scatter", got, sums[parts])

    got = torch.empty_like(mine)
    dist.all_to_all_single(got, mine)  # Distributed: rank r gets the r-th part of everybody: a transposition.
    compare("all_to_all", got, whole[:, parts].flatten())

    # Distributed: nobody passes a barrier before all have reached it: the last rank comes late, and the
    # others wait for it.
    dist.barrier()
    if rank == world_size - 1:
        time.sleep(0.2)
    started = time.perf_counter()
    dist.barrier()  # Distributed: the others stand here until the last rank is there.
    waited = time.perf_counter() - started
    found["barrier"] = 0.0 if waited > 0.1 or rank == world_size - 1 else 0.2 - waited
    return found


def exchanges(world_size, num_bytes, device):
    """{name: (a function that does it on `num_bytes`, bus bytes sent or received by each rank)}."""
    num_values = num_bytes // 4 // world_size * world_size
    tensor, share = torch.ones(num_values, device=device), (world_size - 1) / world_size
    part, gathered = torch.ones(num_values // world_size, device=device), torch.empty(num_values, device=device)
    # Distributed: every rank runs each of these at the same time; the second is the bytes that each one sends.
    return {
        "all_reduce": (lambda: dist.all_reduce(tensor), 2 * share * num_bytes),
        "ring_all_reduce": (lambda: ring_all_reduce(tensor), 2 * share * num_bytes),
        "broadcast": (lambda: dist.broadcast(tensor, src=0), num_bytes),
        "all_gather": (lambda: dist.all_gather_into_tensor(gathered, part), share * num_bytes),
        "reduce_scatter": (lambda: dist.reduce_scatter_tensor(part, tensor), share * num_bytes),
        "all_to_all": (lambda: dist.all_to_all_single(gathered, tensor), share * num_bytes),
    }


def seconds_of(work, device, repeats):
    """Median seconds of one exchange, of the slowest rank."""
    times = []
    for _ in range(repeats + 2):
        dist.barrier()  # Distributed: all begin together, else one would measure its waiting for another.
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(max_over_ranks(time.perf_counter() - started, device))
    return statistics.median(times[2:])


def main():
    config = check_settings(load_config())
    with (
        joined_world(config) as (rank, world_size, device),
        RunRecord(config.output_dir, rank, world_size, **facts(device)) as run,
    ):
        checks = []
        for name, difference in check_all(rank, world_size, device).items():
            worst = max_over_ranks(difference, device)
            checks.append({"exchange": name, "largest difference from one process": worst})
            if worst:
                raise AssertionError(f"{name} differs from the single-process result by {worst}")
            run.work(1)
        sizes, table = [4**k for k in range(5, 5 + config.num_message_sizes)], []
        for number, size in enumerate(sizes):
            row = {"message_bytes": size}
            for name, (work, bus_bytes) in exchanges(world_size, size, device).items():
                seconds = seconds_of(work, device, config.num_repeats)
                row[name] = round(bus_bytes / seconds / 1e6, 2)
                run.work(1)
            table.append(row)
            run.progress(number + 1, len(sizes), f"messages of {size:,} bytes")
        run.metric("all_reduce/bus_mb_per_second", table[-1]["all_reduce"], 0, unit="MB/s")
        if rank == 0:  # Distributed: one writes the tables for all.
            run.table("exchanges against one process", checks)
            names = [name for name in table[0] if name != "message_bytes"]
            run.table("bus bandwidth in MB per second", table, x="message_bytes", y=names, log=True)


if __name__ == "__main__":
    main()
