"""Reinforcement learning with RLlib: many processes play copies of an environment, one learner improves the policy.

Shows:   PPO, APPO, IMPALA and DQN behind one configuration; environment runners in parallel, evaluation beside the
         training, checkpoints and restoring, an environment of one's own with a rule to beat, and the spread over
         seeds, without which a learning curve says little.
Choose:  when playing the environment is what takes the time. For one fast environment a single-file program is simpler.
Run:     python -m rayrun --num-cpus 4 main.py config.yaml num_workers=2
Expect:  CartPole: a mean return of at least 450 of 500, within five minutes on two CPU cores, for three seeds.
Source:  Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; Liang et al. 2018, "RLlib";
         RLlib's documentation.
"""

import json
import os
import shutil
import socket
import statistics
import time
from pathlib import Path

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env
from ray.tune.trainable import trainable

from algorithms import make_config
from environments import any_action, make_environment, returns_of, shortest_job_first
from pictures import draw_curves, film
from runrecord import RunRecord, check_position, load_config
from settings import check_environment, check_settings, depends_on
from workers import connect, keep_profile, require_free


def main():
    config = check_settings(load_config())
    check_environment(config)
    # An algorithm makes an empty folder wherever this says, by default in the home, which may be read-only.
    trainable.DEFAULT_STORAGE_PATH = f"{config.output_dir}/scratch"
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        connect(run)  # Distributed: runners and learners are processes that Ray starts; this program drives them.
        require_free(config.num_workers + config.num_learners + 1, {"CPU": 1.0})
        # Distributed: runners make their environments by this name, in their own processes.
        register_env(config.environment, lambda settings: make_environment(config.environment, **settings))
        results = [train(config, number, run) for number in range(config.num_seeds)]
        compare(config, results, run)
        keep_profile(config)


def train(config, number, run):
    """One training, from its own seed.

    Goes on from its last checkpoint. Returns {curve: [...], eval: mean return, iterations, seconds}.
    """
    folder = Path(config.checkpoint_dir) / f"seed-{number}"
    put_back(folder)
    state = {"curve": [], "evaluations": [], "seconds": 0.0, "iterations": 0, "done": False}
    state["depends_on"] = depends_on(config)
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text())
        check_position(folder, state["depends_on"], depends_on(config))
    if state["done"]:
        return state
    started = time.perf_counter()
    algorithm = restored(folder) or make_config(config, config.seed + 1000 * number).build_algo()
    if number == 0:
        run.metric("seconds/build", time.perf_counter() - started, step=0, unit="s")
    runners = Runners(algorithm, config, number)
    total, before = config.num_iterations, number * config.num_iterations
    try:
        while not state["done"]:
            started = time.perf_counter()
            take_iteration(algorithm, state)
            state["seconds"] += time.perf_counter() - started
            runners.look()  # Distributed: one may have died meanwhile; RLlib has put another in its place.
            mean = state["curve"][-1][1]
            if mean is not None:
                run.metric(f"return_mean/seed_{number}", mean, step=state["iterations"])
            if state["evaluations"] and state["evaluations"][-1][0] == state["iterations"]:
                run.metric(f"evaluation/seed_{number}", state["evaluations"][-1][1], step=state["iterations"])
            seeds = f"seed {number + 1} of {config.num_seeds}, " if config.num_seeds > 1 else ""
            shown = "no episode has ended" if mean is None else f"mean return {mean:.1f}"
            run.progress(
                before + state["iterations"],
                total * config.num_seeds,
                f"{seeds}iteration {state['iterations']}: {shown}",
            )
            state["done"] = state["iterations"] >= total or (mean is not None and mean >= config.target_return)
            if state["done"]:
                finish(algorithm, state)
                runners.close()  # before the checkpoint that says done: a run that goes on from it has no runners
            if state["done"] or state["iterations"] % config.checkpoint_every == 0:
                save(algorithm, state, folder)
                run.checkpoint(folder, number, state["iterations"])
        film(algorithm, config, number)
    finally:
        algorithm.stop()
    run.metric(f"eval/seed_{number}", state["eval"], step=number)
    return state


def take_iteration(algorithm, state):
    # Distributed: all runners play with the latest policy, the learner improves it on what they bring, and the
    # runners get it back.
    result = algorithm.train()
    sampled = result.get("env_runners", {})
    mean = sampled.get("episode_return_mean")
    # An asynchronous algorithm's iteration may end before a runner has told of its steps.
    before = state["curve"][-1][0] if state["curve"] else 0
    steps = int(sampled.get("num_env_steps_sampled_lifetime", before))
    state["iterations"] += 1
    state["curve"].append([steps, None if mean is None or np.isnan(mean) else float(mean)])
    judged = result.get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
    if judged is not None and not np.isnan(judged):
        state["evaluations"].append([state["iterations"], float(judged)])


def finish(algorithm, state):
    """Judges the final policy, without exploration."""
    state["eval"] = float(algorithm.evaluate()["env_runners"]["episode_return_mean"])


class Runners:
    """The environment runners as they say who they are, and the records that are kept for them here."""

    def __init__(self, algorithm, config, phase):
        self.algorithm, self.config, self.phase, self.records = algorithm, config, phase, {}
        self.look()

    def look(self):
        # Distributed: each runner answers from its own process: who it is, and how many steps it has sampled.
        answers = self.algorithm.env_runner_group.foreach_env_runner(whereabouts, local_env_runner=False)
        for rank, host, pid, steps in answers:
            if (rank, pid) not in self.records:
                facts = {"host": host, "pid": pid, "phase": self.phase, "ray": ray.__version__, "device": "cpu"}
                self.records[rank, pid] = [RunRecord(self.config.output_dir, rank, self.config.num_workers, **facts), 0]
            self.records[rank, pid][1] = steps
        self.living = {(rank, pid) for rank, _, pid, _ in answers}

    def close(self):
        self.look()
        for place in self.living:  # the others are lost: their records have no end
            record, steps = self.records[place]
            with record:
                record.work(steps)


def whereabouts(runner):
    """Runs in an environment runner's process: (rank, host, process id, steps sampled there)."""
    return runner.worker_index - 1, socket.gethostname(), os.getpid(), getattr(runner, "steps_sampled", 0)


def save(algorithm, state, folder):
    """Policy, optimizer and curve: beside the last checkpoint, then renamed."""
    partial, old = folder.with_suffix(".partial"), folder.with_suffix(".old")
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    algorithm.save_to_path(str(partial / "algorithm"))
    (partial / "state.json").write_text(json.dumps(state) + "\n")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def put_back(folder):
    """Gives the last checkpoint its name back, where `save` was cut off between its two renames."""
    old = folder.with_suffix(".old")
    if not folder.exists() and old.exists():
        old.rename(folder)


def restored(folder):
    """The algorithm of the last whole checkpoint, with new runners; None without one."""
    if not (folder / "algorithm").exists():
        return None
    print(f"going on from {folder}", flush=True)
    return Algorithm.from_checkpoint(str(folder / "algorithm"))


def compare(config, results, run):
    """What all seeds together say, beside policies that learn nothing."""
    evals = [result["eval"] for result in results]
    run.metric("eval/return_mean", statistics.fmean(evals), step=len(evals))
    run.metric("eval/return_lowest", min(evals), step=len(evals))
    rows = [
        {
            "policy": f"{config.algorithm}, seed {number}",
            "mean return": round(result["eval"], 2),
            "iterations": result["iterations"],
            "environment steps": result["curve"][-1][0],
            "seconds": round(result["seconds"], 1),
        }
        for number, result in enumerate(results)
    ]
    rules = {"any action": any_action} | (
        {"shortest job first": shortest_job_first} if config.environment == "scheduling" else {}
    )
    for name, policy in rules.items():
        mean = statistics.fmean(returns_of(config.environment, policy, 100, config.seed))
        run.metric(f"baseline/{name.replace(' ', '_')}", mean, step=0)
        rows.append(
            {"policy": name, "mean return": round(mean, 2), "iterations": "", "environment steps": "", "seconds": ""}
        )
    run.table("returns", rows)
    draw_curves(config, results, {row["policy"]: row["mean return"] for row in rows[len(results) :]})


if __name__ == "__main__":
    main()
