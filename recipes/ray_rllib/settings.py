"""Which settings make no sense. As a program it checks a config without loading Ray: python settings.py CONFIG.yaml NUM_WORKERS"""

import sys

from runrecord import load_config

ALGORITHMS = ["ppo", "appo", "impala", "dqn"]
AT_LEAST_ONE = ["num_envs_per_worker", "num_iterations", "num_seeds", "train_batch_size", "evaluation_every", "evaluation_episodes", "checkpoint_every", "num_data_cpus"]  # fmt: skip


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    if config.algorithm not in ALGORITHMS:
        raise SystemExit(f"algorithm={config.algorithm!r} is unknown; expected one of: {', '.join(ALGORITHMS)}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if not config.hidden or any(type(size) is not int or size < 1 for size in config.hidden):
        raise SystemExit(f"hidden={config.hidden}: expected a list of whole numbers of at least 1, such as [64, 64]")
    if not 0 < config.gamma <= 1:
        raise SystemExit(f"gamma={config.gamma}: expected a number above 0, at most 1")
    if config.num_learners < 0:
        raise SystemExit(f"num_learners={config.num_learners}: expected a whole number of at least 0")
    if config.object_store_mb < 80:
        raise SystemExit(f"object_store_mb={config.object_store_mb}: Ray wants at least 80")
    return config


def check_environment(config):
    """Raises SystemExit when nobody knows the environment, with the nearest names."""
    import difflib

    import gymnasium

    name = config.environment
    if name == "scheduling":
        return
    if name not in gymnasium.registry:
        names = [*gymnasium.registry, "scheduling"]
        near = difflib.get_close_matches(name, names, 3, 0.5)
        raise SystemExit(
            f"environment={name!r} is unknown to Gymnasium {gymnasium.__version__}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; it knows {len(names)}, CartPole-v1 among them")
        )


def most_iterations(config):
    return min(config.num_iterations, config.max_iterations or config.num_iterations)


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={num_workers}"]))
