"""A picture of a lazy graph: what Dask has been told, before anything is computed."""

from pathlib import Path

import dask.dataframe as dd
import networkx
from dask._task_spec import DependenciesMapping

from store import read_file
from tables import parquet_files, place_of

MOST_PARTITIONS = 6


def draw_graph(config):
    """Draws <output_dir>/pictures/task graph.svg.

    It shows the share of late flights of each carrier, over the first partitions of the feature store.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder = Path(config.output_dir)
    files = parquet_files(f"{place_of(config)}/features")[:MOST_PARTITIONS]
    if not files:
        return
    # Nothing is read here but the schema: this is a plan.
    frame = dd.from_map(read_file, files, names=["carrier", "late"])
    lazy = frame.groupby("carrier")["late"].mean(split_every=2)
    tasks = dict(lazy.optimize(fuse=False).__dask_graph__())
    graph = networkx.DiGraph(
        (str(before), str(task)) for task, needs in DependenciesMapping(tasks).items() for before in needs
    )
    places = {}
    for level, names in enumerate(networkx.topological_generations(graph)):
        # By partition, the last part of a key.
        for row, name in enumerate(sorted(names, key=lambda name: name.rpartition(",")[2].zfill(8))):
            places[name] = level, (len(names) - 1) / 2 - row
    figure, axes = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    networkx.draw_networkx(
        graph,
        places,
        ax=axes,
        node_size=260,
        width=0.8,
        with_labels=False,
        node_color="#2563a8",
        edge_color="#4f6d7a",
        arrowsize=8,
    )
    for name, (x, y) in places.items():
        axes.annotate(
            name.strip("()'").split("-")[0].split("'")[0],
            (x, y),
            (0, -13),
            textcoords="offset points",
            ha="center",
            fontsize=6,
        )
    axes.set_title(
        f"share of late flights by carrier, {len(files)} partitions: {len(graph)} tasks, read from left to right",
        loc="left",
        fontsize=9,
    )
    axes.axis("off")
    (folder / "pictures").mkdir(exist_ok=True)
    figure.savefig(folder / "pictures/task graph.svg", metadata={"Date": None})
    pyplot.close(figure)
