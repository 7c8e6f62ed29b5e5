"""Makes self-contained HTML of run records: a page per run, and one over all runs. Run: make report"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import psutil
import yaml

from cookbook import ROOT, UserError, run_folder
from cookbook.files import write_whole
from cookbook.machine import num_cores
from cookbook.programs import run_program
from cookbook.report.pictures import COLOURS, image, plot, timeline

CURVES = ("train/loss", "eval/accuracy", "samples_per_second")  # shown first, in this order
STAGES = ("environment", "data", "launch", "run")

# What the page over all runs shows of each. A run.json without them is another version's, or no run's.
SHOWN = {"recipe", "status", "reason", "objective", "worlds", "world_size", "metrics", "seconds", "overrides"}

Content = Mapping[str, Any]  # a run.json


def environment() -> jinja2.Environment:
    """The templates' environment."""
    loader = jinja2.FileSystemLoader(ROOT / "cookbook/report/templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made.filters["number"] = number
    return made


def number(value: float | None) -> str:
    """A number as a person would write it."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def machine() -> str:
    """What ran this: for people who compare figures."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.release()}"
    cores, python = num_cores(), platform.python_version()
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {system}, Python {python}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def curve_names(contents: Iterable[Content]) -> list[str]:
    """The names of all curves that have points, the usual ones first."""
    names = {name for content in contents for name, points in content.get("curves", {}).items() if points}
    return sorted(names, key=lambda name: (CURVES.index(name) if name in CURVES else len(CURVES), name))


def tables_of(folder: str | Path) -> list[tuple[str, list[dict[str, Any]], str]]:
    """[(name, rows, picture or "")] of the tables that the recipe has written."""
    found: list[tuple[str, list[dict[str, Any]], str]] = []
    for path in sorted(Path(folder).glob("tables/*.json")):
        table, picture = json.loads(path.read_text()), ""
        if table["x"]:
            series = [(key, [(row[table["x"]], row[key]) for row in table["rows"]]) for key in table["y"]]
            picture = plot(path.stem, series, table["x"], table["log"])
        found.append((path.stem, table["rows"], picture))
    return found


def pictures_of(folder: str | Path) -> list[tuple[str, str]]:
    """[(name, image element), ...] of the pictures that the recipe has written."""
    kinds = {".svg": "svg+xml", ".png": "png", ".gif": "gif"}
    paths = sorted(path for path in Path(folder).glob("pictures/*") if path.suffix in kinds)
    return [(path.stem, image(kinds[path.suffix], path.read_bytes(), path.stem)) for path in paths]


def traces_of(folder: str | Path) -> list[str] | None:
    """The files of the run's profile, as addresses seen from the report; None where no profile was asked for."""
    folder = Path(folder)
    found = sorted(quote(str(path.relative_to(folder))) for path in folder.glob("traces/**/*") if path.is_file())
    config = folder / "config.yaml"
    asked = config.exists() and (yaml.safe_load(config.read_text()) or {}).get("profile")
    return found if found or asked else None


def write_run_page(folder: str | Path) -> Path:
    """Writes <folder>/report.html from its run.json and settings; returns the path."""
    folder = Path(folder)
    content = run_folder.load(folder)
    config = folder / "config.yaml"
    seconds = content["seconds"]
    total = sum(seconds.get(stage, 0) for stage in STAGES) or 1
    shares = [(stage, seconds.get(stage, 0), 100 * seconds.get(stage, 0) / total) for stage in STAGES]
    curves = {name: content["curves"][name] for name in curve_names([content])}
    page = (
        environment()
        .get_template("run.html")
        .render(
            run=content,
            name=folder.name,
            machine=content["machine"],
            tables=tables_of(folder),
            pictures=pictures_of(folder),
            traces=traces_of(folder),
            config=config.read_text() if config.exists() else "",
            stages=[(*share, colour) for share, colour in zip(shares, COLOURS, strict=False)],
            timeline=timeline(folder),
            has_diagnosis=(folder / "diagnosis.html").exists(),
            plots=[plot(name, [(content["recipe"], points)]) for name, points in curves.items() if len(points) > 1],
        )
    )
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def write_overview(root: str | Path) -> tuple[Path, int, list[Path]]:
    """Writes <root>/report.html over all runs below it; returns the path, the number of runs, and those left out."""
    loaded = run_folder.load_all(root)
    found = [(folder, content) for folder, content in loaded if content.keys() >= SHOWN]
    left_out = [folder for folder, content in loaded if not content.keys() >= SHOWN]
    groups: dict[str, list[tuple[str, Content]]] = {}
    for folder, content in found:
        groups.setdefault(content["recipe"], []).append((folder.name, content))
    plots = {recipe: _curves_of(members[-8:]) for recipe, members in groups.items()}
    shown = [(folder.relative_to(Path(root).resolve()), content) for folder, content in reversed(found)]
    page = environment().get_template("runs.html").render(runs=shown, plots=plots, machine=machine())
    write_whole(Path(root) / "report.html", page)
    return Path(root) / "report.html", len(found), left_out


def _curves_of(members: Sequence[tuple[str, Content]]) -> list[str]:
    """A picture for each curve, with the lines of all members (label, content) that have it."""
    plots = []
    for name in curve_names([content for _, content in members]):
        curves = [(label, content.get("curves", {}).get(name)) for label, content in members]
        plots.append(plot(name, [(label, points) for label, points in curves if points]))
    return plots


def write_compare_page(
    folder: Path,
    members: Sequence[tuple[str, Path, Content]],
    rows: Sequence[Mapping[str, Any]],
    losses: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> Path:
    """Writes <folder>/report.html over the members [(label, run folder, content), ...]; returns the path."""
    plots = []
    for name in curve_names([content for _, _, content in members]):
        drawn = [(label, content) for label, _, content in members if content.get("curves", {}).get(name)]
        series = [(label, content["curves"][name]) for label, content in drawn]
        if max(len(points) for _, points in series) > 1:
            plots.append(plot(name, series))
        if name == "train/loss":
            timed = [(label, _over_time(content, name)) for label, content in drawn]
            plots.append(plot(f"{name} over time", timed, "seconds since the workers started"))
    page = (
        environment()
        .get_template("compare.html")
        .render(
            name=folder.name,
            rows=rows,
            losses=losses,
            problems=problems,
            plots=plots,
            machine=machine(),
            members=[(label, path.relative_to(folder), content) for label, path, content in members],
        )
    )
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _over_time(content: Content, name: str) -> list[tuple[float, float]]:
    """A curve with seconds in the place of steps."""
    points = zip(content["curve_seconds"][name], content["curves"][name], strict=True)
    return [(seconds, value) for seconds, (_, value) in points]


def main(argv: Sequence[str]) -> None:
    """Takes `output_root=FOLDER`, or the folder alone; without any, the folder is outputs."""
    roots = [word.removeprefix("output_root=") for word in argv]
    if len(roots) > 1 or any("=" in word and not word.startswith("output_root=") for word in argv):
        raise UserError(f"{' '.join(argv)}: expected output_root=FOLDER, or nothing for outputs")
    root = roots[0].strip("'\"") if roots else "outputs"
    if not Path(root).is_dir():
        raise UserError(f"there are no runs in {root!r} yet; make one: make recipe-horovod")
    path, count, left_out = write_overview(root)
    if not count:
        raise UserError(f"there are no runs in {root!r}: expected {root}/<recipe>/<time>/run.json")
    print(f"{count} run{'s' if count > 1 else ''}: {path}")
    for folder in left_out:
        print(f"left out: {folder}/run.json is of another version, or of no run")


if __name__ == "__main__":
    run_program(main)
