"""Which settings make no sense.

As a program it checks a config without loading Ray: python settings.py CONFIG.yaml NUM_WORKERS
"""

import sys

from runrecord import load_config

SEARCHES = ["grid", "random", "bayesian", "asha", "pbt"]
AT_LEAST_ONE = ["cpus_per_trial", "budget_epochs", "epochs_per_trial", "population"]
AT_LEAST_ONE += ["perturb_every", "num_seeds", "batch_size"]


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if not config.searches or (unknown := [name for name in config.searches if name not in SEARCHES]):
        what = f"{', '.join(map(str, unknown))} is unknown" if config.searches else "there is nothing to do"
        raise SystemExit(f"searches={config.searches}: {what}; expected some of: {', '.join(SEARCHES)}")
    if config.width < 8 or config.width % 8:
        raise SystemExit(f"width={config.width}: expected a multiple of 8 (the network normalises in 8 groups)")
    for key in ("learning_rates", "momenta", "weight_decays"):
        try:
            low, high = map(float, getattr(config, key))  # YAML reads 1e-6, without a point, as a text
        except (TypeError, ValueError):
            low, high = 0.0, -1.0
        if not low < high or (key != "momenta" and low <= 0):
            raise SystemExit(
                f"{key}={getattr(config, key)}: expected [lowest, highest]" + (", above 0" if key != "momenta" else "")
            )
        setattr(config, key, [low, high])
    if config.epochs_per_trial > config.budget_epochs:
        raise SystemExit(
            f"epochs_per_trial={config.epochs_per_trial} is more than budget_epochs={config.budget_epochs}: not one "
            "trial could end"
        )
    if "pbt" in config.searches and config.population > config.budget_epochs:
        raise SystemExit(
            f"population={config.population} is more than budget_epochs={config.budget_epochs}: less than an epoch "
            "for each"
        )
    if not 0 < config.validation_share < 1:
        raise SystemExit(f"validation_share={config.validation_share}: expected a share between 0 and 1")
    for key in ("max_trial_failures", "num_data_cpus"):
        if getattr(config, key) < 0:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 0")
    if config.object_store_mb < 80:
        raise SystemExit(f"object_store_mb={config.object_store_mb}: Ray wants at least 80")
    return config


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={num_workers}"]))
