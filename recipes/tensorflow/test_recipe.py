"""Runs the recipe small on two workers and looks at the values. A copy of this folder brings its own `run_recipe`."""


def last(records, name):
    """The last value of a metric, from rank 0."""
    values = [event["value"] for event in records[0] if event["event"] == "metric" and event["name"] == name]
    assert values, f"no worker reported {name}"
    return values[-1]


def ends(records):
    return [events[-1] for events in records if events[-1]["event"] == "end"]


def test_two_workers_classify_digits(run_recipe):
    records = run_recipe(num_workers=2)
    assert sorted(events[0]["rank"] for events in records) == [0, 1]
    assert len({events[0]["pid"] for events in records}) == 2
    assert last(records, "eval/accuracy") >= 0.97
    assert [end["samples"] for end in ends(records)] == [15 * 719, 15 * 719]  # 1,438 rows, 15 epochs, halved each batch
    assert len({end["digest"] for end in ends(records)}) == 1


def test_whole_files_to_each_worker(run_recipe):
    records = run_recipe(num_workers=2, num_epochs=1, input="tfrecord", auto_shard="file")
    assert [end["samples"] for end in ends(records)] == [719, 719]
    assert len({end["digest"] for end in ends(records)}) == 1
