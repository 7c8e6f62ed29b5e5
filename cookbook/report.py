"""Run records -> self-contained HTML: a page per run, and one over all runs. Run: make report"""

import base64
import html
import io
import json
import os
import platform
import sys
from pathlib import Path

import jinja2
import psutil

from cookbook import ROOT, UserError, run_folder
from cookbook.words import words_of_make

CURVES = ("train/loss", "eval/accuracy", "samples_per_second")  # shown first, in this order
COLOURS = ("#2563a8", "#c2571a", "#2f7d4f", "#8a3f8f", "#9a7b1c", "#4f6d7a", "#b03a5b", "#3c3c8c")
STAGES = ("environment", "data", "launch", "run")


def environment():
    loader = jinja2.FileSystemLoader(ROOT / "cookbook/templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made.filters["number"] = number
    return made


def number(value):
    """A number as a person would write it."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def machine():
    """What ran this: for people who compare figures."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def plot(name, series, x_label="step", log=False):
    """One picture as an image element that carries its SVG: `series` is [(label, [(x, value), ...]), ...]."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, searchable, in the page's font
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    for number, ((label, points), colour) in enumerate(
        zip(series, COLOURS * (len(series) // len(COLOURS) + 1), strict=False)
    ):
        width = 1.4 + 1.6 * (min(len(series), 4) - 1 - min(number, 3))  # a curve below equal ones still shows
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=3, linewidth=max(1.4, width), color=colour, label=label
        )
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
    picture = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/svg+xml;base64,{picture}" alt="{html.escape(name)} over {html.escape(x_label)}">'


def curve_names(contents):
    names = {name for content in contents for name, points in content.get("curves", {}).items() if points}
    return sorted(names, key=lambda name: (CURVES.index(name) if name in CURVES else len(CURVES), name))


def tables_of(folder):
    """[(name, rows, picture or "")] of the tables that the recipe has left."""
    found = []
    for path in sorted(Path(folder).glob("tables/*.json")):
        table, picture = json.loads(path.read_text()), ""
        if table["x"]:
            series = [(key, [(row[table["x"]], row[key]) for row in table["rows"]]) for key in table["y"]]
            picture = plot(path.stem, series, table["x"], table["log"])
        found.append((path.stem, table["rows"], picture))
    return found


def pictures_of(folder):
    """[(name, image element), ...] of the pictures that the recipe has left."""
    found = []
    kinds = {".svg": "svg+xml", ".png": "png", ".gif": "gif"}
    for path in sorted(path for path in Path(folder).glob("pictures/*") if path.suffix in kinds):
        data = base64.b64encode(path.read_bytes()).decode()
        found.append(
            (path.stem, f'<img src="data:image/{kinds[path.suffix]};base64,{data}" alt="{html.escape(path.stem)}">')
        )
    return found


def write_run_page(folder):
    """Writes <folder>/report.html from its run.json and settings; returns the path."""
    folder = Path(folder)
    content = run_folder.load(folder)
    config = folder / "config.yaml"
    seconds = content["seconds"]
    total = sum(seconds.get(stage, 0) for stage in STAGES) or 1
    page = environment().get_template("run.html").render(
        run=content, name=folder.name, machine=content["machine"], tables=tables_of(folder), pictures=pictures_of(folder),
        config=config.read_text() if config.exists() else "",
        stages=[(stage, seconds.get(stage, 0), 100 * seconds.get(stage, 0) / total, colour) for stage, colour in zip(STAGES, COLOURS, strict=False)],
        plots=[plot(name, [(content["recipe"], content["curves"][name])]) for name in curve_names([content]) if len(content["curves"][name]) > 1],
    )  # fmt: skip
    return _write(folder / "report.html", page)


def write_overview(root):
    """Writes <root>/report.html over all runs below it; returns the path and the number of runs."""
    found = run_folder.load_all(root)
    groups = {}
    for folder, content in found:
        groups.setdefault(content["recipe"], []).append((folder, content))
    plots = {
        recipe: [
            plot(
                name,
                [
                    (folder.name, content["curves"][name])
                    for folder, content in members[-8:]
                    if content.get("curves", {}).get(name)
                ],
            )
            for name in curve_names([content for _, content in members[-8:]])
        ]
        for recipe, members in groups.items()
    }
    page = (
        environment()
        .get_template("runs.html")
        .render(
            runs=[(folder.relative_to(Path(root).resolve()), content) for folder, content in reversed(found)],
            plots=plots,
            machine=machine(),
        )
    )
    return _write(Path(root) / "report.html", page), len(found)


def write_compare_page(folder, members, rows, losses, problems):
    """Writes <folder>/report.html over the members [(label, run folder, content), ...]; returns the path."""
    plots = []
    for name in curve_names([content for _, _, content in members]):
        series = [
            (label, content["curves"][name]) for label, _, content in members if content.get("curves", {}).get(name)
        ]
        if max(len(points) for _, points in series) > 1:
            plots.append(plot(name, series))
        if name == "train/loss":
            timed = [
                (label, [(seconds, value) for seconds, (_, value) in zip(content["curve_seconds"][name], content["curves"][name], strict=True)])
                for label, _, content in members if content.get("curves", {}).get(name)
            ]  # fmt: skip
            plots.append(plot(f"{name} over time", timed, "seconds since the workers started"))
    page = environment().get_template("compare.html").render(
        name=folder.name, rows=rows, losses=losses, problems=problems, plots=plots, machine=machine(),
        members=[(label, path.relative_to(folder), content) for label, path, content in members],
    )  # fmt: skip
    return _write(folder / "report.html", page)


def _write(path, text):
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
    return path


def main(argv):
    """`output_root=FOLDER`, or the folder alone; without: outputs."""
    try:
        words = words_of_make(argv)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    roots = [word.removeprefix("output_root=") for word in words]
    if len(roots) > 1 or any("=" in word and not word.startswith("output_root=") for word in words):
        raise SystemExit(f"error: {' '.join(words)}: expected output_root=FOLDER, or nothing for outputs")
    root = roots[0].strip("'\"") if roots else "outputs"
    if not Path(root).is_dir():
        raise SystemExit(f"error: there are no runs in {root!r} yet; make one: make recipe-horovod")
    path, count = write_overview(root)
    print(f"{count} runs: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
