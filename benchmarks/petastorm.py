"""Measures the readers against a raw scan of the same columns: make bench RECIPE=petastorm

Prints the table of the recipe's README. One process reads all rows of the flights store; each figure is the median of
repetitions by turns.
"""

import json
import os
import subprocess

from benchmarks.measure import print_table, run_recipe, say
from cookbook import ROOT
from cookbook.report import pages

HERE, PYTHON = ROOT / "recipes/petastorm", ROOT / ".venvs/petastorm/bin/python"
PROGRAM = """
import json, statistics, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from types import SimpleNamespace
import pyarrow.parquet as pq
sys.path.insert(0, sys.argv[1])
from readers import chunks_of, columns_of, leave
manifest = json.loads((Path(sys.argv[2]) / "manifest.json").read_text())
store, names = sys.argv[2] + "/train", columns_of(manifest)
plain = dict(seed=0, pool="thread", num_loader_workers=1, prefetch_chunks=4, rows_per_chunk=1024)
plain |= dict(cache="none", cache_mb=1000, output_dir=sys.argv[3])
def scan():
    total = 0
    for path in sorted(Path(store).glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=names, use_threads=False)
            total += len([table[name].to_numpy() for name in names][0])
    return total
def reader(**settings):
    config = SimpleNamespace(**plain | settings)
    return sum(len(chunk["id"]) for chunk in chunks_of(store, config, manifest, 0, 1, 0))
cases = {
    "a raw scan, row group by row group": scan,
    "batch, 1 thread (default)": lambda: reader(reader="batch"),
    "batch, 2 threads": lambda: reader(reader="batch", num_loader_workers=2),
    "batch, no pool (dummy)": lambda: reader(reader="batch", pool="dummy"),
    "batch, 1 process": lambda: reader(reader="batch", pool="process"),
    "batch, row groups cached on disk": lambda: reader(reader="batch", cache="local-disk"),
    "arrow (pyarrow.dataset)": lambda: reader(reader="arrow"),
    "row, 1 thread": lambda: reader(reader="row"),
}
seconds = {name: [] for name in cases}
for repeat in range(int(sys.argv[4]) + 1):
    for name, work in cases.items():
        started = time.perf_counter()
        assert work() == manifest["rows"]["train"], name
        if repeat:  # the first one warms up, and fills the cache
            seconds[name].append(time.perf_counter() - started)
num_rows = manifest["rows"]["train"]
speeds = {name: num_rows / statistics.median(values) for name, values in seconds.items()}
print("RESULT", json.dumps(speeds), flush=True)
leave()
"""


def main():
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        say("a run, for the data and for equal results")
        digests, contents = {}, {}
        for name in ("batch", "arrow", "row"):
            contents[name] = run_recipe("petastorm", 2, "recipe.num_epochs=2", f"recipe.reader={name}", root=root)
            digests[name] = contents[name]["workers"][0]["digest"]
        say("readers, 5 repetitions by turns")
        words = [PYTHON, "-c", PROGRAM, HERE, contents["batch"]["dataset"]["folder"], root, "5"]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
        if len(lines) != 1:
            raise SystemExit(f"a benchmark program failed:\n{done.stderr[-3000:]}")
    rates = json.loads(lines[0])
    raw = next(iter(rates.values()))
    rows = [f"| {name} | {rate:,.0f} rows/s | {rate / raw:.2f} of the raw scan |" for name, rate in rates.items()]
    seconds = {name: content["seconds"]["run"] for name, content in contents.items()}
    rows.append(
        f"| 2 epochs of training, seconds by reader | {', '.join(f'{n} {s:.1f}' for n, s in seconds.items())} | the "
        f"same parameters: {len(set(digests.values())) == 1} |"
    )
    bounds = {
        "batch reader / raw scan >= 0.8": rates["batch, 1 thread (default)"] >= 0.8 * raw,
        "equal results": len(set(digests.values())) == 1,
    }
    print_table("petastorm", pages.machine(), rows, bounds)


if __name__ == "__main__":
    main()
