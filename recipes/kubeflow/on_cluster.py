"""The steps that hand their work to an operator of the cluster.

The operators are Kubeflow Trainer or the Training Operator, Katib and KServe.

They run in a pod whose service account may make these objects (manifests.py, `standing`). Files go through the claim
that all pods share; what the training's workers wrote down goes to the step's log, where the client reads it.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from manifests import JOBS, experiment, inference_service
from steps import WORKER, prepare_training, recorded
from trial import METRIC

POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "5"))
KINDS = {
    "TrainJob": ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    "PyTorchJob": ("kubeflow.org", "v1", "pytorchjobs"),
    "TFJob": ("kubeflow.org", "v1", "tfjobs"),
    "Experiment": ("kubeflow.org", "v1beta1", "experiments"),
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
}
# The conditions by which each kind says that it has ended well, or badly.
GOOD = {
    "TrainJob": "Complete",
    "PyTorchJob": "Succeeded",
    "TFJob": "Succeeded",
    "Experiment": "Succeeded",
    "InferenceService": "Ready",
}
BAD = {"TrainJob": "Failed", "PyTorchJob": "Failed", "TFJob": "Failed", "Experiment": "Failed"}


@recorded
def train(rows_dir, learning_rate, num_epochs, settings, model_dir):
    """Makes the job, waits for its end, and takes the model from the claim.

    Returns the number of workers and their job.
    """
    about = about_of(settings)
    folder = run_folder(about)
    shutil.copytree(rows_dir, folder / "rows", dirs_exist_ok=True)
    own = {**json.loads(settings)["train"], "learning_rate": learning_rate, "num_epochs": num_epochs}
    own |= {"rows_dir": f"{folder}/rows", "output_dir": str(folder), "checkpoint_dir": f"{folder}/checkpoints"}
    shutil.copy(prepare_training(own, folder / "model"), folder / "train.yaml")
    name = f"{about.model_name}-{folder.name[-12:]}"
    try:
        with given_up_with_this_step(JOBS[about.trainer](name, about, str(folder)), about.namespace) as job:
            made = wait_for(job, about.namespace)
    finally:
        for path in sorted(folder.glob("workers/*.jsonl")):
            for line in path.read_text().splitlines():
                print(f"{WORKER}{path.name} {line}", flush=True)
    shutil.copytree(folder / "model", model_dir, dirs_exist_ok=True)
    return {"num_workers": about.num_workers, "learning_rate": learning_rate, "job": f"{made['kind']} {name}"}


@recorded
def tune(rows_dir, learning_rates, num_epochs, settings):
    """Makes the experiment, waits for its end, and returns the best trial's learning rate and score."""
    about = about_of(settings)
    folder = run_folder(about)
    shutil.copytree(rows_dir, folder / "rows", dirs_exist_ok=True)
    name = f"{about.model_name}-{folder.name[-12:]}"
    wanted = experiment(name, about, f"{folder}/rows", learning_rates, num_epochs)
    with given_up_with_this_step(wanted, about.namespace) as made:
        best = wait_for(made, about.namespace)["status"]["currentOptimalTrial"]
    (rate,) = (entry["value"] for entry in best["parameterAssignments"] if entry["name"] == "learning_rate")
    (score,) = (entry["max"] for entry in best["observation"]["metrics"] if entry["name"] == METRIC)
    return {"learning_rate": float(rate), "score": float(score)}


@recorded
def deploy(folder, name, timeout_seconds, settings):
    """Makes or changes the InferenceService and waits until it is ready; returns its address inside the cluster."""
    about = about_of(settings)
    about.use_gpu = False
    wanted = inference_service(name, about, folder)
    made = create(wanted, about.namespace, change=True)
    ready = wait_for(made, about.namespace, timeout_seconds)
    return {"url": ready["status"]["address"]["url"], "version": Path(folder).name}


def about_of(settings):
    about = json.loads(settings)
    return SimpleNamespace(**about.pop("train"), **about)


def run_folder(about):
    """This pipeline run's folder on the claim.

    Kubeflow gives each run an id, and pipeline.py puts it into its pods' environment.
    """
    folder = Path(about.mount_path) / os.environ["RUN_ID"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def api():
    if os.environ.get("KUBECONFIG"):
        config.load_kube_config()
    else:
        config.load_incluster_config()
    return client.CustomObjectsApi()


class Failed(SystemExit):
    """The object itself says that it has failed: it is left to be looked at."""


@contextlib.contextmanager
def given_up_with_this_step(wanted, namespace):
    """Makes the object.

    When this step is ended (a pipeline that is terminated), the object goes too: its workers would go on.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("the step was told to end"))
    made = create(wanted, namespace)
    try:
        yield made
    except Failed:
        raise
    except BaseException:
        group, version, plural = KINDS[made["kind"]]
        with contextlib.suppress(ApiException, HTTPError):
            api().delete_namespaced_custom_object(group, version, namespace, plural, made["metadata"]["name"])
        raise


def create(made, namespace, change=False):
    """Makes the object.

    One of that name is changed (`change`) or taken up, as a step that is tried again finds its own.
    """
    group, version, plural = KINDS[made["kind"]]
    try:
        return api().create_namespaced_custom_object(group, version, namespace, plural, made)
    except ApiException as error:
        if error.status != 409:
            raise SystemExit(f"{made['kind']} {made['metadata']['name']} was refused: {reason_of(error)}") from None
    name = made["metadata"]["name"]
    if change:
        return api().patch_namespaced_custom_object(group, version, namespace, plural, name, made)
    return api().get_namespaced_custom_object(group, version, namespace, plural, name)


def wait_for(made, namespace, timeout_seconds=24 * 3600):
    """Returns the object when its conditions say that all went well.

    Raises SystemExit when they say the opposite, or too late.
    """
    kind, name = made["kind"], made["metadata"]["name"]
    group, version, plural = KINDS[kind]
    deadline, shown = time.monotonic() + timeout_seconds, None
    while time.monotonic() < deadline:
        try:
            found = api().get_namespaced_custom_object(group, version, namespace, plural, name)
        except (ApiException, HTTPError) as error:
            if getattr(error, "status", None) and error.status < 500:
                raise SystemExit(f"{kind} {name} cannot be looked at: {reason_of(error)}") from None
            time.sleep(POLL_SECONDS)  # a server that is away for a moment
            continue
        conditions = {entry["type"]: entry for entry in found.get("status", {}).get("conditions", [])}
        true = {name for name, entry in conditions.items() if entry["status"] == "True"}
        if true != shown:
            print(f"{kind} {name}: {', '.join(sorted(true)) or 'made'}", flush=True)
            shown = true
        if BAD.get(kind) in true:
            raise Failed(f"{kind} {name} failed: {conditions[BAD[kind]].get('message', 'no reason was given')}")
        # A service that was changed is Ready as it was before, until its controller has looked.
        current = found.get("status", {}).get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
        if GOOD[kind] in true and (kind != "InferenceService" or current):
            return found
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"{kind} {name} was not {GOOD[kind]} within {timeout_seconds:g} s")


def reason_of(error):
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
