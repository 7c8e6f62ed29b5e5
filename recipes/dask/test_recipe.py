"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_two_workers_predict_late_flights(run_recipe):
    records = run_recipe(num_workers=2, models="[logistic_regression,boosted_trees]", num_trees=30)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert sorted(events[0]["rank"] for events in workers) == [0, 1]
    assert len({events[0]["pid"] for events in workers}) == 2
    assert all(events[-1]["event"] == "end" and events[-1]["samples"] > 0 for events in workers)
    (account,) = [event for events in records for event in events if event["event"] == "account"]
    metrics = {event["name"]: event["value"] for events in records for event in events if event["event"] == "metric"}
    assert account["read"] == account["good"] + account["quarantined"] == metrics["features/rows"]
    assert metrics["learn/logistic_regression_auc"] >= 0.70
    assert metrics["learn/boosted_trees_auc"] >= 0.71
