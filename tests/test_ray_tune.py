"""What only the Ray Tune recipe can do, run for real through the driver."""

import json

import pytest

from tests.helpers import Driver, latest, run_cookbook

SHORT = [
    "recipe=ray_tune",
    "recipe.budget_epochs=18",
    "recipe.epochs_per_trial=6",
    "recipe.population=3",
    "recipe.perturb_every=2",
]


def trials_of(folder, name):
    """{trial: its epochs} as the recipe has kept them."""
    content = json.loads((folder / f"checkpoints/{name}-0.json").read_text())
    return {trial["id"]: [result["epoch"] for result in trial["results"]] for trial in content["trials"]}


def one_after_the_other(trials):
    return all(epochs == list(range(1, len(epochs) + 1)) for epochs in trials.values())


@pytest.mark.full
def test_every_search_spends_the_same_budget(tmp_path):
    content, folder, _ = run_cookbook(*SHORT, "recipe.profile=true", output_root=tmp_path)
    trace = json.loads((folder / "traces/tasks.json").read_text())
    assert len({event["tid"] for event in trace if event["cat"].endswith(".train")}) > 1, "trials"
    table = json.loads((folder / "tables/searches.json").read_text())["rows"]
    assert [row["search"] for row in table] == ["grid", "random", "bayesian", "asha", "pbt"]
    for row in table:
        # A search may end below the budget when no trial is left to be resumed (asha), and a little above it,
        # by trials under way.
        assert 12 <= row["epochs"] <= 20, row
        assert one_after_the_other(trials_of(folder, row["search"]))
    assert len(trials_of(folder, "asha")) > len(trials_of(folder, "random")) == 3, (
        "what is stopped early makes room for more"
    )
    assert content["metrics"]["best/accuracy"] >= 0.8
    assert content["metrics"]["best/test_accuracy"] >= 0.7
    page = (folder / "report.html").read_text()
    assert "best so far" in page
    assert "population based training" in page
    # Population based training has changed some trial's settings on its way.
    pbt = json.loads((folder / "checkpoints/pbt-0.json").read_text())
    rates = [{result["settings"]["learning_rate"] for result in trial["results"]} for trial in pbt["trials"]]
    assert max(map(len, rates)) > 1


LONG = ["recipe=ray_tune", "recipe.searches=[random]", "recipe.budget_epochs=180", "recipe.epochs_per_trial=60"]


def results_so_far(driver, number):
    return driver.wait_until(lambda: any(e["event"] == "progress" and e["done"] >= number for e in driver.events()))


@pytest.mark.full
def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path):
    driver = Driver(*LONG, output_root=tmp_path)
    results_so_far(driver, 20)
    lost = driver.kill(1)
    status, output = driver.end()
    assert status == 0, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path, "ray_tune")
    assert [worker["pid"] for worker in content["lost_workers"]] == [lost]
    trials = trials_of(folder, "random")
    assert len(trials) == 3
    assert one_after_the_other(trials)
    assert sum(map(len, trials.values())) == 180
    # From its checkpoint, not from its beginning: hardly an epoch was trained twice.
    log = folder / "checkpoints/experiments/random-0.jsonl"
    assert len(log.read_text().splitlines()) <= 180 + 3


@pytest.mark.full
def test_a_killed_experiment_is_restored_with_every_trial_counted_once(tmp_path):
    driver = Driver(*LONG, output_root=tmp_path)
    results_so_far(driver, 90)
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()
    content, folder, output = run_cookbook(*LONG, output_root=tmp_path)
    assert "its driver was killed" in output
    assert content["status"] == "ok"
    trials = trials_of(folder, "random")
    assert len(trials) == 3
    assert one_after_the_other(trials)
    assert sum(map(len, trials.values())) == 180
    # It did go on: this try has trained less than the whole.
    assert sum(worker["samples"] for worker in content["workers"]) < 180


@pytest.mark.full
def test_another_search_space_is_not_gone_on_with(tmp_path):
    first = ["recipe=ray_tune", "recipe.searches=[random]", "recipe.budget_epochs=4", "recipe.epochs_per_trial=2"]
    _, folder, _ = run_cookbook(*first, output_root=tmp_path)
    words = [*first, "recipe.learning_rates=[0.01,0.1]", f"resume={folder}"]
    _, _, output = run_cookbook(*words, output_root=tmp_path / "other", status=1)
    assert (
        "holds an experiment of another search space: learning_rates is [0.001, 0.5] there and [0.01, 0.1] here"
        in output
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipe.searches=[hyperband]"], "hyperband is unknown; expected some of: grid, random, bayesian, asha, pbt"),
        (["recipe.learning_rates=[0.5,0.1]"], "learning_rates=[0.5, 0.1]: expected [lowest, highest], above 0"),
        (["recipe.budget_epochs=4"], "epochs_per_trial=9 is more than budget_epochs=4"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, words, text):
    _, _, output = run_cookbook("recipe=ray_tune", *words, output_root=tmp_path, status=1)
    assert text in output


@pytest.mark.full
def test_a_search_whose_trials_all_diverge_says_so(tmp_path):
    words = ["recipe=ray_tune", "scale=smoke", "recipe.searches=[random]", "recipe.learning_rates=[1e6,1e9]"]
    content, _, _ = run_cookbook(*words, output_root=tmp_path, status=1)
    assert (
        "trials diverged: the loss is no number in any of them. learning_rates=[1000000.0, 1000000000.0] is too high"
        in content["reason"]
    )
