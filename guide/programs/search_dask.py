"""A search of 32 trials in Dask: a future for each, in processes."""

from distributed import Client, LocalCluster
from meter import Meter
from search_trial import TRIALS, best_of, loss_of

if __name__ == "__main__":
    meter = Meter()
    # Distributed: a scheduler and worker processes; their memory is bounded.
    cluster = LocalCluster(
        n_workers=meter.workers,
        threads_per_worker=1,
        memory_limit=f"{meter.memory_mb}MB",
        host="127.0.0.1",
        dashboard_address=None,
    )
    with cluster, Client(cluster) as client:  # Distributed: all work of this process goes there
        meter.ready()

        def answer():
            # Distributed: a future for each trial; `pure=False`, or the second search would be the first one's answer.
            return best_of(client.gather(client.map(loss_of, TRIALS, folder=meter.folder, pure=False)))

        meter.measure(answer)
