"""Sends the pipeline to a cluster's Kubeflow, follows it, and brings home what its steps and workers wrote down."""

import contextlib
import json
import time
from pathlib import Path

import kfp
import requests
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from steps import STEP, WORKER

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def check_reachable(host):
    """Raises SystemExit unless Kubeflow Pipelines answers at this address."""
    try:
        answer = requests.get(f"{host.rstrip('/')}/apis/v2beta1/healthz", timeout=10)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise SystemExit(
            f"no Kubeflow Pipelines at kubeflow_host={host}: {type(error).__name__}. Is the cluster up, and reachable "
            "from here? For example: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        ) from None


def kubernetes_api():
    """The Kubernetes API that the user's kubeconfig names.

    Raises SystemExit when there is none, or it does not answer.
    """
    try:
        config.load_kube_config()
        client.VersionApi().get_code(_request_timeout=10)
    except Exception as error:  # urllib3's, ssl's, yaml's and the client's own
        raise SystemExit(
            f"the Kubernetes API cannot be used: {str(error).splitlines()[0]}; `kubectl cluster-info` shows what the "
            "kubeconfig names"
        ) from None
    return client.CoreV1Api()


def submit(package, arguments, settings, run):
    """Runs the compiled pipeline on the cluster and waits for it. Raises SystemExit unless it succeeded."""
    check_reachable(settings.kubeflow_host)
    core = kubernetes_api()
    pipelines = kfp.Client(host=settings.kubeflow_host, namespace=settings.namespace, verify_ssl=True)
    made = pipelines.create_run_from_pipeline_package(
        str(package),
        arguments=arguments,
        run_name=f"{settings.model_name}-{time.strftime('%Y%m%d-%H%M%S')}",
        experiment_name=settings.model_name,
        namespace=settings.namespace,
        service_account=settings.service_account,
    )
    print(f"run {made.run_id}: {settings.kubeflow_host.rstrip('/')}/#/runs/details/{made.run_id}", flush=True)
    seen = {}
    try:
        state = follow(pipelines, core, made.run_id, settings, run, seen)
    except BaseException:
        # However this program gives up (Ctrl-C, a lost connection), the run ends too, if the cluster can still be told.
        with contextlib.suppress(Exception):
            pipelines.terminate_run(made.run_id)
            print(f"run {made.run_id} was told to end", flush=True)
        raise
    if state != "SUCCEEDED":
        errors = [record["error"] for record in seen.values() if "error" in record]
        raise SystemExit(f"the run ended as {state}: {'; '.join(errors) or 'see its page'}")


def follow(pipelines, core, run_id, settings, run, seen):
    """The state in which the run ends.

    `seen` is filled with the records of its steps. A server that is away for a minute is waited for.
    """
    state, silent = None, 0
    while state not in ENDED:
        time.sleep(settings.poll_seconds)
        try:
            now = pipelines.get_run(run_id)
            bring_home(core, settings, run_id, seen)
            silent = 0
        except Exception as error:  # kfp's, urllib3's and the Kubernetes client's own
            silent += 1
            if silent * settings.poll_seconds > 60:
                raise SystemExit(f"the cluster does not answer any more: {str(error).splitlines()[0]}") from None
            continue
        if now.state != state:
            state = now.state
            print(f"run {run_id}: {state}", flush=True)
        steps = {record["step"] for record in seen.values()}
        text = f"{state}: {', '.join(sorted(steps)) or 'no step has ended'}"
        run.progress(len(steps), len(steps) + (state not in ENDED), text)
    return state


def bring_home(core, settings, run_id, seen):
    """Writes the records in the logs of the run's pods into the run folder, as a local run would have written them."""
    try:
        pods = core.list_namespaced_pod(settings.namespace, label_selector=f"pipeline/runid={run_id}").items
    except ApiException as error:
        raise SystemExit(f"the pods of namespace {settings.namespace} cannot be listed: {error.reason}") from None
    for pod in pods:
        if pod.status.phase not in ("Running", "Succeeded", "Failed"):
            continue
        try:
            log = core.read_namespaced_pod_log(pod.metadata.name, settings.namespace, container="main")
        except ApiException:
            continue  # its container has not begun, or is gone
        workers = {}
        for line in log.splitlines():
            if line.startswith(STEP):
                record = json.loads(line.removeprefix(STEP))
                seen[record["step"], record["pid"], record["began"]] = record
            elif line.startswith(WORKER):
                name, _, event = line.removeprefix(WORKER).partition(" ")
                workers.setdefault(Path(name).name, []).append(event)  # the name alone: a log must not choose a folder
        for name, events in workers.items():
            write(Path(settings.output_dir) / "workers" / name, "\n".join(events) + "\n")
    for record in seen.values():
        write(Path(settings.output_dir) / "steps" / f"{record['began']:.6f}-{record['step']}.json", json.dumps(record))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_text(text)
    path.with_suffix(".partial").replace(path)
