"""What each step needs of the events; a step is skipped, with the reason, where they lack it."""

from dataclasses import dataclass

MIN_WINDOWS = 10  # fewer say nothing about what is common
MIN_LABELLED = 20  # rows; fewer cannot be divided into folds and a test part


@dataclass(frozen=True)
class Needs:
    """`columns`: all of these fields; `one_of`: one of these; `windows`: of time; `classes`: of labels, each
    with `labelled` lines."""

    columns: tuple = ()
    one_of: tuple = ()
    rows: int = 1
    windows: int = 0
    classes: int = 0
    labelled: int = 0


TEXT = ("message", "path")
NEEDS = {
    "ingest": Needs(rows=0),  # itself refuses files without a line
    "explore": Needs(),
    "templates": Needs(one_of=TEXT),
    "anomalies": Needs(columns=("time",), windows=MIN_WINDOWS),
    "classify": Needs(one_of=TEXT, classes=2, labelled=MIN_LABELLED),
    "forecast": Needs(columns=("time",), windows=2 * MIN_WINDOWS),
    "recommend": Needs(columns=("client", "path")),
    "gradient_descent": Needs(one_of=TEXT, classes=2, labelled=MIN_LABELLED),
    "stream": Needs(one_of=TEXT),  # and classify's model
}


@dataclass(frozen=True)
class Facts:
    """What the good events have: fields with a value in some line, numbers of lines and of windows of time."""

    columns: tuple
    rows: int
    windows: int
    window_minutes: int


def lacking(step, facts):
    """Why the events are not enough for the step, or None."""
    needs = NEEDS[step]
    if facts.rows < needs.rows:
        return f"needs at least {needs.rows} good lines, there are {facts.rows}"
    for column in needs.columns:
        if column not in facts.columns:
            return f"needs the field {column}, and no line has one; there are: {', '.join(facts.columns) or 'none'}"
    if needs.one_of and not set(needs.one_of) & set(facts.columns):
        return f"needs one of the fields {', '.join(needs.one_of)}; there are: {', '.join(facts.columns) or 'none'}"
    if facts.windows < needs.windows:
        return (
            f"needs {needs.windows} windows of {facts.window_minutes} minutes with lines, there are {facts.windows}; "
            "a smaller recipe.window_minutes makes more"
        )
    return None


def lacking_classes(step, counts):
    """Why the labels are not enough for the step, or None. `counts`: {label: lines among those that are learnt from},
    or None without labels."""
    needs = NEEDS[step]
    if not counts:
        return "needs labels: a field `label` (- for an ordinary line), or the incidents of generated logs"
    if len(counts) < needs.classes:
        only = "an alert (its label is not -)" if 1.0 in counts else "ordinary"
        return f"needs {needs.classes} classes, and there is one class only: each line is {only}"
    if min(counts.values()) < needs.labelled:
        return f"needs {needs.labelled} lines of each class, and one of them has {int(min(counts.values()))}"
    return None
