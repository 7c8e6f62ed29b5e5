"""A cluster of Dask's on this machine, for the programs that use it."""

from distributed import Client


def start(num_workers, memory_mb):
    """Starts it, and returns its client: all work of this process goes there, and the cluster ends with it."""
    # Distributed: a scheduler and worker processes; their memory is bounded, more goes to disk.
    return Client(
        n_workers=num_workers,
        threads_per_worker=1,
        memory_limit=f"{memory_mb}MB",
        host="127.0.0.1",
        dashboard_address=None,
    )
