"""The saved policy plays other episodes: NumPy chooses the likeliest action, Gymnasium plays.

Returns are random numbers, so the figures agree as far as two samples of episodes do.
"""

import pickle

import gymnasium
import numpy as np
import yaml

TOLERANCE = 1e-9
EXCEPT = {
    "return_mean/seed_0": "is of policies that the training has improved since",
    "evaluation/seed_0": "is of a policy that the training may have improved since",
}
BREAK = (
    "main.py",
    'state["eval"] = float(algorithm.evaluate()["env_runners"]["episode_return_mean"])',
    'state["eval"] = 2 * float(algorithm.evaluate()["env_runners"]["episode_return_mean"])',
)
BROKEN = ["eval/return_lowest", "eval/return_mean", "eval/seed_0"]
SMALLEST = ["scale=smoke", "recipe.num_iterations=2", "recipe.evaluation_every=2"]
SEEDS = range(10_000, 10_200)  # of episodes that the run has not played
DEVIATIONS = 4  # of the difference between the two means


def recomputed(run, dataset):
    config = yaml.safe_load((run / "config.yaml").read_text())
    environment, found = gymnasium.make(config["environment"]), {}
    folders = sorted(run.glob("checkpoints/seed-*/algorithm/learner_group/learner/rl_module/default_policy"))
    assert folders, "the run has left no policy"
    for folder in folders:
        # The run's own folder: nobody else's pickles are read.
        state = pickle.loads((folder / "module_state.pkl").read_bytes())
        returns = [played(environment, lambda seen, state=state: likeliest(state, seen), seed) for seed in SEEDS]
        spread = np.std(returns, ddof=1) * np.sqrt(1 / config["evaluation_episodes"] + 1 / len(SEEDS))
        found[f"eval/{folder.parents[4].name.replace('-', '_')}"] = [float(np.mean(returns)), DEVIATIONS * spread]
    means = list(found.values())
    widest = max(tolerance for _, tolerance in means)
    found["eval/return_mean"] = [float(np.mean([mean for mean, _ in means])), widest]
    found["eval/return_lowest"] = [min(mean for mean, _ in means), widest]
    # Chance plays the very episodes of the run: its actions follow from the seed.
    environment.action_space.seed(config["seed"])
    by_chance = [
        played(environment, lambda _: environment.action_space.sample(), config["seed"] + number)
        for number in range(100)
    ]
    return found | {"baseline/any_action": float(np.mean(by_chance))}


def likeliest(state, seen):
    """The action with the largest logit, by a network of two hidden layers and ReLU."""
    for layer in ("encoder.encoder.net.mlp.0", "encoder.encoder.net.mlp.2"):
        seen = np.maximum(state[f"{layer}.weight"] @ seen + state[f"{layer}.bias"], 0)
    return int(np.argmax(state["pi.net.mlp.0.weight"] @ seen + state["pi.net.mlp.0.bias"]))


def played(environment, choose, seed):
    """The return of one episode."""
    seen, _ = environment.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        seen, reward, ended, cut, _ = environment.step(choose(seen))
        total, over = total + float(reward), ended or cut
    return total
