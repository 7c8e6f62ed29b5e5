"""Which settings make no sense.

As a program it checks a config without loading Ray: python settings.py CONFIG.yaml NUM_WORKERS
"""

import sys

from runrecord import load_config

ALGORITHMS = ["ppo", "appo", "impala", "dqn"]
AT_LEAST_ONE = ["num_envs_per_worker", "num_iterations", "num_seeds", "train_batch_size"]
AT_LEAST_ONE += ["evaluation_every", "evaluation_episodes", "checkpoint_every", "num_data_cpus"]


def check_settings(config):
    """Returns the config, or raises SystemExit with the value, what was expected and what to do."""
    if config.algorithm not in ALGORITHMS:
        raise SystemExit(f"algorithm={config.algorithm!r} is unknown; expected one of: {', '.join(ALGORITHMS)}")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise SystemExit(f"{key}={getattr(config, key)}: expected a whole number of at least 1")
    if not config.hidden or any(type(size) is not int or size < 1 for size in config.hidden):
        raise SystemExit(f"hidden={config.hidden}: expected a list of whole numbers of at least 1, such as [64, 64]")
    if config.learning_rate <= 0:
        raise SystemExit(f"learning_rate={config.learning_rate}: expected a number above 0")
    if not 0 < config.gamma <= 1:
        raise SystemExit(f"gamma={config.gamma}: expected a number above 0, at most 1")
    if config.num_learners < 0:
        raise SystemExit(f"num_learners={config.num_learners}: expected a whole number of at least 0")
    if config.object_store_mb < 80:
        raise SystemExit(f"object_store_mb={config.object_store_mb}: Ray wants at least 80")
    return config


def depends_on(config):
    """The settings that a checkpoint brings back: other values would do nothing."""
    names = ["algorithm", "environment", "num_workers", "num_envs_per_worker", "num_learners", "train_batch_size"]
    names += ["learning_rate", "gamma", "hidden", "evaluation_every", "evaluation_episodes", "seed"]
    return {name: getattr(config, name) for name in names}


def check_environment(config):
    """Raises SystemExit when the environment does not fit.

    It is unknown, cannot be made here, or has actions that the algorithm cannot choose.
    """
    import gymnasium

    from environments import make_environment

    name = config.environment
    if name != "scheduling":
        check_known(name, gymnasium)
    try:
        made = make_environment(name)
    except gymnasium.error.DependencyNotInstalled as error:
        raise SystemExit(
            f"environment={name!r} needs packages that this recipe's environment lacks: {error}. Add them to "
            "requirements.in, renew the lock (make lock RECIPE=ray_rllib), and run again"
        ) from None
    except Exception as error:  # a user's own environment may raise anything
        raise SystemExit(f"environment={name!r} cannot be made: {type(error).__name__}: {error}") from None
    actions, seen = made.action_space, made.observation_space
    made.close()
    spaces = gymnasium.spaces
    if config.algorithm == "dqn" and not isinstance(actions, spaces.Discrete):
        raise SystemExit(
            f"environment={name!r} has the actions {actions}: dqn chooses among whole numbers (Discrete) only; "
            "algorithm=ppo takes them"
        )
    if not isinstance(actions, spaces.Discrete | spaces.Box | spaces.MultiDiscrete):
        raise SystemExit(
            f"environment={name!r} has the actions {actions}; expected Discrete, MultiDiscrete or Box: wrap the "
            "environment"
        )
    if not isinstance(seen, spaces.Box):
        raise SystemExit(f"environment={name!r} shows {seen}, which cannot be made a vector: wrap the environment")


def check_known(name, gymnasium):
    """Raises SystemExit with the nearest names.

    `module:Name-v0` has its module imported, which registers the environment.
    """
    import difflib
    import importlib

    module, colon, _ = name.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # it is the user's: it may raise anything
            raise SystemExit(
                f"environment={name!r}: the module {module} cannot be imported ({type(error).__name__}: {error}); it "
                "must lie beside main.py, or be installed in the recipe's environment"
            ) from None
        name = name.removeprefix(f"{module}:")
    if name not in gymnasium.registry:
        names = [*gymnasium.registry, "scheduling"]
        near = difflib.get_close_matches(name, names, 3, 0.5)
        raise SystemExit(
            f"environment={name!r} is unknown to Gymnasium {gymnasium.__version__}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; it knows {len(names)}, CartPole-v1 among them")
        )


if __name__ == "__main__":
    *config_words, num_workers = sys.argv[1:]
    check_settings(load_config([*config_words, f"num_workers={num_workers}"]))
