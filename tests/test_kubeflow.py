"""What only the kubeflow recipe can do: through the driver, step by step, and against a cluster's APIs on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from cookbook import settings as cookbook_settings
from cookbook.settings import compose_recipe
from tests.fake_cluster import FakeCluster
from tests.helpers import CLEAN, ROOT, Driver, run_cookbook

RECIPE = ROOT / "recipes/kubeflow"
GOLDEN = ROOT / "tests/golden/kubeflow"
SHORT = [
    "recipe=kubeflow",
    "recipe.num_epochs=4",
    "recipe.learning_rates=[0.03, 0.1]",
    "recipe.trial_epochs=1",
    "recipe.min_accuracy=0.8",
]


def steps_of(folder):
    records = [json.loads(path.read_text()) for path in folder.glob("steps/*.json")]
    assert records
    return sorted(records, key=lambda record: record["began"])


WHOLE = ["recipe=kubeflow", "recipe.num_failures=2"]
FEWER_EPOCHS = ["recipe.num_epochs=4", "recipe.trial_epochs=1", "recipe.min_accuracy=0.8"]


@pytest.fixture(scope="module")
def whole(undisturbed):
    """The workflow with its four trials, and a step that fails twice: (run.json, folder, output)."""
    return undisturbed(*WHOLE, *FEWER_EPOCHS)


@pytest.mark.parametrize(
    ("words", "epochs", "accuracy", "score"),
    [(FEWER_EPOCHS, 4, 0.8, 0.3), pytest.param([], 12, 0.95, 0.75, marks=pytest.mark.full)],
)
def test_the_whole_workflow(undisturbed, words, epochs, accuracy, score):
    content, folder, _ = undisturbed(*WHOLE, *words)
    metrics = content["metrics"]
    assert metrics["served/accuracy"] >= accuracy
    assert metrics["served/accuracy"] == metrics["eval/accuracy"]
    assert [worker["samples"] for worker in content["workers"]] == [epochs * 719, epochs * 719]
    assert metrics["search/best_score"] >= score
    names = [record["step"] for record in steps_of(folder)]
    steps = "ingest validate validate validate trial trial trial trial choose train evaluate gate register deploy"
    assert names == [*steps.split(), "smoke_test", "stop_server"]


def test_steps_are_processes_and_trials_run_side_by_side(whole):
    records = steps_of(whole[1])
    assert len({record["pid"] for record in records}) == len(records)
    trials = [record for record in records if record["step"] == "trial"]
    assert any(a["began"] < b["began"] < a["ended"] for a in trials for b in trials if a is not b)
    scores = {record["found"]["learning_rate"]: record["found"]["score"] for record in trials}
    assert sorted(scores) == [0.01, 0.03, 0.1, 0.3]
    (chosen,) = (record["found"] for record in records if record["step"] == "choose")
    assert chosen == {"learning_rate": max(scores, key=scores.get), "score": max(scores.values())}


def test_a_step_that_fails_twice_is_tried_again(whole):
    tries = [record for record in steps_of(whole[1]) if record["step"] == "validate"]
    assert [record.get("error", "")[:22] for record in tries] == [
        "this is failure 1 of t",
        "this is failure 2 of t",
        "",
    ]


def test_the_report_has_the_graph_and_the_lineage(whole):
    _, folder, _ = whole
    picture = (folder / "pictures/pipeline.svg").read_text()
    for text in ("ingest", "smoke-test", "3 tries", "rate 0.03"):
        assert f"<!-- {text}" in picture or text in picture, text
    lineage = {row["artifact"]: row for row in json.loads((folder / "tables/lineage.json").read_text())["rows"]}
    assert lineage["rows"]["used by"] == "evaluate, smoke-test, train, trial, validate"
    assert lineage["model"]["used by"] == "evaluate, register"
    assert lineage["model"]["bytes"] > 50_000
    card = json.loads((folder / "registry/digits/1/card.json").read_text())
    assert card["accuracy"] == whole[0]["metrics"]["eval/accuracy"]


def test_the_server_is_gone_afterwards(whole):
    (deployed,) = (record["found"] for record in steps_of(whole[1]) if record["step"] == "deploy")
    port = int(deployed["url"].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
    assert list(whole[1].glob("kfp-*")) == [], "what kfp's runner leaves behind is removed"


@pytest.mark.full
def test_a_closed_gate_says_by_how_much_and_opened_the_pipeline_goes_on(tmp_path):
    content, folder, _ = run_cookbook(*SHORT, "recipe.min_accuracy=0.999", output_root=tmp_path, status=1)
    accuracy = content["metrics"]["eval/accuracy"]
    assert (
        f"the gate is closed: accuracy {accuracy:.4f} is {0.999 - accuracy:.4f} below min_accuracy=0.999"
        in content["reason"]
    )
    first = [record["step"] for record in steps_of(folder)]
    assert "register" not in first and "deploy" not in first
    assert not (folder / "registry").exists()
    began = time.time()
    content, again, output = run_cookbook(*SHORT, f"resume={folder}", output_root=tmp_path)
    assert again == folder
    new = [record["step"] for record in steps_of(folder) if record["began"] > began]
    assert new == ["gate", "register", "deploy", "smoke_test", "stop_server"], (
        "the steps before are taken from the cache"
    )
    assert content["metrics"]["pipeline/cached_steps"] == 6
    assert [worker["rank"] for worker in content["workers"]] == [0, 1], "the proof is that of the try that trained"
    assert "in an earlier try of this run" in output


@pytest.mark.full
def test_killed_in_a_late_step_the_model_server_goes_too(tmp_path):
    driver = Driver(*SHORT, output_root=tmp_path)
    root = tmp_path / "kubeflow/latest"
    driver.wait_until(lambda: json.loads((root / "server.json").read_text()))
    driver.kill_driver()
    driver.end()
    assert driver.no_process_left()


def test_tensorflow_trains_the_model_that_pytorch_serves(tmp_path):
    content, _, _ = run_cookbook(*SHORT, "recipe.trainer=tfjob", output_root=tmp_path)
    assert content["versions"]["tensorflow"].startswith("2.")
    assert content["metrics"]["served/accuracy"] >= 0.8
    assert len({worker["digest"] for worker in content["workers"]}) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("recipe.min_accuracy=high", "recipe.min_accuracy='high': expected a number"),
        ("recipe.min_accuracy=95", "min_accuracy=95: expected a share between 0 and 1"),
        ("recipe.learning_rates=[fast]", "recipe.learning_rates=['fast']: 'fast' is not a number"),
        ("recipe.learning_rates=[0.1,0.1]", "one of them is there twice"),
        ("recipe.trainer=mpijob", "trainer='mpijob' is unknown; expected one of: trainjob, pytorchjob, tfjob"),
        ("recipe.model_name=My_Model", "Kubernetes takes small letters, digits and dashes"),
        ("recipe.use_gpu=true", "use_gpu=true is for pods with GPUs"),
        ("cluster=kubernetes", "is an example: build this folder's Dockerfile"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, word, message):
    _, _, output = run_cookbook(*SHORT, word, output_root=tmp_path, status=1)
    assert message in output


@pytest.mark.full
def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        content, _, _ = run_cookbook(*SHORT, f"recipe.serve_port={port}", output_root=tmp_path, status=1)
    assert f"port {port} of 127.0.0.1 cannot be had: Address already in use" in content["reason"]


def test_no_cluster_is_an_error_that_says_what_to_do(tmp_path):
    words = ["cluster=kubernetes", "recipe.image=me/kubeflow-python:1", "cluster.kubeflow_host=http://127.0.0.1:9"]
    content, _, _ = run_cookbook(*SHORT, *words, output_root=tmp_path, status=1)
    assert "no Kubeflow Pipelines at kubeflow_host=http://127.0.0.1:9: ConnectionError" in content["reason"]
    assert "kubectl port-forward" in content["reason"]


def call(python, code, **environment):
    """Runs Python code beside the recipe's modules; returns the finished process."""
    own = {**CLEAN, "PYTHONPATH": str(RECIPE), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([python, "-c", code], env=own, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def rows(whole):
    (found,) = whole[1].glob("artifacts/*/ingest/rows")
    return found


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train_labels",
            lambda labels: np.where(labels == 3, 12, labels),
            "train: labels [12] are not among the 10 classes; train: no row of class [3]",
        ),
        ("test_images", lambda images: images + 100, "test: pixels up to 116, but the manifest says at most 16"),
        ("train_images", lambda images: images[:-1], "do not belong together"),
        ("test_images", lambda images: np.zeros_like(images), "test: 359 images of one colour"),
    ],
)
def test_rows_that_are_not_as_they_should_be(recipe_python, rows, tmp_path, name, change, message):
    broken = shutil.copytree(rows, tmp_path / "rows")
    np.save(broken / f"{name}.npy", change(np.load(broken / f"{name}.npy")))
    done = call(recipe_python("kubeflow"), f"import steps; steps.validate({str(broken)!r})")
    assert done.returncode == 1
    assert message in done.stderr


def test_test_rows_among_the_training_rows(recipe_python, rows, tmp_path):
    broken = shutil.copytree(rows, tmp_path / "rows")
    images = np.load(broken / "test_images.npy")
    images[:20] = np.load(broken / "train_images.npy")[:20]
    np.save(broken / "test_images.npy", images)
    done = call(recipe_python("kubeflow"), f"import steps; steps.validate({str(broken)!r})")
    assert "test rows are training rows, too" in done.stderr


class Late(BaseHTTPRequestHandler):
    def do_POST(self):
        time.sleep(3)

    def log_message(self, *words):
        return


def test_a_model_server_that_answers_late(recipe_python, whole, rows):
    (predictions,) = whole[1].glob("artifacts/*/evaluate/predictions")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    code = f"import steps; steps.smoke_test({url!r}, 'digits', {str(rows)!r}, {str(predictions)!r}, 0.9, 0.5)"
    done = call(recipe_python("kubeflow"), code)
    server.shutdown()
    assert "the model server answered later than after 0.5 s (serve_timeout_seconds)" in done.stderr


def test_a_served_model_that_is_not_the_evaluated_one(recipe_python, whole, rows, tmp_path):
    """The smoke test compares label by label: another model of the same accuracy would not do."""
    (predictions,) = whole[1].glob("artifacts/*/evaluate/predictions")
    labels = np.load(predictions)
    labels[:7] = (labels[:7] + 1) % 10
    np.save(tmp_path / "other.npy", labels)
    server_file = str(tmp_path / "server.json")
    code = f"""
import os, steps
os.environ["PIPELINE_PID"] = str(os.getpid())
found = steps.deploy({str(whole[1] / "registry/digits/1")!r}, "digits", 0, 60, {server_file!r})
steps.smoke_test(found["url"], "digits", {str(rows)!r}, {str(tmp_path / "other.npy")!r}, 0.9, 30)
"""
    done = call(recipe_python("kubeflow"), code)
    assert "the served model gives 7 of 359 rows another label than the evaluation did" in done.stderr
    pid = json.loads(Path(server_file).read_text())["pid"]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists(), "the server ends with the process that it was started for"


@pytest.mark.full
def test_on_a_cluster(recipe_python, whole, tmp_path):
    """The pipeline is compiled for a cluster and handed over; there its steps make the objects, and the
    objects do what they say."""
    data_dir = whole[0]["dataset"]["folder"]
    with FakeCluster(recipe_python("kubeflow"), RECIPE, tmp_path / "cluster") as cluster:
        words = [
            "cluster=kubernetes",
            f"cluster.kubeflow_host={cluster.url}",
            "recipe.image=me/kubeflow-python:1",
            f"recipe.mount_path={tmp_path}/claim",
            f"recipe.cluster_data_dir={data_dir}",
            "recipe.poll_seconds=0.5",
        ]
        content, folder, output = run_cookbook(
            *SHORT, *words, output_root=tmp_path / "out", environment=cluster.environment
        )
    assert content["status"] == "ok", output
    assert content["metrics"]["served/accuracy"] == content["metrics"]["eval/accuracy"] >= 0.8
    assert [(worker["rank"], worker["samples"]) for worker in content["workers"]] == [(0, 2876), (1, 2876)]
    assert len({worker["digest"] for worker in content["workers"]}) == 1
    assert {plural for plural, _ in cluster.objects} == {"trainjobs", "experiments", "inferenceservices"}
    (submitted,) = (
        body
        for method, path, body in cluster.requests
        if (method, path.partition("?")[0]) == ("POST", "/apis/v2beta1/runs")
    )
    assert submitted["service_account"] == "digits-pipeline"
    assert submitted["runtime_config"]["parameters"]["min_accuracy"] == 0.8
    assert "deploy-on-cluster" in (folder / "pictures/pipeline.svg").read_text()
    assert sorted(path.stem for path in folder.glob("manifests/*.yaml")) == sorted(
        path.stem for path in GOLDEN.glob("*.yaml") if path.stem != "pipeline"
    )


@pytest.mark.parametrize("trainer", ["pytorchjob", "tfjob"])
@pytest.mark.full
def test_the_other_jobs_train_too(recipe_python, rows, tmp_path, trainer):
    config = flat_config(
        mount_path=str(tmp_path), kubeflow_host="http://localhost:1", image="me/python:1", trainer=trainer
    )
    with FakeCluster(recipe_python("kubeflow"), RECIPE, tmp_path / "cluster") as cluster:
        code = f"""
import types, on_cluster, pipeline
config = types.SimpleNamespace(**{config!r})
on_cluster.train({str(rows)!r}, 0.1, 2, pipeline.settings_of_training(config, True), {str(tmp_path / "model")!r})
"""
        done = call(recipe_python("kubeflow"), code, RUN_ID="run-1", **cluster.environment)
    assert done.returncode == 0, done.stderr
    assert {plural for plural, _ in cluster.objects} == {f"{trainer}s"}
    told = [json.loads(line.split(" ", 2)[2]) for line in done.stdout.splitlines() if line.startswith("WORKER-RECORD ")]
    ends = [event for event in told if event["event"] == "end"]
    assert [event["samples"] for event in ends] == [2 * 719, 2 * 719]
    assert len({event["digest"] for event in ends}) == 1
    assert (tmp_path / "model/model.pt").stat().st_size > 50_000


@pytest.mark.full
def test_what_the_cluster_refuses_is_passed_on(recipe_python, rows, tmp_path):
    message = 'trainjobs.trainer.kubeflow.org is forbidden: User "system:serviceaccount:team:other" cannot create'
    refused = 403, {"message": message}
    config = flat_config(mount_path=str(tmp_path), kubeflow_host="http://localhost:1", image="me/python:1")
    with FakeCluster(recipe_python("kubeflow"), RECIPE, tmp_path / "cluster") as cluster:
        cluster.refuse["POST", "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs"] = refused
        code = f"""
import types, on_cluster, pipeline
config = types.SimpleNamespace(**{config!r})
on_cluster.train({str(rows)!r}, 0.1, 1, pipeline.settings_of_training(config, True), {str(tmp_path / "model")!r})
"""
        done = call(recipe_python("kubeflow"), code, RUN_ID="run-1", **cluster.environment)
    assert "TrainJob digits-run-1 was refused: trainjobs.trainer.kubeflow.org is forbidden" in done.stderr


@pytest.mark.full
def test_a_step_that_is_ended_takes_its_job_along(recipe_python, rows, tmp_path):
    """As Kubeflow ends a step's pod, when somebody terminates the run."""
    config = flat_config(mount_path=str(tmp_path), kubeflow_host="http://localhost:1", image="me/python:1")
    with FakeCluster(recipe_python("kubeflow"), RECIPE, tmp_path / "cluster") as cluster:
        code = f"""
import types, on_cluster, pipeline
config = types.SimpleNamespace(**{config!r})
on_cluster.train({str(rows)!r}, 0.1, 50, pipeline.settings_of_training(config, True), {str(tmp_path / "model")!r})
"""
        environment = {**CLEAN, "PYTHONPATH": str(RECIPE), "RUN_ID": "run-1", **cluster.environment}
        step = subprocess.Popen(
            [recipe_python("kubeflow"), "-c", code], env=environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while (
            not any(method == "GET" and "trainjobs" in path for method, path, _ in cluster.requests)
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        step.terminate()
        _, output = step.communicate(timeout=300)
        assert "the step was told to end" in output
        assert cluster.objects == {}


@pytest.mark.full
def test_a_job_that_fails_is_told(recipe_python, rows, tmp_path):
    config = flat_config(mount_path=str(tmp_path), kubeflow_host="http://localhost:1", image="me/python:1", width=9)
    with FakeCluster(recipe_python("kubeflow"), RECIPE, tmp_path / "cluster") as cluster:
        code = f"""
import types, on_cluster, pipeline
config = types.SimpleNamespace(**{config!r})
on_cluster.train({str(rows)!r}, 0.1, 1, pipeline.settings_of_training(config, True), {str(tmp_path / "model")!r})
"""
        done = call(recipe_python("kubeflow"), code, RUN_ID="run-1", **cluster.environment)
    assert "TrainJob digits-run-1 failed" in done.stderr


def flat_config(**changes):
    config, _ = compose_recipe("kubeflow")
    return cookbook_settings.worker_settings(config, "DATA", "RUN") | changes


@pytest.fixture(scope="module")
def objects(recipe_python, made_once):
    """name -> text of everything that the recipe could make on a cluster, and of the pipeline,
    at the default settings."""
    config = flat_config(
        kubeflow_host="http://localhost:8080", namespace="team", image="registry.example/kubeflow-recipe-python:0.1.0"
    )

    def make(folder):
        code = f"""
import types, manifests, pipeline
from kfp import compiler
config = types.SimpleNamespace(**{config!r})
manifests.write_all(config, {str(folder)!r})
compiler.Compiler().compile(pipeline.pipeline_of(config), {str(folder / "pipeline.yaml")!r})
"""
        done = call(recipe_python("kubeflow"), code)
        assert done.returncode == 0, done.stderr

    return {path.stem: path.read_text() for path in sorted(made_once("kubeflow-objects", make).glob("*.yaml"))}


def test_the_objects_are_those_that_were_reviewed(objects):
    """To take over a change that is meant: UPDATE_GOLDEN=1 make test ARGS="tests/test_kubeflow.py -k
    reviewed", and read the diff."""
    if os.environ.get("UPDATE_GOLDEN"):
        for name, text in objects.items():
            (GOLDEN / f"{name}.yaml").write_text(text)
    golden = {path.stem: path.read_text() for path in GOLDEN.glob("*.yaml")}
    assert sorted(objects) == sorted(golden)
    for name, text in objects.items():
        assert text == golden[name], name


def test_the_objects_are_valid(recipe_python, objects):
    """Kubernetes' own kinds, and the pods inside the others, against the schema of its API;
    the pipeline by kfp's own loader."""
    kinds = ("trainjob", "pytorchjob", "tfjob", "inference-service")
    train, pytorch, tensorflow, service = (yaml.safe_load(objects[kind])["spec"] for kind in kinds)
    jobs = train["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    scale = ("minReplicas", "maxReplicas")
    pods = {
        "train-job": jobs[0]["template"]["spec"]["template"]["spec"],
        "master": pytorch["pytorchReplicaSpecs"]["Master"]["template"]["spec"],
        "worker": pytorch["pytorchReplicaSpecs"]["Worker"]["template"]["spec"],
        "tf-worker": tensorflow["tfReplicaSpecs"]["Worker"]["template"]["spec"],
        "predictor": {key: value for key, value in service["predictor"].items() if key not in scale},
    }
    pods["train-job"]["containers"][0]["image"] = "the runtime's"
    trial = yaml.safe_load(objects["experiment"])["spec"]["trialTemplate"]["trialSpec"]
    core = [
        yaml.safe_load(objects[name]) for name in ("claim", "service-account", "role", "role-binding", "network-policy")
    ]
    core += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod} for name, pod in pods.items()]
    core += [{**trial, "metadata": {"name": "trial"}}]
    code = f"""
import json, kubernetes_validate
from kfp import components
for made in json.loads({json.dumps(json.dumps(core))}):
    kubernetes_validate.validate(made, "1.33", strict=True)
    print(made["kind"])
broken = json.loads({json.dumps(json.dumps(core[0]))})
broken["spec"]["accessMode"] = []
try:
    kubernetes_validate.validate(broken, "1.33", strict=True)
except kubernetes_validate.ValidationError:
    print("broken: refused")
loaded = components.load_component_from_text({objects["pipeline"]!r})
print(sorted(loaded.component_spec.inputs))
"""
    done = call(recipe_python("kubeflow"), code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    kinds = ["PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"]
    assert lines[:12] == [*kinds, *["Pod"] * 5, "Job", "broken: refused"]
    assert lines[12] == str(["data_dir", "learning_rates", "max_rows", "min_accuracy", "num_epochs", "trial_epochs"])
    for pod in pods.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for name in ("master", "worker", "tf-worker", "predictor"):
        assert set(pods[name]["containers"][0]["resources"]) == {"requests", "limits"}


def test_gpus_by_switch(recipe_python):
    config = flat_config(kubeflow_host="http://localhost:1", use_gpu=True)
    code = f"import types, json, manifests; print(json.dumps(manifests.resources(types.SimpleNamespace(**{config!r}))))"
    found = json.loads(call(recipe_python("kubeflow"), code).stdout)
    assert found["limits"]["nvidia.com/gpu"] == found["requests"]["nvidia.com/gpu"] == "1"


def test_the_notebook_sets_what_the_driver_would_fill_in():
    book = json.loads((ROOT / "notebooks/kubeflow.ipynb").read_text())
    code = "".join(line for cell in book["cells"] if cell["cell_type"] == "code" for line in cell["source"])
    settings = yaml.safe_load((ROOT / "conf/recipe/kubeflow.yaml").read_text())
    filled = [key for key, value in settings.items() if str(value).startswith("${")]
    assert len(filled) == 4
    assert [key for key in filled if f'"{key}": ' not in code] == []


@pytest.mark.full
def test_the_notebook_runs_and_holds_no_output(recipe_python, tmp_path):
    """Executed from top to bottom by a kernel of the recipe's environment, in a folder of its own."""
    path = ROOT / "notebooks/kubeflow.ipynb"
    notebook = json.loads(path.read_text())
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    code = f"""
import nbformat, nbclient
book = nbformat.read({str(path)!r}, 4)
resources = {{"metadata": {{"path": {str(path.parent)!r}}}}}
nbclient.NotebookClient(book, timeout=200, kernel_name="python3", resources=resources).execute()
nbformat.write(book, {str(tmp_path / "done.ipynb")!r})
"""
    python = recipe_python("kubeflow")
    done = call(
        python, code, COOKBOOK_NOTEBOOK_DIR=str(tmp_path), PATH=f"{Path(python).parent}{os.pathsep}{CLEAN['PATH']}"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = "\n".join(
        "".join(output.get("text", ""))
        for cell in json.loads((tmp_path / "done.ipynb").read_text())["cells"]
        for output in cell.get("outputs", [])
    )
    assert "the gate is closed" in text
    assert "steps that ran again: ['gate', 'register', 'deploy', 'smoke_test', 'stop_server']" in text


@pytest.mark.full
def test_a_killed_pipeline_goes_on_with_what_it_has(tmp_path):
    """SIGKILL for the client in the middle of the training: the steps before it are not run again."""
    driver = Driver(*SHORT, output_root=tmp_path)
    driver.wait_until(lambda: any(event["event"] == "checkpoint" for event in driver.events()))
    (client,) = [process for process in driver.relatives() if str(RECIPE / "main.py") in process.cmdline()]
    client.send_signal(signal.SIGKILL)
    status, output = driver.end()
    assert status == 1, output
    assert driver.no_process_left()
    began = time.time()
    content, folder, _ = run_cookbook(*SHORT, output_root=tmp_path)
    new = [record["step"] for record in steps_of(folder) if record["began"] > began]
    assert new[0] == "train"
    assert content["num_rows"] == 4 * 1438
