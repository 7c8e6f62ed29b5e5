"""What is beneath Ray Train: tasks, actors, the object store, placement groups, resources, back pressure.

Each is used, checked and timed.

Shows:   how Python functions become tasks and classes become processes that keep state; one copy of an object for all
         processes of a node; objects that outgrow memory; places for workers that belong together; and how to keep a
         producer from running ahead.
Choose:  when work is neither a data frame nor a training loop: simulations, crawlers, pipelines of unequal steps.
Run:     python -m rayrun --num-cpus 4 main_core.py config.yaml num_workers=2
Expect:  some thousand tasks and actor calls a second on two cores; objects read at many GB/s, because
         nobody copies them.
Source:  Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications"; Ray Core's documentation.
"""

import itertools
import os
import socket
import time

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from runrecord import RunRecord, load_config
from settings import check_settings
from workers import connect, keep_profile, require_free


# Distributed: calls of this function are tasks: each runs in one of Ray's worker processes, on any node
# with a free CPU.
@ray.remote(num_cpus=1)
def square(number):
    return number * number


@ray.remote(num_cpus=1)  # Distributed: a task that says where it ran.
def where(number):
    time.sleep(0.02)
    return socket.gethostname(), os.getpid()


@ray.remote(num_cpus=1)  # Distributed: a task that reads the store of its node.
def look_into(array):
    """(sum of every 4096th value, whether this process may write into the array, whether it owns the array's memory).

    The array is a view of the store's memory.
    """
    return float(array[::4096].sum()), bool(array.flags.writeable), array.flags.owndata


# Distributed: an instance of this class is an actor: a process of its own, which keeps its state from call to call.
@ray.remote(num_cpus=1)
class Worker:
    def __init__(self, rank, world_size, output_dir):
        self.run = RunRecord(output_dir, rank, world_size, ray=ray.__version__, device="cpu")
        self.count = 0

    def add(self, number):
        self.count += number
        return self.count

    def leave(self):
        self.run.work(self.count)
        with self.run:
            return self.count


def main():
    config = check_settings(load_config())
    steps = (tasks, places, actors, objects, spilling, placement, back_pressure)
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        connect(run)
        require_free(config.num_workers + 2, {"CPU": 1.0})
        # Distributed: the workers of this run: processes that stay, and keep their own record.
        workers = [Worker.remote(rank, config.num_workers, config.output_dir) for rank in range(config.num_workers)]
        ray.get([worker.add.remote(0) for worker in workers])
        rows = []
        for number, step in enumerate(steps):
            run.progress(number, len(steps), step.__name__.replace("_", " "))
            rows += [
                {"what": what, "measured": measured, "checked": checked}
                for what, measured, checked in step(config, run, workers)
            ]
        ray.get([worker.leave.remote() for worker in workers])
        run.table("tour", rows)
        keep_profile(config)
        run.progress(len(steps), len(steps), "done")


def timed(work):
    """(result, seconds)"""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def check(held, text):
    """What was looked at, in words; SystemExit when it is not so."""
    if not held:
        raise SystemExit(f"not so: {text}")
    return text


def tasks(config, run, workers):
    ray.get([square.remote(number) for number in range(50)])  # starts processes, which are kept
    # Distributed: `remote` returns at once with a reference to what will be the result; `get` waits for it.
    found, seconds = timed(lambda: ray.get([square.remote(number) for number in range(config.num_tasks)]))
    text = check(
        found == [number**2 for number in range(config.num_tasks)],
        f"{config.num_tasks:,} squares are right, and in order",
    )
    run.metric("tasks_per_second", config.num_tasks / seconds, step=0, unit="tasks/s")
    yield "tasks", f"{config.num_tasks / seconds:,.0f} a second", text


def places(config, run, workers):
    # Distributed: each task says in which process it ran.
    found, deadline = set(), time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < deadline:  # a second process may still be starting
        found |= set(ray.get([where.remote(number) for number in range(40)]))
    here = (socket.gethostname(), os.getpid())
    yield (
        "places",
        f"{len(found)} processes",
        check(len(found) >= 2 and here not in found, "at least two, and none is this program's"),
    )


def actors(config, run, workers):
    calls = config.num_tasks
    (*_, last), seconds = timed(lambda: ray.get([workers[0].add.remote(1) for _ in range(calls)]))
    text = check(last == calls, f"calls of one actor are done one after the other: it has counted to {last:,}")
    ray.get([worker.add.remote(1) for worker in workers])
    run.metric("actor_calls_per_second", calls / seconds, step=0, unit="calls/s")
    yield "actor calls", f"{calls / seconds:,.0f} a second", text


def objects(config, run, workers):
    """Put, read and copy the same array; medians of five."""
    array = np.arange((config.object_mb << 20) // 8, dtype=np.int64)
    put, get, copy = [], [], []
    for _ in range(5):
        # Distributed: one copy goes into the node's shared memory; a process that gets the reference reads it there.
        reference, seconds = timed(lambda: ray.put(array))
        put.append(seconds)
        view, seconds = timed(lambda reference=reference: ray.get(reference))
        get.append(seconds)
        copy.append(timed(lambda: np.copyto(np.empty_like(array), array))[1])
        read = ray.get(look_into.remote(reference))
        wanted = (float(array[::4096].sum()), False, False)
        text = check(
            read == wanted and not view.flags.owndata,
            "a task reads it without a copy: it owns no memory, and cannot write",
        )
        del view, reference
    rates = {
        name: array.nbytes / sorted(seconds)[2] / 1e9
        for name, seconds in (("put", put), ("get", get), ("memcpy", copy))
    }
    for name, rate in rates.items():
        run.metric(f"object_store/{name}_gb_per_second", rate, step=0, unit="GB/s")
    yield (
        f"put of {config.object_mb} MB",
        f"{rates['put']:.1f} GB/s ({rates['put'] / rates['memcpy']:.2f} of memcpy's {rates['memcpy']:.1f})",
        text,
    )
    yield f"get of {config.object_mb} MB", f"{rates['get']:,.0f} GB/s: nothing is moved", text


def spilling(config, run, workers):
    """Twice as much as the store holds: the oldest objects go to disk, and come back when they are asked for."""
    size = 16 << 20
    count = 2 * int(ray.cluster_resources()["object_store_memory"]) // size
    references = [ray.put(np.full(size, number % 251, np.uint8)) for number in range(count)]
    whole = all((ray.get(reference) == number % 251).all() for number, reference in enumerate(references))
    text = check(whole, f"{count} objects of 16 MB, twice what the store holds, all came back as they were")
    yield "spilling", f"{count * 16} MB through the store", text


def placement(config, run, workers):
    # Distributed: room for two tasks, taken together or not at all. PACK: on one node if it has the room; SPREAD: on
    # different nodes if there are.
    group, seconds = timed(lambda: _ready(placement_group([{"CPU": 1}] * 2, strategy="PACK")))
    bundles = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number) for number in range(2)]
    found = ray.get([square.options(scheduling_strategy=bundle).remote(12) for bundle in bundles])
    taken = ray.util.placement_group_table(group)["state"]
    remove_placement_group(group)
    # Distributed: what no node has is waited for, not refused.
    waiting = placement_group([{"CPU": 100_000}])
    ready = waiting.wait(0.5)
    remove_placement_group(waiting)
    text = check(
        found == [144, 144] and taken == "CREATED" and not ready,
        "two tasks ran in the group; a group of 100,000 CPUs is not placed",
    )
    yield "placement group", f"{seconds * 1e3:.0f} ms", text


def _ready(group):
    ray.get(group.ready())
    return group


def back_pressure(config, run, workers):
    """At most `most` tasks at a time, although there are many more to do.

    `ray.wait` returns as soon as one of them is done.
    """
    most, total, running, done, peak = 4, 200, [], 0, 0
    numbers, started = itertools.count(), time.perf_counter()
    while done < total:
        while len(running) < most and (number := next(numbers)) < total:
            running.append(square.remote(number))
        peak = max(peak, len(running))
        ready, running = ray.wait(running)
        done += len(ready)
    seconds = time.perf_counter() - started
    text = check(peak == most and done == total, f"{total} tasks, never more than {peak} of them under way")
    yield "back pressure", f"{total / seconds:,.0f} tasks a second", text


if __name__ == "__main__":
    main()
