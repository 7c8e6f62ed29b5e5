"""Pictures for pages: curves, and a run's workers over time, as image elements that have all inside."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from runrecord import read_records

COLOURS = ("#2563a8", "#c2571a", "#2f7d4f", "#8a3f8f", "#9a7b1c", "#4f6d7a", "#b03a5b", "#3c3c8c")
Series = Sequence[tuple[str, Sequence[tuple[float, float]]]]  # [(label, [(x, value), ...]), ...]


def plot(name: str, series: Series, x_label: str = "step", log: bool = False) -> str:
    """One picture as an image element that has its SVG inside."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, searchable, in the page's font
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    for order, (label, points) in enumerate(series):
        width = 1.4 + 1.6 * (min(len(series), 4) - 1 - min(order, 3))  # a curve below equal ones still shows
        xs, values = zip(*points, strict=True)
        (line,) = axes.plot(xs, values, marker="o", markersize=3, label=label)
        line.set(linewidth=max(1.4, width), color=COLOURS[order % len(COLOURS)])
    axes.set_title(name, loc="left", fontsize=10)
    axes.set_xlabel(x_label)
    if log:
        axes.set(xscale="log", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    if name == "samples_per_second":
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(fontsize=7, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return image("svg+xml", out.getvalue(), f"{name} over {x_label}")


def image(kind: str, data: bytes, text: str) -> str:
    """An image element that has the whole image inside. `kind`: png, gif or svg+xml; `text`: for those who see none."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{html.escape(text)}">'


MARKERS = {"rows": "|", "checkpoint": "D", "restore": "<"}  # of the events in the picture of workers over time


def timeline(folder: Path, most_ticks: int = 300) -> str:
    """A bar for each process of a run, from its start to its end, with steps and checkpoints; "" without any."""
    records = [events for events in read_records(folder) if events[0]["event"] == "start"]
    if not records:
        return ""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    records.sort(key=lambda events: (events[0].get("role", "worker") != "worker", events[0]["rank"], events[0]["time"]))
    began = min(events[0]["time"] for events in records)
    figure, axes = pyplot.subplots(figsize=(10.6, 0.9 + 0.32 * len(records)), layout="constrained")
    labels = []
    for row, events in enumerate(records):
        start, last = events[0], events[-1]
        labels.append(f"{start.get('role', 'worker')} {start['rank']}")
        seconds = last["time"] - start["time"]
        axes.barh(row, seconds, left=start["time"] - began, height=0.6, color=COLOURS[0], alpha=0.25)
        for (kind, shape), colour in zip(MARKERS.items(), COLOURS, strict=False):
            # A worker that begins at the first step has gone back to nothing.
            found = [
                one for one in events if one["event"] == kind and (kind != "restore" or one["epoch"] or one["step"])
            ]
            times = [one["time"] - began for one in found][:: -(-len(found) // most_ticks) or 1]
            axes.plot(times, [row] * len(times), linestyle="", marker=shape, markersize=5, color=colour)
        shape, colour = ("o", "#2a7") if last["event"] == "end" and "error" not in last else ("X", "#c33")
        axes.plot(last["time"] - began, row, marker=shape, markersize=7, color=colour)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the first worker started")
    axes.spines[["top", "right", "left"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return image("svg+xml", out.getvalue(), "when each worker started, took steps, wrote checkpoints and ended")
