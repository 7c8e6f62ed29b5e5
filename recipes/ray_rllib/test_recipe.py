"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def test_the_return_rises(run_recipe):
    records = run_recipe(num_workers=2, num_seeds=1, num_iterations=8, evaluation_every=8)
    workers = [events for events in records if events[0]["role"] == "worker"]
    assert sorted(events[0]["rank"] for events in workers) == [0, 1]
    assert len({events[0]["pid"] for events in workers}) == 2
    # Eight iterations of 4,000 steps, and perhaps a few more that were under way.
    assert 32_000 <= sum(events[-1]["samples"] for events in workers) <= 40_000
    returns = [
        e["value"] for events in records for e in events if e["event"] == "metric" and e["name"] == "return_mean/seed_0"
    ]
    assert returns[0] < 60
    assert returns[-1] > 3 * returns[0]
