"""Which settings make no sense. As a program it checks a config without loading Spark: python settings.py
CONFIG.yaml NUM_WORKERS"""

import sys

from runrecord import load_config

STEPS = [
    "ingest",
    "explore",
    "templates",
    "anomalies",
    "classify",
    "forecast",
    "recommend",
    "gradient_descent",
    "stream",
]
# The settings that a step's result depends on, beside those of the steps that it reads.
DEPENDS_ON = {
    "templates": ["window_minutes"],
    "anomalies": ["window_minutes", "num_clusters", "common_share", "pca_components", "threshold", "seed"],
    "classify": ["model_rows", "num_folds", "seed"],
    "recommend": ["seed"],
    "gradient_descent": ["model_rows", "num_rounds", "seed"],
}
NEEDS = {"forecast": "anomalies", "stream": "classify"}  # what a step reads besides the events


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    for step in config.steps:
        if step not in STEPS:
            raise SystemExit(f"unknown step {step!r} in steps; there are: {', '.join(STEPS)}")
        if NEEDS.get(step, step) not in config.steps:
            raise SystemExit(f"step {step} reads what {NEEDS[step]} writes: add it to steps")
    if not config.steps or config.steps[0] != "ingest":
        raise SystemExit(f"steps={config.steps}: steps must begin with ingest, which the others read")
    if config.steps != [step for step in STEPS if step in config.steps]:
        raise SystemExit(f"steps={config.steps}: the order must be that of {', '.join(STEPS)}")
    for key in ("window_minutes", "model_rows", "num_rounds"):
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if config.num_clusters < 2:
        raise SystemExit(f"num_clusters={config.num_clusters}: KMeans needs at least 2")
    if config.threshold <= 0:
        raise SystemExit(f"threshold={config.threshold}: expected a number above 0 (deviations above the median)")
    if config.num_folds < 2:
        raise SystemExit(f"num_folds={config.num_folds}: cross-validation needs at least 2")
    if 1440 % config.window_minutes:
        raise SystemExit(
            f"window_minutes={config.window_minutes} does not divide a day (1440 minutes): choose 5, 10, 15, 30 or 60"
        )
    if not 0 <= config.pca_components <= 7:
        raise SystemExit(f"pca_components={config.pca_components}: expected 0 (no PCA) to 7 (there are 7 features)")
    if not 0 < config.common_share < 1:
        raise SystemExit(f"common_share={config.common_share}: expected a share between 0 and 1")
    if not 0 <= config.max_malformed_share <= 1:
        raise SystemExit(f"max_malformed_share={config.max_malformed_share}: expected a share from 0 to 1")
    if config.memory_mb < 512:
        raise SystemExit(f"memory_mb={config.memory_mb}: an executor does not start with less than 512")
    return config


def depends_on(config, step):
    """The settings that a step's result depends on: with other values an earlier result is not this run's."""
    return {key: getattr(config, key) for key in DEPENDS_ON.get(step, [])}


if __name__ == "__main__":
    *config_words, _ = sys.argv[1:]
    check_settings(load_config(config_words))
