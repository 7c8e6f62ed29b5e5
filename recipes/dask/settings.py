"""Which settings make no sense.

As a program it checks a config without loading Dask: python settings.py CONFIG.yaml NUM_WORKERS
"""

import sys

from runrecord import load_config

STEPS = ["ingest", "features", "store", "learn"]
MODELS = ["logistic_regression", "incremental", "random_search", "boosted_trees"]
# The settings that a step's result depends on, beside those of the steps before it.
DEPENDS_ON = {
    "ingest": [],
    "features": ["horizon", "rows_per_partition", "test_share"],
    "store": [],
    "learn": ["models", "search_candidates", "search_blocks", "num_trees", "seed"],
}
CHOICES = {"mode": ["distributed", "processes", "threads"], "horizon": ["before_departure", "after_departure"]}


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise SystemExit(f"{key}={getattr(config, key)!r} is unknown; expected one of: {', '.join(known)}")
    if not config.steps or config.steps != STEPS[: len(config.steps)]:
        raise SystemExit(
            f"steps={config.steps}: expected the first ones of {STEPS}: each reads what the one before writes"
        )
    if unknown := set(config.models) - set(MODELS):
        raise SystemExit(
            f"models={config.models}: {', '.join(sorted(unknown))} is unknown; there are: {', '.join(MODELS)}"
        )
    if not config.models:
        raise SystemExit(f"models=[]: expected some of {', '.join(MODELS)}; without any, leave learn out of steps")
    if not 0 < config.test_share < 1:
        raise SystemExit(f"test_share={config.test_share}: expected a share between 0 and 1")
    if not 0 <= config.max_malformed_share <= 1:
        raise SystemExit(f"max_malformed_share={config.max_malformed_share}: expected a share from 0 to 1")
    for key in ("rows_per_partition", "memory_mb", "search_candidates", "search_blocks", "num_trees"):
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.elastic and config.mode != "distributed":
        raise SystemExit(
            f"elastic=true with mode={config.mode}: only the distributed scheduler's cluster can grow and shrink"
        )
    if config.profile and config.mode != "distributed":
        raise SystemExit(f"profile=true needs mode=distributed, not {config.mode}: say profile=false")
    check_resources(config)
    return config


def check_resources(config):
    """Raises SystemExit when the unequal workers that are asked for cannot be had, or would have nothing to do."""
    if config.learner_resource and config.mode != "distributed":
        raise SystemExit(
            f"learner_resource={config.learner_resource} with mode={config.mode}: only the distributed scheduler "
            "chooses among unequal workers"
        )
    if config.worker_resources and (config.elastic or config.mode != "distributed"):
        raise SystemExit(
            f"worker_resources={config.worker_resources} with mode={config.mode} and elastic={config.elastic}: workers "
            "can differ with mode=distributed and elastic=false only"
        )
    if len(config.worker_resources) > config.num_workers:
        raise SystemExit(
            f"worker_resources={config.worker_resources} is for {len(config.worker_resources)} workers, and there are "
            f"{config.num_workers}"
        )
    if (
        config.learner_resource
        and config.worker_resources
        and not any(config.learner_resource in resources for resources in config.worker_resources)
    ):
        raise SystemExit(
            f"learner_resource={config.learner_resource}: none of the {config.num_workers} workers has it; "
            f"worker_resources={config.worker_resources}"
        )


def depends_on(config, step):
    """The settings that a step's result depends on: with other values an earlier result is not this run's."""
    return {key: getattr(config, key) for key in DEPENDS_ON[step]}


if __name__ == "__main__":
    *config_words, number = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={number}"]))
