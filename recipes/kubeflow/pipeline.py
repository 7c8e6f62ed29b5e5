"""The workflow as a Kubeflow pipeline: its steps, and what each gets from the ones before.

What the steps do stands in steps.py and on_cluster.py.

The functions without a body of their own are the components. kfp takes their source out of this file and runs it
in a process of its own, on this machine or in a pod, where this folder is on the module path; so they import what
they need inside.
"""

import functools
import json

from kfp import dsl, kubernetes

from settings import NON_ROOT


def ingest(data_dir: str, max_rows: int, rows: dsl.Output[dsl.Dataset]):
    import steps

    rows.metadata.update(steps.ingest(data_dir, max_rows, rows.path))


def validate(rows: dsl.Input[dsl.Dataset], num_failures: int, tries_file: str, statistics: dsl.Output[dsl.Metrics]):
    import steps

    steps.log(statistics, steps.validate(rows.path, num_failures, tries_file))


def trial(rows: dsl.Input[dsl.Dataset], learning_rate: float, num_epochs: int, settings: str) -> float:
    import steps

    return steps.trial(rows.path, learning_rate, num_epochs, settings)["score"]


def choose(scores: list, learning_rates: list) -> float:
    import steps

    return steps.choose(scores, learning_rates)["learning_rate"]


def tune_on_cluster(rows: dsl.Input[dsl.Dataset], learning_rates: list, num_epochs: int, settings: str) -> float:
    import on_cluster

    return on_cluster.tune(rows.path, learning_rates, num_epochs, settings)["learning_rate"]


def train(
    rows: dsl.Input[dsl.Dataset], learning_rate: float, num_epochs: int, settings: str, model: dsl.Output[dsl.Model]
):
    import steps

    model.metadata.update(steps.train(rows.path, learning_rate, num_epochs, settings, model.path))


def train_on_cluster(
    rows: dsl.Input[dsl.Dataset], learning_rate: float, num_epochs: int, settings: str, model: dsl.Output[dsl.Model]
):
    import on_cluster

    model.metadata.update(on_cluster.train(rows.path, learning_rate, num_epochs, settings, model.path))


def evaluate(
    rows: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    predictions: dsl.Output[dsl.Artifact],
) -> float:
    import steps

    found = steps.evaluate(rows.path, model.path, predictions.path)
    steps.log(metrics, {"accuracy": found["accuracy"]})
    confusion.log_confusion_matrix([str(number) for number in range(len(found["confusion"]))], found["confusion"])
    steps.keep(confusion)
    return found["accuracy"]


def gate(accuracy: float, min_accuracy: float) -> float:
    import steps

    return steps.gate(accuracy, min_accuracy)["margin"]


def register(
    model: dsl.Input[dsl.Model], accuracy: float, registry_dir: str, name: str, registered: dsl.Output[dsl.Model]
) -> str:
    import steps

    found = steps.register(model.path, accuracy, registry_dir, name)
    registered.metadata.update(found)
    steps.keep(registered)
    return found["folder"]


def deploy(folder: str, name: str, port: int, timeout_seconds: float, server_file: str) -> str:
    import steps

    return steps.deploy(folder, name, port, timeout_seconds, server_file)["url"]


def deploy_on_cluster(folder: str, name: str, timeout_seconds: float, settings: str) -> str:
    import on_cluster

    return on_cluster.deploy(folder, name, timeout_seconds, settings)["url"]


def smoke_test(
    url: str,
    name: str,
    rows: dsl.Input[dsl.Dataset],
    predictions: dsl.Input[dsl.Artifact],
    min_accuracy: float,
    timeout_seconds: float,
    metrics: dsl.Output[dsl.Metrics],
):
    import steps

    found = steps.smoke_test(url, name, rows.path, predictions.path, min_accuracy, timeout_seconds)
    steps.log(metrics, found)


def stop_server(server_file: str):
    import steps

    steps.stop_server(server_file)


def pipeline_of(config):
    """The pipeline for this config, as kfp's decorator makes it.

    It is for this machine, or for a cluster where config.kubeflow_host is set.
    """
    on_cluster = bool(config.kubeflow_host)
    component = functools.partial(dsl.component, base_image=config.image, install_kfp_package=False)
    folder = config.mount_path if on_cluster else config.output_dir
    settings = settings_of_training(config, on_cluster)
    server_file = f"{folder}/server.json"

    def step(function, **arguments):
        """A step of the pipeline: retried when it fails, and with the limits of a pod."""
        task = component(function)(**arguments)
        # Distributed: a pod can be taken away at any moment, and one of them must not end the whole workflow.
        task.set_retry(config.num_retries, backoff_duration="1s", backoff_factor=2.0)
        if on_cluster:
            as_pod(task, config)
        return task

    @dsl.pipeline(name="digits", description="From rows to a served image classifier, with a gate in between.")
    def digits(
        data_dir: str = config.cluster_data_dir,
        max_rows: int = 0,
        learning_rates: list = config.learning_rates,
        num_epochs: int = config.num_epochs,
        trial_epochs: int = config.trial_epochs,
        min_accuracy: float = config.min_accuracy,
    ):
        def whole_workflow():
            ingested = step(ingest, data_dir=data_dir, max_rows=max_rows)
            rows = ingested.outputs["rows"]
            tries = f"{folder}/validate.tries"
            validated = step(validate, rows=rows, num_failures=config.num_failures, tries_file=tries)
            if on_cluster:
                # Distributed: an experiment of Katib's, whose trials are jobs in pods of their own.
                found = step(
                    tune_on_cluster,
                    rows=rows,
                    learning_rates=learning_rates,
                    num_epochs=trial_epochs,
                    settings=settings,
                )
                rate = found.after(validated).output
            else:
                # Distributed: trials are independent of each other, so they run side by side.
                with dsl.ParallelFor(learning_rates, parallelism=config.num_workers) as learning_rate:
                    tried = step(
                        trial, rows=rows, learning_rate=learning_rate, num_epochs=trial_epochs, settings=settings
                    )
                    tried.after(validated)
                rate = step(choose, scores=dsl.Collected(tried.output), learning_rates=learning_rates).output
            # Distributed: one step of the pipeline, several workers: torchrun's here, those of a TrainJob or
            # PyTorchJob there.
            trained = component(train_on_cluster if on_cluster else train)(
                rows=rows, learning_rate=rate, num_epochs=num_epochs, settings=settings
            )  # not retried: its launcher starts lost workers anew (max_restarts), from the last checkpoint
            if on_cluster:
                as_pod(trained, config)
            model = trained.outputs["model"]
            evaluated = step(evaluate, rows=rows, model=model)
            accuracy = evaluated.outputs["Output"]
            gated = component(gate)(accuracy=accuracy, min_accuracy=min_accuracy)
            gated.set_caching_options(False)
            if on_cluster:
                as_pod(gated, config)
            registry = config.registry_dir or f"{folder}/registry"
            registered = step(register, model=model, accuracy=accuracy, registry_dir=registry, name=config.model_name)
            registered.after(gated)
            where = {
                "folder": registered.outputs["Output"],
                "name": config.model_name,
                "timeout_seconds": config.serve_timeout_seconds,
            }
            if on_cluster:
                deployed = step(deploy_on_cluster, **where, settings=settings)
            else:
                deployed = component(deploy)(**where, port=config.serve_port, server_file=server_file)
            smoked = step(
                smoke_test,
                url=deployed.output,
                name=config.model_name,
                rows=rows,
                min_accuracy=min_accuracy,
                predictions=evaluated.outputs["predictions"],
                timeout_seconds=config.serve_timeout_seconds,
            )
            for task in (deployed, smoked):  # a server that was there the last time is not there now
                task.set_caching_options(False)

        if on_cluster:  # there the server stays: it is what the pipeline is for
            whole_workflow()
        else:
            stopped = component(stop_server)(server_file=server_file).set_caching_options(False)
            with dsl.ExitHandler(stopped, name="workflow"):
                whole_workflow()

    return digits


def settings_of_training(config, on_cluster):
    """What the training needs to know, as a parameter of its steps.

    It is JSON text, because kfp makes every number in a dictionary a float.
    """
    own = ("global_batch_size", "width", "seed", "use_gpu", "max_steps")
    own += ("checkpoint_every_steps", "checkpoint_every_seconds")
    train = {key: getattr(config, key) for key in own} | {"max_steps": config.max_steps or 0}
    if not on_cluster:
        train |= {"output_dir": config.output_dir, "checkpoint_dir": f"{config.checkpoint_dir}/train"}
        return json.dumps(
            {"train": train} | {key: getattr(config, key) for key in ("num_workers", "max_restarts", "trainer")}
        )
    keys = ["num_workers", "max_restarts", "num_retries", "trainer", "image", "namespace", "claim", "runtime"]
    keys += [
        "cpus_per_worker",
        "memory_mb_per_worker",
        "model_name",
        "service_account",
        "mount_path",
        "notice_grace_seconds",
    ]
    return json.dumps({"train": train} | {key: getattr(config, key) for key in keys})


def as_pod(task, config):
    """A pod's share of the cluster, the claim that pods share files by, and no rights beyond that."""
    task.set_cpu_request("250m").set_cpu_limit(str(config.cpus_per_worker))
    task.set_memory_request("512Mi").set_memory_limit(f"{config.memory_mb_per_worker}Mi")
    kubernetes.use_field_path_as_env(task, "RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.mount_pvc(task, pvc_name=config.claim, mount_path=config.mount_path)
    kubernetes.set_security_context(task, run_as_user=NON_ROOT, run_as_group=NON_ROOT, run_as_non_root=True)
    task.set_env_variable("HOME", "/tmp")
