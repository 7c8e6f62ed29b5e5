"""A cluster of Ray's on this machine, for the programs that use it."""

import logging

import ray


def start(num_workers, memory_mb):
    """Starts it: `num_workers` tasks at a time, and an object store of a worker's memory."""
    # Distributed: its processes share objects by the store; what does not fit goes to disk.
    ray.init(
        num_cpus=num_workers,
        object_store_memory=memory_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
