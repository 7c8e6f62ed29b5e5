"""The objects that the pipeline's steps make on a cluster, and those that have to be there before it runs.

Each is built from the models of its own project, which check names and types, and handed out as the dictionary that the
Kubernetes API takes. `python manifests.py CONFIG.yaml FOLDER` writes all of them as YAML files.
"""

import math
import sys
from pathlib import Path

import kubeflow_katib_api.models as katib
import kubeflow_trainer_api.models as trainer
import yaml
from kserve import V1beta1InferenceService, V1beta1InferenceServiceSpec, V1beta1PredictorSpec
from kubeflow.training import (
    KubeflowOrgV1PyTorchJob,
    KubeflowOrgV1PyTorchJobSpec,
    KubeflowOrgV1ReplicaSpec,
    KubeflowOrgV1RunPolicy,
    KubeflowOrgV1TFJob,
    KubeflowOrgV1TFJobSpec,
)
from kubernetes import client

from runrecord import load_config
from settings import NON_ROOT
from trial import METRIC

RECIPE = "/recipe"  # where the image has this folder
LOCKED_DOWN = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": NON_ROOT,
    "runAsGroup": NON_ROOT,
    "fsGroup": NON_ROOT,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def train_job(name, config, folder):
    """Kubeflow Trainer's TrainJob: `num_workers` pods, in each of them torchrun with one worker."""
    each = trainer.TrainerV1alpha1ContainerPatch.from_dict(
        {
            "name": "node",
            "volumeMounts": [{"name": "shared", "mountPath": config.mount_path}, {"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": LOCKED_DOWN,
        }
    )
    pod = {"containers": [each.to_dict()], "volumes": volumes(config), "securityContext": POD_SECURITY}
    jobs = [{"name": "node", "template": {"spec": {"template": {"metadata": {"labels": labels(config)}, "spec": pod}}}}]
    patch = {
        "manager": "distributed-ml-recipes/kubeflow",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
    }
    made = trainer.TrainerV1alpha1TrainJob(
        api_version="trainer.kubeflow.org/v1alpha1",
        kind="TrainJob",
        metadata=trainer.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=name, namespace=config.namespace, labels=labels(config)
        ),
        spec=trainer.TrainerV1alpha1TrainJobSpec(
            runtime_ref=trainer.TrainerV1alpha1RuntimeRef(name=config.runtime),
            runtime_patches=[trainer.TrainerV1alpha1RuntimePatch.from_dict(patch)],
            trainer=trainer.TrainerV1alpha1Trainer.from_dict(
                {
                    "image": config.image,
                    "command": ["torchrun"],
                    "args": training_words(config, folder),
                    "numNodes": config.num_workers,
                    "resourcesPerNode": resources(config),
                    "env": environment(config),
                }
            ),
        ),
    )
    return made.to_dict()


def pytorch_job(name, config, folder):
    """The Training Operator's PyTorchJob: the first pod is called Master, and has rank 0."""
    replicas = {"Master": 1, "Worker": config.num_workers - 1}
    made = KubeflowOrgV1PyTorchJob(
        api_version="kubeflow.org/v1",
        kind="PyTorchJob",
        metadata=client.V1ObjectMeta(name=name, namespace=config.namespace, labels=labels(config)),
        spec=KubeflowOrgV1PyTorchJobSpec(
            nproc_per_node="1",
            run_policy=KubeflowOrgV1RunPolicy(clean_pod_policy="Running", backoff_limit=config.max_restarts),
            pytorch_replica_specs={
                role: replica(count, "pytorch", ["torchrun", *training_words(config, folder)], config)
                for role, count in replicas.items()
                if count
            },
        ),
    )
    return plain(made)


def tf_job(name, config, folder):
    """The Training Operator's TFJob: every pod gets its TF_CONFIG, worker 0 is the chief."""
    made = KubeflowOrgV1TFJob(
        api_version="kubeflow.org/v1",
        kind="TFJob",
        metadata=client.V1ObjectMeta(name=name, namespace=config.namespace, labels=labels(config)),
        spec=KubeflowOrgV1TFJobSpec(
            run_policy=KubeflowOrgV1RunPolicy(clean_pod_policy="Running", backoff_limit=config.max_restarts),
            tf_replica_specs={
                "Worker": replica(
                    config.num_workers,
                    "tensorflow",
                    ["python", f"{RECIPE}/train_tensorflow.py", f"{folder}/train.yaml"],
                    config,
                )
            },
        ),
    )
    return plain(made)


def replica(count, container, argv, config):
    """One kind of pod of a job; the operator finds its container by the name that it wants."""
    # Between SIGTERM and SIGKILL when a pod has to leave, its worker saves. (A TrainJob's pods have this from the
    # ClusterTrainingRuntime: the job may not change it.)
    grace = {"terminationGracePeriodSeconds": math.ceil(config.notice_grace_seconds)}
    return KubeflowOrgV1ReplicaSpec(
        replicas=count,
        restart_policy="OnFailure",
        template={"metadata": {"labels": labels(config)}, "spec": pod_spec(container, argv, config) | grace},
    )


def experiment(name, config, rows_dir, learning_rates, num_epochs):
    """Katib's Experiment: a grid of learning rates, each tried by a Job that runs trial.py."""
    numbers = [str(value) for value in (num_epochs, config.width, config.global_batch_size, config.seed)]
    argv = ["python", f"{RECIPE}/trial.py", rows_dir, "${trialParameters.learningRate}", *numbers]
    pod = pod_spec("trial", argv, config) | {"restartPolicy": "Never"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {
            "backoffLimit": config.num_retries,
            "template": {"metadata": {"labels": labels(config)}, "spec": pod},
        },
    }
    made = katib.V1beta1Experiment.from_dict(
        {
            "apiVersion": "kubeflow.org/v1beta1",
            "kind": "Experiment",
            "metadata": {"name": name, "namespace": config.namespace, "labels": labels(config)},
            "spec": {
                "objective": {"type": "maximize", "objectiveMetricName": METRIC},
                "algorithm": {"algorithmName": "grid"},
                "parallelTrialCount": config.num_workers,
                "maxTrialCount": len(learning_rates),
                "maxFailedTrialCount": 0,
                "metricsCollectorSpec": {"collector": {"kind": "StdOut"}},
                "parameters": [
                    {
                        "name": "learning_rate",
                        "parameterType": "categorical",  # the grid's own points, not ones that Katib would choose
                        "feasibleSpace": {"list": [str(rate) for rate in learning_rates]},
                    }
                ],
                "trialTemplate": {
                    "primaryContainerName": "trial",
                    "retain": False,
                    "trialParameters": [
                        {"name": "learningRate", "reference": "learning_rate", "description": "peak of the schedule"}
                    ],
                    "trialSpec": job,
                },
            },
        }
    )
    return made.to_dict()


def inference_service(name, config, folder):
    """KServe's InferenceService, with serve.py as its predictor."""
    argv = ["python", f"{RECIPE}/serve.py", folder, "--name", name, "--host", "0.0.0.0", "--port", "8080"]
    pod = pod_spec("kserve-container", argv, config)
    pod["containers"][0] |= {
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": f"/v2/models/{name}/ready", "port": 8080}, "periodSeconds": 2},
    }
    made = V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=client.V1ObjectMeta(
            name=name,
            namespace=config.namespace,
            labels=labels(config),
            annotations={"serving.kserve.io/deploymentMode": "RawDeployment", "sidecar.istio.io/inject": "false"},
        ),
        spec=V1beta1InferenceServiceSpec(predictor=V1beta1PredictorSpec(min_replicas=1, max_replicas=1, **snake(pod))),
    )
    return plain(made)


def pod_spec(container, argv, config):
    """A pod with one container: not root, no rights, nothing writable but the shared claim and /tmp."""
    return {
        "serviceAccountName": config.service_account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [
            {
                "name": container,
                "image": config.image,
                "command": argv[:1],
                "args": argv[1:],
                "env": environment(config),
                "resources": resources(config),
                "securityContext": LOCKED_DOWN,
                "volumeMounts": [
                    {"name": "shared", "mountPath": config.mount_path},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": volumes(config),
    }


def training_words(config, folder):
    return ["--max-restarts", str(config.max_restarts), f"{RECIPE}/train.py", f"{folder}/train.yaml"]


def environment(config):
    threads = str(max(1, int(float(config.cpus_per_worker))))
    return [{"name": name, "value": value} for name, value in (("OMP_NUM_THREADS", threads), ("HOME", "/tmp"))]


def resources(config):
    memory = f"{config.memory_mb_per_worker}Mi"
    limits = {"cpu": str(config.cpus_per_worker), "memory": memory}
    requests = dict(limits)
    if config.use_gpu:  # a GPU cannot be shared out: what is asked for is what one gets
        limits["nvidia.com/gpu"] = requests["nvidia.com/gpu"] = "1"
    return {"requests": requests, "limits": limits}


def volumes(config):
    return [
        {"name": "shared", "persistentVolumeClaim": {"claimName": config.claim}},
        {"name": "tmp", "emptyDir": {}},
    ]


def labels(config):
    return {"app.kubernetes.io/name": config.model_name, "app.kubernetes.io/part-of": "distributed-ml-recipes"}


def standing(config):
    """What has to be there before.

    That is the claim, the account that the steps work as, what it may do, and who may talk to whom.
    """
    named = {"name": config.service_account, "namespace": config.namespace, "labels": labels(config)}
    rules = [
        ("trainer.kubeflow.org", ["trainjobs"]),
        ("kubeflow.org", ["pytorchjobs", "tfjobs", "experiments"]),
        ("serving.kserve.io", ["inferenceservices"]),
    ]
    verbs = ["create", "get", "list", "watch", "patch", "delete"]
    return {
        "claim": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": config.claim, "namespace": config.namespace, "labels": labels(config)},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": config.storage_size}},
                **({"storageClassName": config.storage_class} if config.storage_class else {}),
            },
        },
        "service-account": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        "role": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": named,
            "rules": [{"apiGroups": [group], "resources": names, "verbs": verbs} for group, names in rules]
            + [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list", "watch"]}],
        },
        "role-binding": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": config.service_account},
            "subjects": [{"kind": "ServiceAccount", "name": config.service_account, "namespace": config.namespace}],
        },
        "network-policy": {
            # Workers talk to each other, and the steps of the pipeline to the model server; nobody else comes in.
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": config.model_name, "namespace": config.namespace, "labels": labels(config)},
            "spec": {
                "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "distributed-ml-recipes"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": [
                            {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "distributed-ml-recipes"}}}
                        ],
                    },
                    {
                        "from": [
                            {"podSelector": {"matchExpressions": [{"key": "pipeline/runid", "operator": "Exists"}]}}
                        ],
                        "ports": [{"protocol": "TCP", "port": 8080}],
                    },
                ],
            },
        },
    }


JOBS = {"trainjob": train_job, "pytorchjob": pytorch_job, "tfjob": tf_job}


def all_objects(config):
    """name -> object, everything that this config could make."""
    folder = f"{config.mount_path}/RUN"
    made = {kind: job(config.model_name, config, folder) for kind, job in JOBS.items()}
    made["experiment"] = experiment(
        config.model_name, config, f"{folder}/rows", config.learning_rates, config.trial_epochs
    )
    made["inference-service"] = inference_service(
        config.model_name, config, f"{config.mount_path}/registry/{config.model_name}/1"
    )
    return made | standing(config)


def plain(made):
    """A model of one of the older clients as the dictionary that goes over the wire."""
    return client.ApiClient().sanitize_for_serialization(made)


def snake(pod):
    """A pod's spec in the words of Python's clients: their models take snake_case names at the top level."""
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): value for key, value in pod.items()}


def write_all(config, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in all_objects(config).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write_all(load_config(sys.argv[1:2]), sys.argv[2])
