"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_two_workers_classify_digits(run_recipe):
    records = run_recipe(num_workers=2, num_epochs=8)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert sorted(events[0]["rank"] for events in workers) == [0, 1]
    assert len({events[0]["pid"] for events in workers}) == 2
    assert [events[-1]["samples"] for events in workers] == [8 * 719, 8 * 719]  # 1,438 rows, halved by shards
    assert len({events[-1]["digest"] for events in workers}) == 1
    accuracy = [
        e["value"] for events in workers for e in events if e["event"] == "metric" and e["name"] == "eval/accuracy"
    ]
    assert max(accuracy) >= 0.95
