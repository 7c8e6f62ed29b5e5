"""What a search has tried so far, and which processes did it.

Tune keeps its callbacks in a file, to restore an experiment from: they hold nothing themselves, and speak to the search
that is under way.
"""

import json
import time

import ray
from ray import tune

from runrecord import RunRecord

UNDER_WAY = []  # the search, while its experiment runs


class Reporter(tune.Callback):
    """Tune calls these in this program, for each result of any trial."""

    def on_trial_result(self, iteration, trials, trial, result, **info):
        UNDER_WAY[0].take(trial.trial_id, result)

    def on_trial_recover(self, iteration, trials, trial, **info):
        UNDER_WAY[0].lose(trial.trial_id)

    def on_trial_error(self, iteration, trials, trial, **info):
        UNDER_WAY[0].lose(trial.trial_id)


class Budget(tune.Stopper):
    """Ends a trial after the most epochs that one may train, and the experiment when the budget is spent."""

    def __call__(self, trial_id, result):
        return result["training_iteration"] >= UNDER_WAY[0].longest

    def stop_all(self):
        return UNDER_WAY[0].spent() >= UNDER_WAY[0].config.budget_epochs


class Search:
    """One search's results: from this try and, after a restore, from those before it."""

    def __init__(self, name, seed, phase, num_phases, longest, config, run):
        self.name, self.seed, self.phase, self.num_phases, self.longest = name, seed, phase, num_phases, longest
        self.config, self.run = config, run
        self.folder = f"{config.checkpoint_dir}/experiments/{name}-{seed}"
        self.results = {}  # (trial, epoch) -> result
        self.records = {}  # process -> (rank, record)
        self.process_of = {}  # trial -> process
        self.before = 0.0  # seconds of earlier tries
        self.log_path = f"{self.folder}.jsonl"

    def __enter__(self):
        """Reads what earlier tries have written down."""
        try:
            with open(self.log_path) as file:
                for line in file.read().rpartition("\n")[0].splitlines():
                    result = json.loads(line)
                    self.results[result["trial"], result["epoch"]] = result
            self.before = max((result["seconds"] for result in self.results.values()), default=0.0)
        except FileNotFoundError:
            pass
        self.log, self.started = open(self.log_path, "a", buffering=1), time.perf_counter()
        UNDER_WAY[:] = [self]
        return self

    def __exit__(self, *error):
        UNDER_WAY.clear()
        self.log.close()
        for rank, (_, record) in enumerate(self.records.values()):
            record.world(rank, len(self.records))
            with record:
                pass

    def spent(self):
        """Epochs so far, over all trials; one that was done again after a loss counts once."""
        return len(self.results)

    def take(self, trial, result):
        place = result["hostname"], result["pid"]
        # Distributed: the result itself says in which process, on which host, it was made.
        if place not in self.records:
            rank = next(
                rank for rank in range(len(self.records) + 1) if rank not in {rank for rank, _ in self.records.values()}
            )
            facts = {
                "host": place[0],
                "pid": place[1],
                "phase": self.phase,
                "ray": ray.__version__,
                "device": "gpu" if self.config.use_gpu else "cpu",
            }
            num = len(self.records) + 1
            self.records[place] = rank, RunRecord(self.config.output_dir, rank, num, **facts)
            for known, record in self.records.values():
                record.world(known, num)
        self.records[place][1].work(1)
        self.process_of[trial] = place
        keys = ("learning_rate", "momentum", "weight_decay")
        entry = {
            "trial": trial,
            "epoch": result["training_iteration"],
            "accuracy": result["accuracy"],
            "test_accuracy": result["test_accuracy"],
            "diverged": result["diverged"],
            "seconds": round(self.before + time.perf_counter() - self.started, 3),
            "settings": {key: result["config"][key] for key in keys},
        }
        self.results[trial, entry["epoch"]] = entry
        self.log.write(json.dumps(entry) + "\n")
        budget = self.config.budget_epochs
        best = max((result["accuracy"] for result in self.results.values() if not result["diverged"]), default=0.0)
        label = self.name + (f", seed {self.seed + 1} of {self.config.num_seeds}" if self.config.num_seeds > 1 else "")
        trials = len({trial for trial, _ in self.results})
        text = f"{label}: {self.spent()} of {budget} epochs, {trials} trials, best {best:.4f}"
        self.run.progress(self.phase * budget + self.spent(), self.num_phases * budget, text)

    def lose(self, trial):
        """A trial's process has died: its record has no end, and the next process takes its rank."""
        place = self.process_of.pop(trial, None)
        self.records.pop(place, None)

    def content(self):
        """What the search has found so far.

        {search, seed, trials: [{id, results: [...]}, ...], best, seconds,
        history: [[epochs, seconds, best accuracy so far], ...]}
        """
        trials, history, best = {}, [], 0.0
        for (trial, _), result in self.results.items():
            trials.setdefault(trial, {"id": trial, "results": []})["results"].append(result)
            best = best if result["diverged"] else max(best, result["accuracy"])
            history.append([len(history) + 1, result["seconds"], best])
        return {
            "search": self.name,
            "seed": self.seed,
            "trials": list(trials.values()),
            "best": best,
            "history": history,
            "seconds": history[-1][1] if history else 0.0,
        }
