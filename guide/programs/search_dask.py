"""A search of 32 trials in Dask: a future for each, in processes."""

from dask_local import start
from meter import Meter
from search_trial import TRIALS, best_of, loss_of

if __name__ == "__main__":
    meter = Meter()
    with start(meter.workers, meter.memory_mb) as client:  # Distributed: a scheduler and worker processes
        meter.ready()

        def answer():
            # Distributed: a future for each trial; `pure=False`, or the second search would be the first one's answer.
            return best_of(client.gather(client.map(loss_of, TRIALS, folder=meter.folder, pure=False)))

        meter.measure(answer)
