"""A search of 32 trials in plain processes: Python's own pool, `workers` of them."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from meter import Meter

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the workers are the threads

if __name__ == "__main__":
    from search_trial import TRIALS, best_of, loss_of

    meter = Meter()
    # Distributed: trials know nothing of each other, so that any process can make any of them.
    with ProcessPoolExecutor(meter.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(meter.workers)))
        meter.ready()
        meter.measure(lambda: best_of(list(pool.map(partial(loss_of, folder=meter.folder), TRIALS))))
