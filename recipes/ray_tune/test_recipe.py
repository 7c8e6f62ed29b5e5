"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_a_random_search(run_recipe):
    records = run_recipe(num_workers=2, searches="[random]", budget_epochs=18, epochs_per_trial=6)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert len({events[0]["pid"] for events in workers}) == len(workers) == 2
    assert sum(events[-1]["samples"] for events in workers) == 18
    trials = [event for events in records for event in events if event["event"] == "trial"]
    assert [trial["epochs"] for trial in trials] == [[1, 2, 3, 4, 5, 6]] * 3
    assert max(trial["score"] for trial in trials) >= 0.7
