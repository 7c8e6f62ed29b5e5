"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_two_workers_and_a_served_model(run_recipe):
    records = run_recipe(num_workers=2, num_epochs=4, learning_rates="[0.1]", trial_epochs=1, min_accuracy=0.8)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert len({events[0]["pid"] for events in workers}) == len(workers) == 2
    assert sum(events[-1]["samples"] for events in workers) == 4 * 1438
    assert len({events[-1]["digest"] for events in workers}) == 1
    (program,) = [events for events in records if events[0]["role"] == "driver"]
    metrics = {event["name"]: event["value"] for event in program if event["event"] == "metric"}
    assert metrics["served/accuracy"] == metrics["eval/accuracy"] >= 0.8
