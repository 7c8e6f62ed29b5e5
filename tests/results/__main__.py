import importlib
import json
import sys
from pathlib import Path

if len(sys.argv) != 3:
    raise SystemExit("usage: python -m tests.results horovod outputs/horovod/latest")
recipe, run = sys.argv[1:]
if not (Path(run) / "run.json").exists():
    raise SystemExit(f"error: {run}: expected the folder of a run, such as outputs/{recipe}/latest")
content = json.loads((Path(run) / "run.json").read_text())
if content["status"] != "ok" or content["recipe"] != recipe:
    raise SystemExit(
        f"error: {run} is a run of {content['recipe']} with the status {content['status']}: expected one of {recipe} "
        "that ended ok"
    )
dataset = content["dataset"]
module = importlib.import_module(f"tests.results.{recipe}")
print(json.dumps(module.recomputed(Path(run), dataset and Path(dataset["folder"]))))
