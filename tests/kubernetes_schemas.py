"""Objects against the schemas of their projects: python kubernetes_schemas.py OBJECTS.yaml ... prints
each kind, or what is wrong.

Run in the environment of tests/infra/requirements.txt. Trainer's and Spark's objects go through their own models and
must come back the same; Dask's operator builds the pods, deployments and services that it would make; of KubeRay the
fields are those of its API reference; and every pod goes against Kubernetes' own schema.
"""

import sys
from pathlib import Path

import kubeflow_spark_api.models as spark
import kubeflow_trainer_api.models as trainer
import kubernetes_validate
import yaml
from dask_kubernetes.operator.controller import controller as dask

VERSION = "1.33"
# KubeRay 1.6, ray.io/v1: field -> its fields, a type, or "pod" for a PodTemplateSpec (its API reference).
WORKER_GROUP = {
    "groupName": str,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), int),
    "rayStartParams": "texts",
    "template": "pod",
}
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": {"rayStartParams": "texts", "template": "pod", "serviceType": str},
    "workerGroupSpecs": [WORKER_GROUP],
}
RAY_JOB = {
    **dict.fromkeys(("entrypoint", "submissionMode", "runtimeEnvYAML"), str),
    **dict.fromkeys(("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"), int),
    "shutdownAfterJobFinishes": bool,
    "submitterPodTemplate": "pod",
    "submitterConfig": {"backoffLimit": int},
    "rayClusterSpec": RAY_CLUSTER,
}
DASK_CLUSTER = {"worker": {"replicas": int, "spec": dict}, "scheduler": {"spec": dict, "service": dict}}
DASK_JOB = {"job": {"spec": dict, "metadata": dict}, "cluster": {"spec": DASK_CLUSTER}}


def pod(template, name):
    """Raises ValidationError unless this is a PodTemplateSpec."""
    metadata = {"name": name, **template.get("metadata", {})}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(whole, VERSION, strict=True)


def fields(value, wanted, where):
    """Raises ValueError for a field that is not among the known ones, or of another type."""
    if wanted == "pod":
        pod(value, where.rpartition(".")[2].lower())
    elif wanted == "texts":
        if not all(isinstance(each, str) for each in value.values()):
            raise ValueError(f"{where}: expected texts: {value}")
    elif isinstance(wanted, dict):
        if strange := set(value) - set(wanted):
            raise ValueError(f"{where}: unknown: {sorted(strange)}")
        for key, each in value.items():
            fields(each, wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        for each in value:
            fields(each, wanted[0], where)
    elif type(value) is not wanted:
        raise ValueError(f"{where}: {value!r} is no {wanted.__name__}")


def same(model, made):
    """Raises ValueError unless the project's model gives back what it was given: what it does not know it drops."""
    given = model.from_dict(made).to_dict()
    if given != made:
        raise ValueError(f"{made['kind']}: {difference(made, given)}")


def difference(made, given, where=""):
    if isinstance(made, dict) and isinstance(given, dict):
        for key in made.keys() | given.keys():
            if made.get(key) != given.get(key):
                return difference(made.get(key), given.get(key), f"{where}.{key}")
    if isinstance(made, list) and isinstance(given, list) and len(made) == len(given):
        for number, pair in enumerate(zip(made, given, strict=True)):
            if pair[0] != pair[1]:
                return difference(*pair, f"{where}[{number}]")
    return f"{where}: {made!r} became {given!r}"


def check(made):
    kind, name = made["kind"], made["metadata"]["name"]
    if kind in ("ConfigMap", "Secret", "Job"):
        kubernetes_validate.validate(made, VERSION, strict=True)
    elif kind == "TrainJob":
        same(trainer.TrainerV1alpha1TrainJob, made)
    elif kind == "TrainingRuntime":
        same(trainer.TrainerV1alpha1TrainingRuntime, made)
        for job in made["spec"]["template"]["spec"]["replicatedJobs"]:
            pod(job["template"]["spec"]["template"], job["name"])
    elif kind == "SparkApplication":
        same(spark.SparkV1beta2SparkApplication, made)
    elif kind == "RayJob":
        fields(made["spec"], RAY_JOB, "RayJob")
    elif kind == "DaskJob":
        fields(made["spec"], DASK_JOB, kind)
        cluster, labels, namespace = (
            made["spec"]["cluster"]["spec"],
            made["metadata"]["labels"],
            made["metadata"]["namespace"],
        )
        for each in (
            dask.build_job_pod_spec(name, name, namespace, made["spec"]["job"]["spec"], {}, labels),
            dask.build_scheduler_deployment_spec(name, cluster["scheduler"]["spec"], {}, labels),
            dask.build_scheduler_service_spec(name, cluster["scheduler"]["service"], {}, labels),
            dask.build_worker_deployment_spec(
                f"{name}-default", namespace, name, "abc", cluster["worker"]["spec"], {}, labels
            ),
        ):
            kubernetes_validate.validate(each, VERSION, strict=True)
    else:
        raise ValueError(f"{kind} is unknown here")


def main(paths):
    """Returns how many files were refused."""
    refused = 0
    for path in paths:
        try:
            for made in yaml.safe_load_all(Path(path).read_text()):
                check(made)
                print(made["kind"])
        except (ValueError, KeyError, kubernetes_validate.ValidationError) as error:
            refused += 1
            print(f"refused: {path}: {error}", file=sys.stderr)
    return refused


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
