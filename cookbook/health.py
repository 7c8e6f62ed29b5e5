"""The history of nightly runs, and one static page over it.

    make nightly-record RECIPE=horovod HISTORY=history.jsonl    runs the recipe, appends a line, judges it
    make health HISTORY=history.jsonl                           writes outputs/health/index.html (or: TO=folder)

A history is a file of JSON lines. A figure is judged against the last runs of the same recipe with the same settings on the same
class of machine, by their median and their spread: there are no fixed bounds. A recipe whose run fails is red; one that ran but
fell out of its own history, or is missing, or has an old lock, is amber.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from cookbook import ROOT, UserError, report, run_folder
from cookbook.environments import lock_of

WINDOW = 10  # so many earlier good runs are a figure's history
LEAST = 4  # with fewer of them nothing is judged
FACTOR = 4.0  # a figure that is farther than so many spreads from the median has fallen out of its history
OLD_LOCK_DAYS = 90
STALE_DAYS = 2.5  # a recipe without a run for so long, counted back from the newest run of all, is missing
RECENT = 20  # runs that are looked at for flakes
MAD_TO_SIGMA = 1.4826  # a median absolute deviation as the standard deviation of a normal distribution


@dataclass(frozen=True)
class Entry:
    """One run of one recipe: a line of the history."""

    recipe: str
    time: float  # when it began, in seconds since 1970
    commit: str
    machine: str  # its class: processor, cores, memory
    settings: str  # the overrides; only runs with equal ones are compared
    status: str  # ok or failed
    reason: str = ""
    versions: dict = field(default_factory=dict)  # package: version, as locked, and as the workers said
    seconds: dict = field(default_factory=dict)  # stage: seconds
    objective: str = ""
    direction: str = "maximize"
    value: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    lock_age_days: float | None = None  # None: a shallow clone does not know
    ratios: dict = field(default_factory=dict)  # of a benchmark

    def figures(self):
        """{name: (value, whether more is better, the least spread as a share of the median)}; what is not known is left out."""
        found = {f"ratio {name}": (value, True, 0.03) for name, value in self.ratios.items()}
        found |= {
            self.objective or "objective": (self.value, self.direction == "maximize", 0.01),
            "samples/s": (self.samples_per_second, True, 0.05),
            "seconds of the run": (self.seconds.get("run"), False, 0.05),
            "peak memory in MB": (self.peak_memory_mb, False, 0.05),
        }
        return {name: what for name, what in found.items() if what[0] is not None}


@dataclass(frozen=True)
class Judgement:
    name: str
    value: float
    median: float
    spread: float
    count: int  # of earlier runs
    state: str  # new (too few earlier runs), usual, better, worse

    def __str__(self):
        return (
            f"{self.name} {report.number(self.value)}, {self.state} than the last {self.count} runs: "
            f"median {report.number(self.median)}, spread {report.number(self.spread)}"
        )


@dataclass(frozen=True)
class Spell:
    """Failed runs one after the other."""

    failed: tuple[Entry, ...]
    before: Entry | None  # the last good run before it
    after: Entry | None  # the first good run behind it; None: it still fails

    @property
    def is_flake(self):
        """It went although neither the commit nor a version changed. A break that lasts is no flake, however it came."""
        bad, good = self.failed[-1], self.after
        clean = re.fullmatch(r"[0-9a-f]+", bad.commit)
        return bool(good and clean and (good.commit, good.versions) == (bad.commit, bad.versions))

    def changes(self):
        """What changed between the last good run and the first failed one, as texts."""
        if self.before is None:
            return ["it never ran well in this history"]
        bad, good, found = self.failed[0], self.before, []
        if good.commit != bad.commit:
            found.append(f"commit {good.commit[:10]} -> {bad.commit[:10]}")
        for name in sorted(good.versions.keys() | bad.versions.keys()):
            old, new = good.versions.get(name, "absent"), bad.versions.get(name, "absent")
            if old != new:
                found.append(f"{name} {old} -> {new}")
        if good.machine != bad.machine:
            found.append(f"machine {good.machine} -> {bad.machine}")
        return found or ["neither the commit nor a version changed"]


@dataclass(frozen=True)
class Row:
    """What the page says of one recipe (and one choice of settings)."""

    recipe: str
    settings: str
    state: str  # ok, failed, warning
    notes: tuple[str, ...]
    entries: tuple[Entry, ...]
    spells: tuple[Spell, ...]
    judgements: tuple[Judgement, ...]
    flaky: str
    lock_age_days: float | None

    @property
    def newest(self):
        return self.entries[-1] if self.entries else None


# ---- the history


def read(path):
    """Returns (entries of runs, entries of benchmarks, canaries, texts about lines that cannot be read); oldest first.

    Lines that are equal count once: a night's file may contain the history that it began with.
    """
    kinds, problems = {"run": [], "bench": [], "canary": []}, []
    if not Path(path).is_file():
        raise UserError(f"HISTORY={path} is not a file; expected JSON lines, as `make nightly-record` writes them")
    seen = {""}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if line.strip() in seen:
            continue
        seen.add(line.strip())
        try:
            content = json.loads(line)
            kind = content.pop("kind")
            kinds[kind].append(content if kind == "canary" else _entry(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"line {number} cannot be read ({type(error).__name__}: {error}): {line[:80]}")
    for found in (kinds["run"], kinds["bench"]):
        found.sort(key=lambda entry: entry.time)
    kinds["canary"].sort(key=lambda content: content["time"])
    return kinds["run"], kinds["bench"], kinds["canary"], problems


def _entry(content):
    entry = Entry(**content)
    if entry.status not in ("ok", "failed") or not isinstance(entry.time, int | float):
        raise ValueError(f"status={entry.status!r}, time={entry.time!r}: expected ok or failed, and seconds since 1970")
    return entry


def append(path, kind, content):
    """Appends one line. It is one write, so that two processes do not mix their lines."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"kind": kind, **content}, sort_keys=True) + "\n")


def machine_class(machine):
    """The part of a run's machine that its speed depends on: without the kernel's and Python's versions."""
    return re.sub(r", [^,]+, Python [^,]+$", "", machine)


def git(*words, root=ROOT):
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def commit_of(root=ROOT):
    """The commit, with + behind it where the tree has changes; unknown outside git."""
    commit = git("rev-parse", "HEAD", root=root)
    return commit + ("+" if git("status", "--porcelain", root=root) else "") if commit else "unknown"


def lock_age(lock, now, root=ROOT):
    """Days since the lock's last commit; None where git cannot know: in a shallow clone all files have the last commit's age."""
    if git("rev-parse", "--is-shallow-repository", root=root) != "false":
        return None
    last = git("log", "-1", "--format=%ct", "--", str(lock), root=root)
    return round((now - int(last)) / 86400, 1) if last else None


def pins_of(lock):
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))


def variant_of(recipe, overrides):
    """The recipe's mode by these overrides: it may have a lock of its own."""
    own = yaml.safe_load((ROOT / f"conf/recipe/{recipe}.yaml").read_text())
    named = re.fullmatch(r"\$\{recipe\.(\w+)\}", own["driver"].get("variant", ""))
    switch = own["driver"].get("switch") or (named and named[1])
    chosen = dict(word.partition("=")[::2] for word in overrides)
    return chosen.get(f"recipe.{switch}", own[switch]) if switch else None


def entry_of(content, commit, now):
    """A run.json as an entry of the history."""
    lock = lock_of(content["recipe"], variant_of(content["recipe"], content["overrides"]))
    metrics = content["metrics"]
    peaks = [value for name, value in metrics.items() if name.endswith("peak_mb")]
    settings = [word for word in content["overrides"] if not re.match(r"(recipe|output_root|resume|cache_dir)=", word)]
    value = content["objective"]["value"]
    return Entry(
        recipe=content["recipe"],
        time=content["started"],
        commit=commit,
        machine=machine_class(content["machine"]),
        settings=" ".join(sorted(settings)),
        status="ok" if content["status"] == "ok" else "failed",
        reason=content["reason"],
        versions=pins_of(lock) | content["versions"],
        seconds=content["seconds"],
        objective=content["objective"]["name"],
        direction=content["objective"]["direction"],
        value=value if value is not None and math.isfinite(value) else None,
        samples_per_second=metrics.get("samples_per_second"),
        peak_memory_mb=max(peaks, default=None),
        lock_age_days=lock_age(lock, now),
    )


# ---- judging


def judge(entry, earlier):
    """Judgements of an entry's figures against earlier entries; those of other settings or machines, and failed ones, do not count."""
    alike = [one for one in earlier if _group(one) == _group(entry) and one.machine == entry.machine]
    good = [one for one in alike if one.status == "ok" and one.time < entry.time]
    found = []
    for name, (value, more_is_better, least) in entry.figures().items():
        past = [one.figures()[name][0] for one in good if name in one.figures()][-WINDOW:]
        if len(past) < LEAST:
            found.append(Judgement(name, value, math.nan, math.nan, len(past), "new"))
            continue
        median = statistics.median(past)
        spread = max(
            MAD_TO_SIGMA * statistics.median(abs(one - median) for one in past), least * abs(median), sys.float_info.min
        )
        distance = (value - median) / spread * (1 if more_is_better else -1)
        state = "worse" if distance < -FACTOR else "better" if distance > FACTOR else "usual"
        found.append(Judgement(name, value, median, spread, len(past), state))
    return found


def _group(entry):
    return entry.recipe, entry.settings


def spells_of(entries):
    """The spells of failed runs, oldest first."""
    found, failed, before = [], [], None
    for entry in entries:
        if entry.status == "failed":
            failed.append(entry)
            continue
        if failed:
            found.append(Spell(tuple(failed), before, entry))
            failed = []
        before = entry
    return [*found, Spell(tuple(failed), before, None)] if failed else found


def flakiness(entries):
    """Why a recipe counts as flaky, as a text; empty if it does not."""
    recent = entries[-RECENT:]
    spells = spells_of(recent)
    flakes = [spell for spell in spells if spell.is_flake]
    if flakes:
        return f"{len(flakes)} of {len(recent)} runs failed and went well again without any change"
    changes = sum(one.status != other.status for one, other in pairwise(recent))
    return f"changed between ok and failed {changes} times in {len(recent)} runs" if changes >= 4 else ""


def rows_of(entries, recipes, now):
    """A row for each recipe and choice of settings in the history, and one for each recipe that has no run."""
    groups = {}
    for entry in entries:
        groups.setdefault(_group(entry), []).append(entry)
    for recipe in set(recipes) - {recipe for recipe, _ in groups}:
        groups[recipe, ""] = []
    newest_of_all = max((entry.time for entry in entries), default=now)
    return [_row(*key, groups[key], recipes, newest_of_all) for key in sorted(groups)]


def _row(recipe, settings, entries, recipes, newest_of_all):
    if not entries:
        return Row(recipe, settings, "warning", ("no run in this history",), (), (), (), "", None)
    last, spells, notes = entries[-1], spells_of(entries), []
    judgements = judge(last, entries) if last.status == "ok" else []
    flaky = flakiness(entries)
    if last.status == "failed":
        nights = len(spells[-1].failed)
        notes.append(f"failed {nights} times in a row: {last.reason.splitlines()[0] if last.reason else 'no reason'}")
    notes += [str(one) for one in judgements if one.state == "worse"]
    if flaky:
        notes.append(f"flaky: {flaky}")
    if last.lock_age_days is not None and last.lock_age_days > OLD_LOCK_DAYS:
        notes.append(f"its lock is {last.lock_age_days:.0f} days old (make lock RECIPE={recipe})")
    if (days := (newest_of_all - last.time) / 86400) > STALE_DAYS:
        notes.append(f"no run for {days:.0f} days")
    if recipe not in recipes:
        notes.append("no longer among the recipes")
    state = "failed" if last.status == "failed" else "warning" if notes else "ok"
    return Row(
        recipe,
        settings,
        state,
        tuple(notes),
        tuple(entries),
        tuple(spells),
        tuple(judgements),
        flaky,
        last.lock_age_days,
    )


# ---- the page


def sparkline(entries, name, width=150, height=34):
    """The figure `name` over the entries as an inline SVG; a failed run is a red bar."""
    if not entries:
        return ""
    values = [entry.figures()[name][0] if name in entry.figures() else None for entry in entries]
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0, 1)
    step = (width - 8) / max(1, len(entries) - 1)
    parts, line = [], []
    for number, (entry, value) in enumerate(zip(entries, values, strict=True)):
        x = 4 + number * step
        if entry.status == "failed":
            title = f"<title>{day(entry.time)}: failed</title>"
            parts.append(f'<rect class="bad" x="{x - 1.5:.1f}" y="2" width="3" height="{height - 4}">{title}</rect>')
        if value is not None and entry.status == "ok":
            y = height - 4 - (height - 8) * ((value - low) / (high - low) if high > low else 0.5)
            line.append(f"{x:.1f},{y:.1f}")
    if len(line) == 1:
        x, _, y = line[0].partition(",")
        parts.append(f'<circle class="line" cx="{x}" cy="{y}" r="2"/>')
    elif line:
        parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    label = f"{name}: {report.number(low)} to {report.number(high)}" if known else f"{name}: no figures"
    label = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (
        f'<svg class="spark" width="{width}" height="{height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def day(seconds):
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def page(history, recipes, now):
    """Returns (the page as HTML, rows, problems)."""
    entries, benches, canaries, problems = read(history)
    rows = rows_of(entries, recipes, now)
    spells = [(row, spell) for row in rows for spell in row.spells]
    newest_bench = {entry.recipe: entry for entry in benches}
    newest_canary = {content["recipe"]: content for content in canaries}
    environment = report.environment()
    environment.filters |= {"day": day}
    environment.globals |= {"sparkline": sparkline, "OLD_LOCK_DAYS": OLD_LOCK_DAYS}
    text = environment.get_template("health.html").render(
        rows=rows,
        spells=sorted(spells, key=lambda pair: pair[1].failed[0].time, reverse=True),
        benches=[(entry, judge(entry, benches)) for entry in newest_bench.values()],
        canaries=list(newest_canary.values()),
        machines=Counter(entry.machine for entry in entries),
        entries=entries,
        problems=problems,
        now=now,
        counts=Counter(row.state for row in rows),
        machine=report.machine(),
        rule=f"median and spread of the last {WINDOW} good runs on the same class of machine; fewer than {LEAST} judge nothing",
    )
    return text, rows, problems


def write_page(history, target, recipes, now):
    """Writes <target>/index.html with the history beside it; returns (path, rows, problems)."""
    text, rows, problems = page(history, recipes, now)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    partial = target / ".index.html.partial"
    partial.write_text(text)
    partial.replace(target / "index.html")
    if Path(history).resolve() != (target / "history.jsonl").resolve():
        shutil.copy(history, target / "history.jsonl")
    return target / "index.html", rows, problems


# ---- recording


def record(recipe, history, overrides):
    """Runs a recipe and appends its line; returns the exit status: of the run, or 1 when a figure fell out of its history."""
    root = next((word.partition("=")[2] for word in overrides if word.startswith("output_root=")), "outputs")
    folders, started = set(Path(ROOT, root, recipe).glob("*/")), time.time()
    argv = [sys.executable, "-m", "cookbook", f"recipe={recipe}", *overrides, "resume=never"]
    status = subprocess.run(argv, cwd=ROOT).returncode
    made = [folder for folder in set(Path(ROOT, root, recipe).glob("*/")) - folders if folder.name != "latest"]
    commit = commit_of()
    if len(made) == 1 and (content := run_folder.load(made[0])).get("status") in ("ok", "failed"):
        entry = entry_of(content, commit, time.time())
    else:
        reason = f"the driver ended with status {status} and left no finished run; its words are in the job's log"
        settings = " ".join(sorted(overrides))
        lock = lock_of(recipe)
        entry = Entry(
            recipe, started, commit, machine_class(report.machine()), settings, "failed", reason, pins_of(lock)
        )
    earlier = read(history)[0] if Path(history).is_file() else []
    append(history, "run", asdict(entry))
    return max(status, int(_say(entry, earlier)))


def record_ratios(recipe, machine, ratios, history):
    """Appends a benchmark's ratios; returns whether one of them fell out of its history."""
    machine = machine_class(machine)
    entry = Entry(recipe, time.time(), commit_of(), machine, "bench", "ok", ratios=ratios)
    earlier = read(history)[1] if Path(history).is_file() else []
    append(history, "bench", asdict(entry))
    return _say(entry, earlier)


def _say(entry, earlier):
    judgements = judge(entry, earlier)
    for one in judgements:
        if one.state != "new":
            print(f"history      {one}")
    if new := [one.name for one in judgements if one.state == "new"]:
        print(f"history      fewer than {LEAST} earlier runs on this class of machine: not judged: {', '.join(new)}")
    return any(one.state == "worse" for one in judgements)


def main(argv):
    recipes = sorted(path.parent.name for path in ROOT.glob("recipes/*/main.py"))
    command, *words = argv or [""]
    if command == "record" and len(words) >= 2:
        recipe, history, *overrides = words
        if recipe not in recipes:
            raise SystemExit(f"error: RECIPE={recipe} does not exist; there are: {', '.join(recipes)}")
        raise SystemExit(record(recipe, os.path.abspath(history), overrides))
    if command != "page" or len(words) != 2 or not all(words):
        raise SystemExit(
            "usage: make health HISTORY=history.jsonl [TO=folder], make nightly-record RECIPE=name HISTORY=..."
        )
    try:
        path, rows, problems = write_page(*words, recipes, time.time())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for row in rows:
        name = f"{row.recipe} {row.settings}".strip()
        print(f"{row.state:<8} {name:<14} {'; '.join(row.notes)}".rstrip())
    for problem in problems:
        print(f"warning  {problem}")
    print(f"page     {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
