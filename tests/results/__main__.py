import importlib
import json
import sys
from pathlib import Path

recipe, run = sys.argv[1:]
dataset = json.loads((Path(run) / "run.json").read_text())["dataset"]
module = importlib.import_module(f"tests.results.{recipe}")
print(json.dumps(module.recomputed(Path(run), dataset and Path(dataset["folder"]))))
