"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""

import pytest


def values(records, name):
    """All values of a metric, from rank 0, in order."""
    (record,) = [events for events in records if events[0]["rank"] == 0]
    found = [event["value"] for event in record if event["event"] == "metric" and event["name"] == name]
    assert found, f"rank 0 reported no {name}"
    return found


def ends(records):
    return [events[-1] for events in records if events[-1]["event"] == "end"]


def test_two_workers_classify_digits(run_recipe):
    records = run_recipe(num_workers=2)
    assert sorted(events[0]["rank"] for events in records) == [0, 1]
    assert len({events[0]["pid"] for events in records}) == 2
    assert values(records, "eval/accuracy")[-1] >= 0.97
    assert [end["samples"] for end in ends(records)] == [15 * 719, 15 * 719]  # 1,438 rows, 15 epochs, halved each batch
    assert len({end["digest"] for end in ends(records)}) == 1


def test_accumulation_takes_the_same_steps(run_recipe):
    """Four micro-batches without exchange, then one with it, add up to the same gradient.

    Only the rounding of float32 sums differs.
    """
    whole = run_recipe(num_workers=2, num_epochs=1)
    parts = run_recipe(num_workers=2, num_epochs=1, accumulation_steps=4, num_loader_workers=1)
    assert values(parts, "train/loss")[-1] == pytest.approx(values(whole, "train/loss")[-1], rel=1e-3)


def test_join_stands_in_for_a_worker_without_rows(run_recipe):
    """129 rows in batches of 64: the last batch is one row, and rank 1 has none of it. The same steps, either way."""
    plain = run_recipe(num_workers=2, num_epochs=2, max_rows=129)
    joined = run_recipe(num_workers=2, num_epochs=2, max_rows=129, join=True)
    assert [end["samples"] for end in ends(joined)] in ([2 * 65, 2 * 64], [2 * 64, 2 * 65])
    assert values(joined, "train/loss")[-1] == pytest.approx(values(plain, "train/loss")[-1], rel=1e-4)
    assert len({end["digest"] for end in ends(joined)}) == 1
