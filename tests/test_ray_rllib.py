"""What only the RLlib recipe can do, run for real through the driver."""

import json
import subprocess

import pytest

from tests.helpers import ROOT, Driver, latest, run_cookbook

SHORT = ["recipe=ray_rllib", "scale=smoke"]
RULES = """
import json, statistics, sys
sys.path.insert(0, sys.argv[1])
from environments import Scheduling, any_action, returns_of, shortest_job_first
from gymnasium.utils.env_checker import check_env
check_env(Scheduling(render_mode="rgb_array"), skip_render_check=False)
environment = Scheduling()
environment.reset(seed=3)
waited, steps = 0, 0
while True:
    before = environment.now, environment._in_system()
    _, reward, ended, cut, _ = environment.step(shortest_job_first(environment))
    waited -= reward * 10
    if ended or cut:
        break
by_job = sum(until - environment.arrivals[job] for job, _, _, until in environment.started)
pairs = [(a, b) for a in environment.started for b in environment.started if a is not b]
print(json.dumps({
    "ended": bool(ended),
    "waited": round(waited),
    "by_job": int(by_job),
    "jobs": sorted(int(job) for job, *_ in environment.started),
    "overlaps": any(a[1] == b[1] and a[2] < b[3] and b[2] < a[3] for a, b in pairs),
    "random": statistics.fmean(returns_of("scheduling", any_action, 50, 0)),
    "rule": statistics.fmean(returns_of("scheduling", shortest_job_first, 50, 0)),
}))
"""


FILM = """
import json, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import gymnasium, numpy as np, pictures, torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
box, taken = gymnasium.spaces.Box, []

class Valve(gymnasium.Env):
    metadata, render_mode = {"render_modes": ["rgb_array"]}, "rgb_array"
    observation_space, action_space = box(-1, 1, (1,), np.float32), box(0, 10, (1,), np.float32)
    def __init__(self, render_mode=None): pass
    def reset(self, seed=None, options=None): return np.zeros(1, np.float32), {}
    def step(self, action):
        taken.append(float(action[0]))
        return np.zeros(1, np.float32), 0.0, len(taken) > 1, False, {}
    def render(self): return np.zeros((8, 8, 3), np.uint8)

gymnasium.register("Valve-v0", Valve)
module = SimpleNamespace(
    forward_inference=lambda batch: {Columns.ACTION_DIST_INPUTS: torch.tensor([[0.5, 0.0]])},
    get_inference_action_dist_cls=lambda: TorchDiagGaussian,
)
config = SimpleNamespace(environment="Valve-v0", seed=0, output_dir=sys.argv[2])
pictures.film(SimpleNamespace(get_module=lambda: module), config, 0)
print(json.dumps(taken))
"""


def test_the_film_s_actions_are_the_environment_s(recipe_python, tmp_path):
    """A policy learns continuous actions in [-1, 1]: 0.5 there is 7.5 between 0 and 10."""
    words = [recipe_python("ray_rllib"), "-W", "ignore", "-c", FILM, ROOT / "recipes/ray_rllib", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [7.5, 7.5]
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["episode, return 0.gif"]


def test_the_scheduling_environment_is_what_it_says(recipe_python):
    """The return is minus the time that all jobs spend in the system, counted job by job;
    no machine runs two jobs at once."""
    done = subprocess.run(
        [recipe_python("ray_rllib"), "-W", "ignore", "-c", RULES, ROOT / "recipes/ray_rllib"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ended"]
    assert found["jobs"] == list(range(20))
    assert not found["overlaps"]
    assert found["waited"] == found["by_job"] > 0
    assert found["rule"] > 0.5 * found["random"], "less than half of the time that chance takes (both are negative)"


@pytest.mark.full
def test_a_policy_learns_to_schedule(tmp_path):
    words = [
        "recipe.environment=scheduling",
        "recipe.target_return=-24.0",
        "recipe.num_iterations=50",
        "recipe.learning_rate=0.002",
    ]
    content, folder, _ = run_cookbook("recipe=ray_rllib", "recipe.num_seeds=1", *words, output_root=tmp_path)
    metrics = content["metrics"]
    assert metrics["eval/return_mean"] > metrics["baseline/any_action"] * 0.7, (
        "well above chance (returns are negative)"
    )
    rows = json.loads((folder / "tables/returns.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ["ppo, seed 0", "any action", "shortest job first"]
    page = (folder / "report.html").read_text()
    assert "data:image/gif;base64," in page
    assert "learning curve" in page


@pytest.mark.full
def test_a_killed_runner_is_replaced(tmp_path):
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "progress" and e["done"] >= 2 for e in driver.events()))
    lost = driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, _ = latest(tmp_path, "ray_rllib")
    assert lost in [worker["pid"] for worker in content["lost_workers"]]
    assert [worker["rank"] for worker in content["workers"]] == [0, 1]
    assert content["metrics"]["eval/return_mean"] > 5 * content["metrics"]["baseline/any_action"]


@pytest.mark.full
def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" for e in driver.events()))
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, folder, output = run_cookbook(*SHORT, output_root=tmp_path)
    assert "its driver was killed" in output
    curve = content["curves"]["return_mean/seed_0"]
    assert [iteration for iteration, _ in curve] == list(range(1, 11))
    (row,) = [row for row in json.loads((folder / "tables/returns.json").read_text())["rows"] if row["iterations"]]
    # It did go on: this try has sampled less than the whole.
    assert sum(worker["samples"] for worker in content["workers"]) < row["environment steps"] * 0.7


@pytest.mark.full
def test_killed_after_the_last_checkpoint(tmp_path):
    """Nothing is left to train then, no runner starts, and the run is whole all the same."""
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: any(e["event"] == "checkpoint" and e["step"] == 10 for e in driver.events()))
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, _, output = run_cookbook(*SHORT, output_root=tmp_path)
    assert "its driver was killed" in output
    assert content["status"] == "ok"
    assert content["metrics"]["eval/return_mean"] > 5 * content["metrics"]["baseline/any_action"]


@pytest.mark.parametrize("algorithm", ["appo", "impala", "dqn"])
@pytest.mark.full
def test_another_algorithm(algorithm, tmp_path):
    words = [f"recipe.algorithm={algorithm}", "recipe.num_iterations=3", "recipe.evaluation_every=3"]
    words += ["recipe.profile=true"]
    content, folder, _ = run_cookbook(*SHORT, *words, output_root=tmp_path)
    assert all(worker["samples"] > 300 for worker in content["workers"])
    trace = json.loads((folder / "traces/tasks.json").read_text())
    assert len({event["tid"] for event in trace if "EnvRunner" in event["cat"]}) >= 2, "runners"
    assert content["metrics"]["eval/return_mean"] > 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["recipe.environment=CartPol-v1"],
            "environment='CartPol-v1' is unknown to Gymnasium 1.2.2; did you mean CartPole-v1",
        ),
        (["recipe.algorithm=sac"], "algorithm='sac' is unknown; expected one of: ppo, appo, impala, dqn"),
        (["recipe.hidden=[]"], "hidden=[]: expected a list of whole numbers"),
        (["recipe.num_seeds=0"], "num_seeds=0: expected a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook(*SHORT, *words, output_root=tmp_path, status=1)
    assert text in output


# ---- environments that cannot be played


ENVIRONMENTS = """
import sys
sys.path[:0] = [{recipe!r}, {runrecord!r}, {here!r}]
import types
from settings import check_environment
from environments import make_environment
check_environment(types.SimpleNamespace(environment=sys.argv[1], algorithm=sys.argv[2]))
print(make_environment(sys.argv[1]).observation_space.shape)
"""
OWN = """
import gymnasium
class Own(gymnasium.Env):
    action_space, observation_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.MultiDiscrete([3, 4])
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}
gymnasium.register("Own-v0", Own, max_episode_steps=10)
"""


@pytest.mark.parametrize(
    ("environment", "algorithm", "said"),
    [
        ("CartPole-v1", "dqn", "(4,)"),
        ("FrozenLake-v1", "ppo", "(16,)"),  # the number of a field, one of sixteen
        ("Pendulum-v1", "ppo", "(3,)"),
        ("scheduling", "ppo", "(18,)"),
        ("own_module:Own-v0", "dqn", "(7,)"),
        ("Pendulum-v1", "dqn", "dqn chooses among whole numbers (Discrete) only; algorithm=ppo takes them"),
        ("LunarLander-v3", "ppo", "needs packages that this recipe's environment lacks: "),
        ("CartPole-v7", "ppo", "did you mean CartPole-v1"),
        ("no_module:Own-v0", "ppo", "the module no_module cannot be imported"),
        ("own_module:Won-v0", "ppo", "'Won-v0' is unknown to Gymnasium"),
    ],
)
def test_an_environment_is_taken_or_refused_before_any_work(tmp_path, recipe_python, environment, algorithm, said):
    (tmp_path / "own_module.py").write_text(OWN)
    program = ENVIRONMENTS.format(
        recipe=str(ROOT / "recipes/ray_rllib"), runrecord=str(ROOT / "runrecord"), here=str(tmp_path)
    )
    words = [recipe_python("ray_rllib"), "-c", program, environment, algorithm]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert said in done.stdout + done.stderr and (done.returncode == 0) == said.startswith("(")
    assert "Traceback" not in done.stderr


@pytest.mark.full
def test_an_environment_whose_states_are_numbers(tmp_path):
    words = ["recipe=ray_rllib", "scale=smoke", "recipe.environment=FrozenLake-v1", "recipe.target_return=1.0"]
    content, _, _ = run_cookbook(*words, output_root=tmp_path)
    assert content["status"] == "ok"
