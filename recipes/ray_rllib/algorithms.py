"""One configuration for each algorithm, from the recipe's settings."""

from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

CONFIGS = {"ppo": PPOConfig, "appo": APPOConfig, "impala": IMPALAConfig, "dqn": DQNConfig}


class CountSteps(RLlibCallback):
    """Each runner counts what it has sampled, in its own process."""

    def on_sample_end(self, *, env_runner, metrics_logger, samples, **kwargs):
        env_runner.steps_sampled = getattr(env_runner, "steps_sampled", 0) + sum(map(len, samples))


def make_config(config, seed):
    """RLlib's own configuration object; `build_algo()` starts the runners."""
    common = (
        CONFIGS[config.algorithm]()
        .environment(config.environment)
        # Distributed: so many processes that play, each with several copies of the environment.
        .env_runners(num_env_runners=config.num_workers, num_envs_per_env_runner=config.num_envs_per_worker)
        # Distributed: learners of their own exchange gradients like any data-parallel training; 0: the program
        # itself learns.
        .learners(num_learners=config.num_learners)
        # Distributed: a runner that dies is replaced, and the training goes on. An environment that always fails ends
        # it: else it would wait for ever.
        .fault_tolerance(restart_failed_env_runners=True, num_consecutive_env_runner_failures_tolerance=10)
        # Distributed: judged by a runner of its own, while the others sample and the learner learns.
        .evaluation(
            evaluation_interval=config.evaluation_every,
            evaluation_num_env_runners=1,
            evaluation_parallel_to_training=True,
            evaluation_duration=config.evaluation_episodes,
            evaluation_duration_unit="episodes",
            evaluation_config={"explore": False},
        )
        .rl_module(model_config={"fcnet_hiddens": config.hidden, "fcnet_activation": "relu", "vf_share_layers": True})
        .callbacks(CountSteps)
        .debugging(seed=seed, log_level="ERROR")
        .training(lr=config.learning_rate, gamma=config.gamma)
    )
    return TRAINING[config.algorithm](common, config)


def _ppo(common, config):
    return common.training(
        train_batch_size_per_learner=config.train_batch_size,
        minibatch_size=min(256, config.train_batch_size),
        num_epochs=10,
        vf_loss_coeff=0.01,
        entropy_coeff=0.0,
    )


def _impala(common, config):
    # An iteration is a matter of time here: batches come and go without end.
    return common.training(
        train_batch_size_per_learner=min(500, config.train_batch_size),
        vf_loss_coeff=0.05,
        entropy_coeff=0.005,
        grad_clip=20.0,
    ).reporting(min_time_s_per_iteration=2)


def _dqn(common, config):
    return common.training(
        train_batch_size_per_learner=min(64, config.train_batch_size),
        replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 50_000},
        target_network_update_freq=500,
        num_steps_sampled_before_learning_starts=1000,
        epsilon=[(0, 1.0), (10_000, 0.02)],
    ).reporting(min_sample_timesteps_per_iteration=1000)


TRAINING = {"ppo": _ppo, "appo": _impala, "impala": _impala, "dqn": _dqn}
