"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_two_workers_classify_digits(run_recipe):
    records = run_recipe(num_workers=2)
    assert sorted(events[0]["rank"] for events in records) == [0, 1]
    assert len({events[0]["pid"] for events in records}) == 2
    accuracies = [e["value"] for e in records[0] if e["event"] == "metric" and e["name"] == "eval/accuracy"]
    assert len(accuracies) == 15
    assert accuracies[-1] >= 0.97
    ends = [events[-1] for events in records]
    assert sum(end["samples"] for end in ends) == 15 * 1438
    assert len({end["digest"] for end in ends}) == 1
