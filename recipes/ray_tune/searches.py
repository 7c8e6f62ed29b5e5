"""Five ways to spend a budget of epochs, each as what Tune calls search algorithm and scheduler.

Sources: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization"; Bergstra et al. 2011, "Algorithms
for Hyper-Parameter Optimization" (TPE); Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA);
Jaderberg et al. 2017, "Population Based Training of Neural Networks".
"""

import math
import random

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

METRIC = {"metric": "accuracy", "mode": "max"}


def space_of(config):
    """Where values are drawn from."""
    return {
        "learning_rate": tune.loguniform(*config.learning_rates),
        "momentum": tune.uniform(*config.momenta),
        "weight_decay": tune.loguniform(*config.weight_decays),
    }


def most_epochs(config, num_rows):
    """How many epochs over these rows a trial may train: `max_steps` bounds its optimizer steps.

    None: there is no bound.
    """
    return max(1, config.max_steps // -(-num_rows // config.batch_size)) if config.max_steps else None


def search_of(name, config, seed, most=None):
    """{space, num_samples, search_alg, scheduler, num_trials, epochs: the longest that a trial trains} of a search."""
    longest, space = min(config.epochs_per_trial, most or config.epochs_per_trial), space_of(config)
    num_trials = config.budget_epochs // longest
    # Draws what the space says, at most so many trials at a time.
    draws = BasicVariantGenerator(max_concurrent=config.num_workers, random_state=seed)
    plain = {
        "space": space,
        "num_samples": num_trials,
        "num_trials": num_trials,
        "search_alg": draws,
        "scheduler": None,
        "epochs": longest,
    }
    if name == "grid":
        side = max(1, math.isqrt(num_trials))
        low, high = config.learning_rates
        grid = {
            "learning_rate": tune.grid_search([float(rate) for rate in np.geomspace(low, high, num_trials // side)]),
            "momentum": tune.grid_search([float(value) for value in np.linspace(*config.momenta, side)]),
            "weight_decay": math.sqrt(math.prod(config.weight_decays)),
        }
        return plain | {"space": grid, "num_samples": 1, "num_trials": side * (num_trials // side)}
    if name == "bayesian":
        found = ConcurrencyLimiter(OptunaSearch(**METRIC, seed=seed), config.num_workers)
        return plain | {"search_alg": found}
    if name == "asha":
        # Distributed: a trial that is among the worse ones at an epoch where trials are compared is stopped,
        # without waiting for the others: no worker is ever idle. More trials than the budget can finish; the budget
        # ends the search.
        halving = ASHAScheduler(max_t=longest, grace_period=max(1, longest // 9), reduction_factor=3)
        return plain | {"num_samples": 3 * num_trials, "scheduler": halving}
    if name == "pbt":
        # Distributed: the worst quarter of the population takes over the weights of the best one, and tries other
        # settings from there.
        random.seed(seed)  # it draws from Python's and NumPy's own generators
        np.random.seed(seed)
        exploit = PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=config.perturb_every,
            hyperparam_mutations=space,
            synch=True,
        )
        return plain | {
            "num_samples": config.population,
            "num_trials": config.population,
            # A population is compared as a whole. A trial that waits for the others is paused and still counts as
            # running, so a limit below the population would never end: only the resources limit it.
            "search_alg": BasicVariantGenerator(random_state=seed),
            "scheduler": exploit,
            "epochs": min(config.budget_epochs // config.population, most or config.budget_epochs),
        }
    return plain
