"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def metrics_of(records):
    return [event for events in records for event in events if event["event"] == "metric"]


def test_two_workers_read_every_row_once(run_recipe):
    records = run_recipe(num_workers=2, num_epochs=3)
    assert sorted(events[0]["rank"] for events in records) == [0, 1]
    assert len({events[-1]["digest"] for events in records}) == 1
    rows = [event for events in records for event in events if event["event"] == "rows"]
    sizes = {epoch: sum(event["count"] for event in rows if event["epoch"] == epoch) for epoch in range(3)}
    sums = {epoch: sum(event["sum"] for event in rows if event["epoch"] == epoch) for epoch in range(3)}
    assert len(set(sizes.values())) == 1
    assert set(sums.values()) == {sizes[0] * (sizes[0] - 1) // 2}, "ids 0 to n - 1, each once"
    assert all(events[-1]["samples"] > 0.3 * sum(sizes.values()) for events in records), "both worked"
    assert max(event["value"] for event in metrics_of(records) if event["name"] == "eval/auc") >= 0.64
