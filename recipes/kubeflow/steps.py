"""What the pipeline's steps do, as plain functions.

Each runs in a process (or pod) of its own; see pipeline.py for the order.

A step leaves a record: when it began and ended, in which process, and what it found. On a cluster the records go to the
step's log, marked with STEP, and the client reads them there.
"""

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np

STEP, WORKER = "STEP-RECORD ", "WORKER-RECORD "
HERE = Path(__file__).resolve().parent


def recorded(step):
    """Makes a step write down its process, its time, and the dictionary that it returns."""

    @functools.wraps(step)
    def run(*args, **kwargs):
        record = {"step": step.__name__, "host": socket.gethostname(), "pid": os.getpid(), "began": time.time()}
        try:
            record["found"] = step(*args, **kwargs)
            return record["found"]
        except BaseException as error:
            record["error"] = str(error) or type(error).__name__
            raise
        finally:
            record["ended"] = time.time()
            print(STEP + json.dumps(record), flush=True)
            if folder := os.environ.get("STEP_RECORDS"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                path = Path(folder) / f"{record['began']:.6f}-{step.__name__}-{os.getpid()}.json"
                path.with_suffix(".partial").write_text(json.dumps(record))
                path.with_suffix(".partial").replace(path)

    return run


def log(metrics, found):
    """Logs numbers as the metrics of an artifact of kfp's."""
    for name, value in found.items():
        metrics.log_metric(name, value)
    keep(metrics)


def keep(artifact):
    """Writes the artifact's metadata to its path.

    Without a file there, kfp's local cache takes the result for one that was lost.
    """
    Path(artifact.path).write_text(json.dumps(artifact.metadata, indent=1) + "\n")


@recorded
def ingest(data_dir, max_rows, rows_dir):
    """Copies the dataset into the pipeline, the first `max_rows` training rows of it (0: all)."""
    from data import ImageData

    Path(rows_dir).mkdir(parents=True, exist_ok=True)
    found = {}
    for split in ("train", "test"):
        part = ImageData(data_dir, split)
        most = max_rows if split == "train" and max_rows else len(part)
        np.save(Path(rows_dir) / f"{split}_images.npy", part.images[:most])
        np.save(Path(rows_dir) / f"{split}_labels.npy", part.labels[:most])
        found[f"{split}_rows"] = min(most, len(part))
    shutil.copy(Path(data_dir) / "manifest.json", rows_dir)
    return found


@recorded
def validate(rows_dir, num_failures=0, tries_file=""):
    """Raises SystemExit with every rule that the rows break; returns statistics of them.

    `num_failures`: fail so many times first, as a source that is not there yet would; `tries_file` counts them.
    """
    from data import ImageData

    if num_failures:
        with open(tries_file, "a+") as file:
            file.write("x")
            if file.tell() <= num_failures:
                raise SystemExit(f"this is failure {file.tell()} of the {num_failures} that num_failures asks for")
    splits = {split: ImageData(rows_dir, split) for split in ("train", "test")}
    problems, found = [], {}
    for split, part in splits.items():
        num_classes, most = part.num_classes, part.max_value
        if part.images.ndim != 4 or len(part.images) != len(part.labels):
            raise SystemExit(
                f"{split}: images {part.images.shape} and labels {part.labels.shape} do not belong together"
            )
        if not len(part):
            raise SystemExit(f"{split}: no rows")
        outside = np.setdiff1d(part.labels, np.arange(num_classes))
        if len(outside):
            problems.append(f"{split}: labels {outside[:5].tolist()} are not among the {num_classes} classes")
        if part.images.max() > most:
            problems.append(f"{split}: pixels up to {part.images.max()}, but the manifest says at most {most}")
        if absent := sorted(set(range(num_classes)) - set(part.labels.tolist())):
            problems.append(f"{split}: no row of class {absent}")
        if constant := int((part.images.reshape(len(part), -1).std(axis=1) == 0).sum()):
            problems.append(f"{split}: {constant} images of one colour")
        found |= {f"{split}_rows": len(part), f"{split}_mean": round(float(part.images.mean()), 4)}
    seen = {image.tobytes() for image in splits["train"].images}
    found["test_rows_also_in_train"] = sum(image.tobytes() in seen for image in splits["test"].images)
    if found["test_rows_also_in_train"] > len(splits["test"]) // 100:
        problems.append(f"{found['test_rows_also_in_train']} test rows are training rows, too")
    if problems:
        raise SystemExit("the data is not as it should be: " + "; ".join(problems))
    return found


@recorded
def trial(rows_dir, learning_rate, num_epochs, settings):
    """A short training with this learning rate; returns its validation accuracy as `score`."""
    from trial import score_of

    own = json.loads(settings)["train"]
    score = score_of(rows_dir, learning_rate, num_epochs, own["width"], own["global_batch_size"], own["seed"])
    return {"learning_rate": learning_rate, "score": score}


@recorded
def choose(scores, learning_rates):
    """The learning rate with the best score; of equal ones the smallest."""
    score, learning_rate = max(zip(scores, learning_rates, strict=True), key=lambda pair: (pair[0], -pair[1]))
    return {"learning_rate": learning_rate, "score": score}


@recorded
def train(rows_dir, learning_rate, num_epochs, settings, model_dir):
    """Starts `num_workers` workers on this machine and waits for the model.

    torchrun starts them, or tfrun (trainer=tfjob).
    """
    about = json.loads(settings)
    own = {**about["train"], "rows_dir": rows_dir, "learning_rate": learning_rate, "num_epochs": num_epochs}
    path, num_workers, restarts = (
        prepare_training(own, model_dir),
        str(about["num_workers"]),
        str(about["max_restarts"]),
    )
    if about["trainer"] == "tfjob":
        argv = [sys.executable, "-m", "tfrun", "--num-workers", num_workers, "--max-restarts", restarts]
        argv += [str(HERE / "train_tensorflow.py"), str(path)]
    else:
        # torchrun's store listens on all addresses of the machine: netrun gives it a network of its own.
        argv = [sys.executable, "-m", "netrun", str(Path(sys.executable).with_name("torchrun")), "--nnodes", "1"]
        argv += ["--nproc-per-node", num_workers]
        argv += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-conf", "is_host=1"]
        argv += ["--local-addr", "127.0.0.1", "--max-restarts", restarts, str(HERE / "train.py"), str(path)]
    interface = "lo0" if sys.platform == "darwin" else "lo"
    status = subprocess.run(argv, env={**os.environ, "GLOO_SOCKET_IFNAME": interface}).returncode
    if status:
        raise SystemExit(f"the training ended with exit status {status}; the workers' words stand above")
    return {"num_workers": about["num_workers"], "learning_rate": learning_rate, "trainer": about["trainer"]}


def prepare_training(settings, model_dir):
    """Writes the settings of train.py (JSON is YAML) and the model's card; returns the path of the settings."""
    from data import ImageData

    rows, folder = ImageData(settings["rows_dir"], "train"), Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    card = {"num_classes": rows.num_classes, "num_channels": rows.images.shape[3], "image_size": rows.images.shape[1:3]}
    card |= {key: settings[key] for key in ("width", "learning_rate", "num_epochs", "global_batch_size", "seed")}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    path = folder / "train.yaml"
    path.write_text(json.dumps({**settings, "model_path": str(folder / "model.pt")}) + "\n")
    return path


@recorded
def evaluate(rows_dir, model_dir, predictions_path):
    """Accuracy over all test rows, and each row's predicted label, int64 (rows,), to compare with the server's."""
    import torch

    from data import ImageData
    from model import torch_network

    rows, card = ImageData(rows_dir, "test"), json.loads((Path(model_dir) / "card.json").read_text())
    network = torch_network(card["num_channels"], card["num_classes"], card["width"])
    network.load_state_dict(torch.load(Path(model_dir) / "model.pt", weights_only=True, map_location="cpu"))
    network.eval()
    images, labels = rows.read(np.arange(len(rows)))
    with torch.no_grad():
        predicted = np.concatenate(
            [network(torch.from_numpy(part)).argmax(1).numpy() for part in np.array_split(images, 8)]
        )
    with open(predictions_path, "wb") as file:
        np.save(file, predicted)
    confusion = np.zeros((rows.num_classes, rows.num_classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    return {"accuracy": float((predicted == labels).mean()), "confusion": confusion.tolist()}


@recorded
def gate(accuracy, min_accuracy):
    """Raises SystemExit when the model is not good enough to go on: nothing is registered or deployed then."""
    if accuracy < min_accuracy:
        raise SystemExit(
            f"the gate is closed: accuracy {accuracy:.4f} is {min_accuracy - accuracy:.4f} below "
            f"min_accuracy={min_accuracy}; nothing was registered or deployed"
        )
    return {"margin": accuracy - min_accuracy}


@recorded
def register(model_dir, accuracy, registry_dir, name):
    """Copies the model into the registry as its next version; returns the version and where it is."""
    parent = Path(registry_dir) / name
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".partial-{uuid.uuid4().hex}"  # pods have the same process ids
    try:
        shutil.copytree(model_dir, partial)
        card = json.loads((partial / "card.json").read_text())
        (partial / "card.json").write_text(json.dumps({**card, "accuracy": accuracy}, indent=1) + "\n")
        while True:
            version = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0)
            try:
                partial.rename(parent / str(version))
                return {"version": version, "folder": str(parent / str(version))}
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # made by another pipeline in between
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@recorded
def deploy(model_dir, name, port, timeout_seconds, server_file):
    """Starts the model server on loopback and waits until it says that it is ready; returns its address."""
    import requests

    address, log = Path(server_file), Path(server_file).with_suffix(".log")
    address.unlink(missing_ok=True)
    owner = os.environ.get("PIPELINE_PID", str(os.getppid()))
    argv = [sys.executable, str(HERE / "serve.py"), model_dir, "--name", name, "--port", str(port)]
    with open(log, "w") as output:
        # Not this step's output: kfp waits for its end before it calls the step done.
        server = subprocess.Popen(
            [*argv, "--address-file", str(address), "--until-end-of", owner],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the model server ended: {log.read_text().strip()[-2000:]}")
        with contextlib.suppress(OSError, ValueError):
            url = json.loads(address.read_text())["url"]
            if requests.get(f"{url}/v2/models/{name}/ready", timeout=1).status_code == 200:
                return {"url": url, "pid": server.pid}
        time.sleep(0.1)
    server.kill()
    raise SystemExit(f"the model server was not ready within {timeout_seconds:g} s; its log: {log.read_text()[-2000:]}")


@recorded
def smoke_test(url, name, rows_dir, predictions_path, min_accuracy, timeout_seconds, batch_size=64):
    """Asks the server for every test row (V2 protocol).

    Raises SystemExit when a label differs from the evaluation's, the accuracy is too low, or an answer comes late.
    """
    import requests

    from data import ImageData

    rows, predicted, milliseconds = ImageData(rows_dir, "test"), np.load(predictions_path), []
    images, labels = rows.read(np.arange(len(rows)))
    served = []
    for part in np.split(images, range(batch_size, len(images), batch_size)):
        entry = {"name": "images", "shape": list(part.shape), "datatype": "FP32", "data": part.ravel().tolist()}
        started = time.perf_counter()
        try:
            answer = requests.post(f"{url}/v2/models/{name}/infer", json={"inputs": [entry]}, timeout=timeout_seconds)
            answer.raise_for_status()
        except requests.Timeout:
            raise SystemExit(
                f"the model server answered later than after {timeout_seconds:g} s (serve_timeout_seconds)"
            ) from None
        except requests.RequestException as error:
            raise SystemExit(f"the model server did not answer: {error}") from None
        milliseconds.append(1000 * (time.perf_counter() - started))
        served += next(output["data"] for output in answer.json()["outputs"] if output["name"] == "labels")
    accuracy, different = float((np.array(served) == labels).mean()), int((np.array(served) != predicted).sum())
    if different:
        raise SystemExit(
            f"the served model gives {different} of {len(labels)} rows another label than the evaluation did"
        )
    if accuracy < min_accuracy:
        raise SystemExit(f"the served accuracy {accuracy:.4f} is {min_accuracy - accuracy:.4f} below {min_accuracy}")
    return {"accuracy": accuracy, "rows": len(served), "milliseconds_per_request": float(np.median(milliseconds))}


@recorded
def stop_server(server_file):
    """Ends the model server, if one was started; called however the pipeline ends."""
    import psutil

    try:
        server = json.loads(Path(server_file).read_text())
        process = psutil.Process(server["pid"])
        if server_file not in process.cmdline():
            return {"stopped": 0}  # another process has that number by now
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
    except (OSError, psutil.NoSuchProcess):
        return {"stopped": 0}
    except psutil.TimeoutExpired:
        process.kill()
    return {"stopped": 1}
