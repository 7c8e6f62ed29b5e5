"""Hyperparameter search with Ray Tune: five searches at the same budget.

Shows:   one trainable under grid, random and Bayesian search, successive halving and population based training, trials
         in parallel as far as resources go, processes kept from trial to trial, a killed trial that goes on from its
         checkpoint, a killed experiment that is restored, and what each search found for how many epochs.
Choose:  when a training is too small to divide and has to be done many times.
Run:     python -m rayrun --num-cpus 3 main.py config.yaml num_workers=2
Expect:  validation accuracy of at least 0.94 after 144 epochs in all, by each search; two to three minutes
         on two CPU cores.
Source:  Liaw et al. 2018, "Tune: A Research Platform for Distributed Model Selection and Training"; searches.py names
         the searches' papers.
"""

import json
import os
from pathlib import Path

import ray
from ray import tune

from pictures import draw_comparison, draw_schedule
from records import Budget, Reporter, Search
from runrecord import RunRecord, load_config
from searches import METRIC, most_epochs, search_of
from settings import check_settings
from trainable import Classifier, Meeting, read_rows
from workers import connect, keep_profile, require_free


def main():
    config = check_settings(load_config())
    rows = read_rows(config)
    most = most_epochs(config, len(rows["train_labels"]))
    with RunRecord(config.output_dir, 0, 1, role="driver", ray=ray.__version__) as run:
        # After a kill, Tune trains again what it has not noted. It notes its state every ten seconds by default.
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(config.snapshot_seconds)
        connect(run)  # Distributed: this program proposes and judges; trials run in processes that Ray starts.
        need = {"CPU": float(config.cpus_per_trial), **({"GPU": 1.0} if config.use_gpu else {})}
        require_free(config.num_workers, need)
        check_same_space(config)
        phases = [(name, seed) for name in config.searches for seed in range(config.num_seeds)]
        found = [
            search(phase, *which, len(phases), config, most, need, rows, run) for phase, which in enumerate(phases)
        ]
        compare(config, found, run)
        keep_profile(config)


def search(phase, name, seed, num_phases, config, most, need, rows, run):
    """One search, or what it found when an earlier try has finished it; see `Search.content` for what is returned."""
    path = Path(config.checkpoint_dir) / f"{name}-{seed}.json"
    if not path.exists():
        (path.parent / "experiments").mkdir(parents=True, exist_ok=True)
        plan = search_of(name, config, config.seed + seed, most)
        with Search(name, seed, phase, num_phases, plan["epochs"], config, run) as under_way:
            tuner_of(under_way, plan, config, need, rows).fit()
        path.with_suffix(".partial").write_text(json.dumps(under_way.content()) + "\n")
        path.with_suffix(".partial").replace(path)
        run.checkpoint(path, phase, phase + 1)
    content = json.loads(path.read_text())
    for trial in content["trials"]:
        run.trial(
            phase,
            trial["id"],
            [result["epoch"] for result in trial["results"]],
            max(result["accuracy"] for result in trial["results"]),
        )
    run.metric(f"{name}/accuracy", best_of(content)["accuracy"], step=seed)
    return content


def tuner_of(under_way, plan, config, need, rows):
    """Tune's own object: a new experiment, or one that was cut off."""
    settings = {key: getattr(config, key) for key in ("width", "batch_size", "cpus_per_trial", "use_gpu")}
    settings["seed"] = config.seed + under_way.seed
    restored = tune.Tuner.can_restore(under_way.folder)
    # Few trials may be left of an experiment that was cut off.
    settings["places"] = 1 if restored else min(config.num_workers, plan["num_trials"])
    # Distributed: the rows go into the object store once; all trials of a node read that one copy.
    trainable = tune.with_parameters(Classifier, rows=rows, settings=settings, meeting=Meeting.remote())
    # Distributed: a trial begins when this is free; that, not a number of threads, decides how many run at
    # the same time.
    trainable = tune.with_resources(trainable, {resource.lower(): amount for resource, amount in need.items()})
    if restored:
        # Distributed: the experiment's state is on disk: trials that have ended stay as they are, the others go on from
        # their checkpoints.
        return tune.Tuner.restore(under_way.folder, trainable, resume_unfinished=True, resume_errored=True)
    folder = Path(under_way.folder)
    return tune.Tuner(
        trainable,
        param_space=plan["space"],
        tune_config=tune.TuneConfig(
            **METRIC,
            num_samples=plan["num_samples"],
            search_alg=plan["search_alg"],
            scheduler=plan["scheduler"],
            reuse_actors=True,  # Distributed: a process that has finished one trial takes the next.
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[Reporter()],
            stop=Budget(),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            # Distributed: a trial whose process dies is started again elsewhere, from its last checkpoint.
            failure_config=tune.FailureConfig(max_failures=config.max_trial_failures),
        ),
    )


def check_same_space(config):
    """Raises SystemExit when what is to be resumed has searched another space, or another budget.

    Its trials would not fit.
    """
    path = Path(config.checkpoint_dir) / "space.json"
    names = ["learning_rates", "momenta", "weight_decays"]
    names += ["budget_epochs", "epochs_per_trial", "population", "perturb_every"]
    names += ["width", "batch_size", "validation_share", "max_rows", "max_steps", "data_dir", "seed"]
    mine = {name: getattr(config, name) for name in names}
    if path.exists():
        theirs = json.loads(path.read_text())
        if other := [
            f"{name} is {theirs[name]} there and {mine[name]} here" for name in names if theirs[name] != mine[name]
        ]:
            raise SystemExit(
                f"{path.parent} holds an experiment of another search space: {'; '.join(other)}; use another "
                "checkpoint_dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_text(json.dumps(mine) + "\n")
    path.with_suffix(".partial").replace(path)


def compare(config, found, run):
    """A row and a curve for each search.

    The test accuracy is that of the winner's best epoch: no search looked at it.
    """
    table = []
    for content in found:
        best = best_of(content)
        row = {
            "search": content["search"],
            "seed": content["seed"],
            "trials": len(content["trials"]),
            "epochs": len(content["history"]),
            "seconds": round(content["seconds"], 1),
            "validation accuracy": round(best["accuracy"], 4),
            "test accuracy": round(best["test_accuracy"], 4),
        }
        row |= {key: f"{value:.3g}" for key, value in best["settings"].items()}
        table.append(row)
    run.table("searches", table)
    draw_comparison(config, found)
    for content in found:
        if content["search"] == "pbt" and content["seed"] == 0:
            draw_schedule(config, content)
    winner = max(found, key=lambda content: rank_of(best_of(content)))
    if best_of(winner)["diverged"]:
        raise SystemExit(
            f"all {sum(len(content['trials']) for content in found)} trials diverged: the loss is no number in any of "
            f"them. learning_rates={config.learning_rates} is too high: choose smaller ones"
        )
    run.metric("best/accuracy", best_of(winner)["accuracy"], step=0)
    # No search saw these rows, so this figure is free of the luck of picking the best of many trials.
    run.metric("best/test_accuracy", best_of(winner)["test_accuracy"], step=0)
    run.progress(1, 1, f"best: {winner['search']}, {best_of(winner)['accuracy']:.4f}")


def best_of(content):
    """The best epoch of the best trial: {accuracy, test_accuracy, settings, diverged, ...}.

    One that diverged is best only among such.
    """
    return max((epoch for trial in content["trials"] for epoch in trial["results"]), key=rank_of)


def rank_of(epoch):
    """What epochs are compared by: one whose loss is no number comes behind all others."""
    return not epoch["diverged"], epoch["accuracy"]


if __name__ == "__main__":
    main()
