"""The pipeline's graph, with what became of each step; and where each file came from."""

import hashlib
from pathlib import Path

COLOURS = {"done": "#d5ead9", "cached": "#dbe7f5", "failed": "#f6d0cc", "not begun": "#f3f4f6"}


def graph_of(spec):
    """(steps, edges) of a compiled pipeline (its IR as a dictionary): names of the leaf tasks, and pairs of them.

    Groups (a loop, an exit handler) are taken apart: who waits for a group waits for its last steps.
    """
    components, steps, edges = spec["components"], [], set()

    def walk(dag):
        """Adds the tasks of this group.

        Returns the steps that nothing in it waits for, and those that wait for nothing.
        """
        first, last = {}, {}
        for name, task in dag["tasks"].items():
            inner = components[task["componentRef"]["name"]].get("dag")
            if inner:
                first[name], last[name] = walk(inner)
            else:
                steps.append(name)
                first[name], last[name] = [name], [name]
        waits = set()
        for name, task in dag["tasks"].items():
            for before in task.get("dependentTasks", []):
                edges.update((a, b) for a in last[before] for b in first[name])
                waits.add((before, name))
        return (
            [step for name in dag["tasks"] if not any(b == name for _, b in waits) for step in first[name]],
            [step for name in dag["tasks"] if not any(a == name for a, _ in waits) for step in last[name]],
        )

    walk(spec["root"]["dag"])
    # An edge that goes beside a longer way is not drawn.
    direct = {(a, b) for a, b in edges if not any((a, c) in edges and (c, b) in edges for c in steps)}
    return steps, sorted(direct)


def draw_graph(output_dir, spec, states):
    """<output_dir>/pictures/pipeline.svg.

    `states`: step -> [(state, what to write below its name), ...], several for a loop's step.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    steps, edges = graph_of(spec)
    level = dict.fromkeys(steps, 0)
    for _ in steps:
        for a, b in edges:
            level[b] = max(level[b], level[a] + 1)
    states = {step: states.get(step) or [("not begun", "not begun")] for step in steps}
    place = {}
    for depth in range(max(level.values()) + 1):
        row = [(step, number) for step in steps if level[step] == depth for number in range(len(states[step]))]
        place |= {box: ((i - (len(row) - 1) / 2) * 3, -depth) for i, box in enumerate(row)}
    figure, axes = pyplot.subplots(figsize=(10, 0.85 * len(steps) + 0.5), layout="constrained")
    for a, b in ((a, b) for a in place for b in place if (a[0], b[0]) in edges):
        axes.annotate(
            "",
            xytext=(place[a][0], place[a][1] - 0.3),
            xy=(place[b][0], place[b][1] + 0.3),
            arrowprops={"arrowstyle": "-|>", "color": "#6b7280", "shrinkA": 0, "shrinkB": 0},
        )
    for (step, number), (x, y) in place.items():
        state, words = states[step][number]
        axes.text(
            x,
            y,
            f"{step}\n{words}",
            ha="center",
            va="center",
            fontsize=9,
            linespacing=1.4,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": COLOURS[state], "edgecolor": "#6b7280"},
        )
    widest = max(abs(x) for x, _ in place.values()) + 2
    axes.set(xlim=(-widest, widest), ylim=(-max(level.values()) - 0.7, 0.7))
    axes.axis("off")
    folder = Path(output_dir) / "pictures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "pipeline.svg", metadata={"Date": None})
    pyplot.close(figure)


def lineage(spec, pipeline_root):
    """Rows of a table: the artifacts of each step's newest try, who made them, who uses them, size and checksum."""
    users = {}
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            inner = spec["components"][task["componentRef"]["name"]].get("dag", {"tasks": [name]})["tasks"]
            for entry in task.get("inputs", {}).get("artifacts", {}).values():
                if made := entry.get("taskOutputArtifact"):
                    users.setdefault((made["producerTask"], made["outputArtifactKey"]), []).extend(inner)
    rows = []
    for (step, artifact), by in sorted(users.items()):
        found = sorted(Path(pipeline_root).glob(f"*/{step}/{artifact}"), key=lambda path: path.stat().st_mtime)
        if found:
            files = sorted(path for path in [found[-1], *found[-1].rglob("*")] if path.is_file())
            sha, size = hashlib.sha256(), 0
            for file in files:
                content = file.read_bytes()
                size += len(content)
                sha.update(content)
            used_by = ", ".join(sorted(set(by)))
            row = {"artifact": artifact, "made by": step, "used by": used_by, "bytes": size}
            rows.append({**row, "sha256": sha.hexdigest()[:16]})
    return rows
