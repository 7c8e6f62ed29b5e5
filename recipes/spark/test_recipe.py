"""Runs the recipe small on two executors and looks at the values. A copy of this folder brings its own `run_recipe`."""


def metrics_of(records):
    return {event["name"]: event["value"] for events in records for event in events if event["event"] == "metric"}


def test_two_executors_find_the_incidents(run_recipe):
    records = run_recipe(num_workers=2)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert sorted(events[0]["rank"] for events in workers) == [0, 1]
    assert len({events[0]["pid"] for events in workers}) == 2
    assert all(events[-1]["event"] == "end" and events[-1]["samples"] > 0 for events in workers)
    (account,) = [event for events in records for event in events if event["event"] == "account"]
    metrics = metrics_of(records)
    assert account["read"] == account["good"] + account["quarantined"]
    assert account["quarantined"] == metrics["ingest/malformed"]
    assert metrics["anomalies/recall"] >= 0.9
    assert metrics["anomalies/precision"] >= 0.8
    for model in ("logistic_regression", "decision_tree"):
        assert metrics[f"classify/{model}_f1"] > metrics["classify/baseline_f1"] + 0.1
    assert metrics["recommend/recommend_ndcg"] > metrics["recommend/baseline_ndcg"]
    assert metrics["gradient_descent/coefficients_max_difference"] < 0.01
    assert metrics["stream/scored"] == account["good"]
