"""cluster=kubernetes: the objects against their projects' own schemas, and runs on pods that are
namespaces of this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.client.exceptions import ApiException

from cookbook import UserError, pods, systems
from cookbook.job import Job
from cookbook.places import kubernetes as kubernetes_place
from cookbook.places.kubernetes import Kubernetes, in_pod
from cookbook.places.kubernetes import logs as pod_logs
from cookbook.places.kubernetes.api import Api
from cookbook.settings import compose_recipe
from cookbook.tools import diagnose
from cookbook.tools.chaos import inject
from tests.fake_kubernetes import FakeKubernetes
from tests.helpers import ROOT, Driver, latest, plan, run_cookbook
from tests.object_store import KEYS, Store, s3_server
from tests.test_contracts import SHORT, check_same_result, digests, in_the_middle_of_an_epoch, quick
from tests.test_hosts import SYSTEMS, Place, gateway, local_hosts, needs_hosts

ON_PODS = ["cluster=kubernetes", "cluster.image=registry.test/cookbook:1"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("pods") / "hosts", num_hosts=4)
    yield place.hosts
    place.hosts.down()


@pytest.fixture
def kubernetes(hosts, recipe_python, tmp_path):
    """Returns a cluster with a recipe's image."""
    started = []

    def start(recipe):
        started.append(FakeKubernetes(hosts, recipe_python(recipe), recipe, tmp_path / "cluster"))
        return started[-1].__enter__()

    yield start
    for cluster in started:
        cluster.__exit__()


@needs_hosts
@pytest.mark.parametrize("recipe", quick(SYSTEMS, "pytorch"))
def test_two_pods_come_to_the_same_result_as_one_machine(kubernetes, undisturbed, recipe, tmp_path):
    more = ["recipe.steps=[ingest,templates]"] if recipe == "spark" else []
    words = [f"recipe={recipe}", *SHORT[recipe], *more]
    here = undisturbed(*(words if not more else words[:-1]))[0]
    cluster = kubernetes(recipe)
    content, _, output = run_cookbook(*words, *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    assert content["status"] == "ok", output
    assert len({worker["host"] for worker in content["workers"]}) == 2, "each worker has a pod of its own"
    assert sorted(worker["rank"] for worker in content["workers"]) == [0, 1]
    check_same_result(recipe, content, here)
    assert cluster.objects == {} and cluster.pods == {}, "nothing is left on the cluster"


@needs_hosts
@pytest.mark.full
def test_pods_are_looked_at_while_they_run(kubernetes, hosts, tmp_path):
    cluster = kubernetes("pytorch")
    driver = Driver("recipe=pytorch", *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    (stopped,) = [
        pid
        for pid in Place.pids(SimpleNamespace(hosts=hosts), 2)
        if "main.py" in (words := local_hosts.words_of(pid)) and "torchrun" not in words and "podrun" not in words
    ]
    inject.stop(stopped)
    try:
        text = diagnose.diagnose(tmp_path / "out/pytorch/latest")
    finally:
        inject.go_on(stopped)
    behind = json.loads((tmp_path / "out/pytorch/latest/diagnosis.json").read_text())["behind"]
    assert len(behind) == 1, text
    (rank,) = behind
    assert f"rank {rank} (pid " in text and "holds the others up: it is stopped" in text
    assert f"rank {1 - rank} in the exchange of gradients at main.py:" in text, "by the signal"
    driver.interrupt()
    assert driver.end()[0] == 130


def test_what_looks_into_a_pod_goes_there_and_answers(tmp_path, monkeypatch):
    """Over the WebSocket that `kubectl exec` uses; here the "pod" is this machine."""
    spec = {"run_id": "none", "workers": [[socket.gethostname(), os.getpid()]], "everything": False, "seconds": 0.2}
    spec |= {"folder": str(tmp_path), "py_spy": "", "own_network": False}
    with FakeKubernetes(None, sys.executable, "pytorch", tmp_path / "cluster") as cluster:
        where = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"  # KUBECONFIG, as it was at the start
        monkeypatch.setattr(where, cluster.environment["KUBECONFIG"])
        monkeypatch.setattr(cluster, "into", lambda name: [])
        api = Api({"context": None, "namespace": "cookbook"})
        answer = in_pod(api, "worker-0", "one", spec)
        assert os.getpid() in [process["pid"] for process in answer["processes"]]
        assert answer["host"] == socket.gethostname()
        assert ("GET", "/api/v1/namespaces/cookbook/pods/worker-0/exec") in cluster.requests
        monkeypatch.setattr(cluster, "into", lambda name: ["sh", "-c", "echo python3: not found >&2; exit 127", "--"])
        assert in_pod(api, "worker-0", "one", spec) == "python3: not found"


def objects_of(recipe, *overrides):
    """The objects of a run, as YAML, from settings alone."""
    config, _ = compose_recipe(recipe, [*ON_PODS, *overrides])
    (process,) = plan(
        config, ROOT / "recipes" / recipe, Path("/HERE/bin/python"), Path(f"/runs/{recipe}/2026-01-31_12-00-00")
    )
    (text,) = process.files.values()
    return text


GOLDEN = ROOT / "tests/golden/kubernetes"
VARIANTS = {
    "torchrun": ("pytorch",),
    "tf_config": ("tensorflow",),
    "parameter_servers": ("tensorflow", "recipe.mode=parameter_server", "recipe.num_ps=2"),
    "horovodrun": ("horovod", "recipe.fusion_threshold_mb=32"),
    "rayrun": ("ray_train",),
    "dask_client": ("dask",),
    "spark_submit": ("spark",),
    "gpus": ("pytorch", "cluster.gpus_per_worker=1", "cluster.num_workers=4"),
    "no_data": ("ray_rllib", "cluster.service_account=trainer"),
    "bucket": ("pytorch", "cluster.storage=s3://ours/lab"),
    "queue": ("ray_train", "cluster.queue=team"),
    "own_data": ("petastorm", "cluster.data_dir=/srv/shared/mine"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_objects_are_as_they_were(name, monkeypatch):
    for variable, value in KEYS.items():
        monkeypatch.setenv(variable, value)
    text = objects_of(*VARIANTS[name])
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert "PRIVATE KEY" not in text, "secrets go to the cluster, and into no file"
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in text


def test_every_golden_file_is_looked_at():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(VARIANTS)


def schemas(tools, *paths):
    return subprocess.run(
        [tools, ROOT / "tests/kubernetes_schemas.py", *paths], capture_output=True, text=True, timeout=300
    )


def test_the_objects_against_their_projects_schemas(tools):
    paths = sorted(GOLDEN.glob("*.yaml"))
    done = schemas(tools, *paths)
    assert done.returncode == 0, done.stderr
    kinds = done.stdout.split()
    count = {kind: kinds.count(kind) for kind in kinds}
    assert count == {
        "ConfigMap": 12,
        "Job": 9,
        "TrainingRuntime": 7,
        "TrainJob": 7,
        "RayJob": 3,
        "DaskJob": 1,
        "SparkApplication": 1,
    }


@pytest.mark.full
def test_the_schemas_refuse_what_is_wrong(tools, tmp_path):
    broken = [
        ("torchrun", "numNodes: 2", "numberOfNodes: 2"),
        ("tf_config", "mlPolicy", "policy"),
        ("rayrun", "rayVersion", "version"),
        ("no_data", "num-cpus: '1'", "num-cpus: 1"),
        ("dask_client", "containerPort: 8786", "containerPort: a"),
        ("spark_submit", "coreLimit", "coresLimit"),
        ("horovodrun", "runAsNonRoot: true", "runAsNonRoot: 'true'"),
    ]
    for name, old, new in broken:
        text = (GOLDEN / f"{name}.yaml").read_text()
        assert old in text, name
        (tmp_path / f"{name}.yaml").write_text(text.replace(old, new))
    done = schemas(tools, *sorted(tmp_path.glob("*.yaml")))
    assert done.returncode == len(broken), done.stdout + done.stderr


def test_pods_have_no_rights():
    for path in GOLDEN.glob("*.yaml"):
        for made in yaml.safe_load_all(path.read_text()):
            for spec in pods_in(made):
                assert len(spec["containers"]) == 1
                assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
                for container in [*spec["containers"], *spec.get("initContainers", [])]:
                    assert container["securityContext"] == pods.LOCKED_DOWN
                    assert set(container["resources"]) == {"requests", "limits"}
                    assert container["image"] == "registry.test/cookbook:1"


def pods_in(value):
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for each in value.values():
            yield from pods_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from pods_in(each)


@pytest.mark.parametrize(
    ("recipe", "word", "message"),
    [
        ("horovod", "recipe.elastic=true", "cluster=kubernetes starts the workers by mpirun"),
        ("ray_train", "recipe.elastic=true", "was not tried with cluster=kubernetes, where KubeRay replaces lost pods"),
        ("pytorch", "recipe.mode=ft_ddp", "recipe.mode=ft_ddp was tried with cluster=local only"),
        ("dask", "cluster.queue=team", "cluster.queue=team: Kueue does not hold back what dask makes"),
        ("dask", "cluster.storage=s3://ours/lab", "with cluster=kubernetes, dask needs the claim of cluster.claim"),
        (
            "pytorch",
            ["cluster.storage=s3://ours/lab", "cluster.claim=mine"],
            "cluster.claim=mine: with cluster.storage=s3://ours/lab the pods have no claim",
        ),
        (
            "pytorch",
            ["data=image_folder", "data.path=/home/me/images"],
            "is read on this machine, not in the pods: copy the dataset to the claim 'cookbook-shared'",
        ),
        ("pytorch", ["data=image_folder", "data.path=s3://mine/images"], "data.path=s3://mine/images is read on this"),
    ],
)
def test_what_cannot_run_on_pods(recipe, word, message):
    with pytest.raises(UserError, match=re.escape(message)):
        objects_of(recipe, *([word] if isinstance(word, str) else word))


@needs_hosts
@pytest.mark.full
@pytest.mark.parametrize("mode", ["parameter_server", "parameter_server_fit"])
def test_parameter_servers_on_pods(kubernetes, tmp_path, mode):
    """In pods all processes have the same number: what a worker took is credited by its host, too."""
    words = ["recipe=tensorflow", f"recipe.mode={mode}", "recipe.num_epochs=2"]
    cluster = kubernetes("tensorflow")
    content, _, output = run_cookbook(*words, *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    assert content["status"] == "ok", output
    assert sorted(service["role"] for service in content["services"]) == ["chief", "ps"]
    members = [*content["workers"], *content["services"]]
    assert len({member["host"] for member in members}) == 4, "each has a pod of its own"
    assert all(worker["samples"] > 0 for worker in content["workers"])
    assert sum(worker["samples"] for worker in content["workers"]) == content["num_rows"]
    if mode == "parameter_server":
        assert content["num_rows"] == 2 * 1438
    assert cluster.objects == {} and cluster.pods == {}, "nothing is left on the cluster"


@pytest.mark.full
def test_a_killed_pod_fails_the_run_and_the_same_command_goes_on(kubernetes, undisturbed, tmp_path):
    words = ["recipe=pytorch", *SHORT["pytorch"]]
    expected = undisturbed(*words)[0]
    cluster = kubernetes("pytorch")
    driver = Driver(*words, *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    name = next(name for name in cluster.pods if name.endswith("node-0-1"))
    os.killpg(cluster.pods[name]["process"].pid, signal.SIGKILL)
    status, _ = driver.end()
    assert status == 1
    killed, folder = latest(tmp_path / "out", "pytorch")
    assert "rank 1 of 2 started but did not finish" in killed["reason"]
    assert "TrainJob" in (folder / "logs/kubernetes.log").read_text()
    assert cluster.objects == {} and cluster.pods == {}
    content, again, _ = run_cookbook(*words, *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment)
    assert again == folder
    assert digests(content) == digests(expected), "from the checkpoint on the claim"
    assert content["num_rows"] == expected["num_rows"]


@needs_hosts
@pytest.mark.full
@pytest.mark.parametrize("recipe", ["pytorch", "tensorflow"])
def test_pods_that_share_nothing_but_a_bucket(kubernetes, hosts, tools, undisturbed, recipe, tmp_path):
    """No claim. Each pod takes the dataset from the bucket; a killed one's run goes on from the checkpoint there."""
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected = undisturbed(*words)[0]
    cluster = kubernetes(recipe)
    cluster.claims = set()
    address = gateway(hosts)
    with s3_server(tools, tmp_path, address) as server:
        store = Store(server, address)
        store.make_bucket("ours")
        words += [*ON_PODS, "cluster.storage=s3://ours/lab", "cluster.queue=team"]
        cluster.queues["team"] = threading.Event()
        threading.Timer(5, cluster.queues["team"].set).start()
        options = {"output_root": tmp_path / "out", "environment": cluster.environment | store.environment}
        driver = Driver(*words, **options)
        driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
        name = next(name for name in cluster.pods if name.endswith("node-0-1"))
        os.killpg(cluster.pods[name]["process"].pid, signal.SIGKILL)
        status, output = driver.end()
        assert status == 1 and "waits in its queue" in output and "may start" in output
        folder = latest(tmp_path / "out", recipe)[1]
        content, again, output = run_cookbook(*words, **options)
        assert content["status"] == "ok" and again == folder, output
        assert digests(content) == digests(expected), "from the checkpoint in the bucket"
        dataset = Path(expected["dataset"]["folder"]).name
        taken = [line for line in store.asked if line.startswith("GET ") and f"{dataset}/manifest.json" in line]
        assert len(taken) == 4, "once for each pod of both tries"
        names = store.names("ours", "lab/runs/")
        assert names and all(name.startswith(content["storage"].removeprefix("s3://ours/") + "/") for name in names)
        store.close()
    assert not list((tmp_path / "cluster/shared").iterdir()), "nobody has seen a claim"
    assert cluster.objects == {} and cluster.pods == {}, "nothing is left on the cluster"
    for path in folder.rglob("*"):
        assert not path.is_file() or KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path


@pytest.mark.full
def test_an_interrupted_run_leaves_nothing_on_the_cluster(kubernetes, tmp_path):
    cluster = kubernetes("pytorch")
    driver = Driver(
        "recipe=pytorch", "recipe.num_epochs=6", *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment
    )
    driver.wait_until(lambda: any(event["event"] == "checkpoint" for event in driver.events()))
    assert len(cluster.objects) == 4
    driver.interrupt()
    status, output = driver.end()
    assert status == 130 and "interrupted by SIGINT" in output
    assert cluster.objects == {} and cluster.pods == {}
    # And where the driver could clean nothing up, the next try does.
    name = next(made["metadata"]["labels"] for made in cluster.made if made["kind"] == "TrainJob")
    cluster.objects["trainjobs", "left"] = {"kind": "TrainJob", "metadata": {"name": "left", "labels": name}}
    content, _, output = run_cookbook(
        "recipe=pytorch", "recipe.num_epochs=6", *ON_PODS, output_root=tmp_path / "out", environment=cluster.environment
    )
    assert "going on with this run" in output
    assert content["status"] == "ok" and cluster.objects == {}


def refused(cluster, tmp_path, *words, recipe="pytorch"):
    _, _, output = run_cookbook(
        f"recipe={recipe}", *ON_PODS, *words, output_root=tmp_path / "out", status=1, environment=cluster.environment
    )
    assert cluster.objects == {} and cluster.pods == {}
    return output


@pytest.mark.full
def test_what_is_missing_on_the_cluster(kubernetes, tmp_path):
    cluster = kubernetes("pytorch")
    assert "claim 'mine' in namespace 'cookbook' cannot be used" in refused(cluster, tmp_path, "cluster.claim=mine")
    assert "cluster.image is not set" in refused(cluster, tmp_path, "cluster.image=null")
    assert "no usable kubeconfig" in refused(cluster, tmp_path, "cluster.context=other")
    jobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/cookbook/trainjobs"
    cluster.refuse["POST", jobs] = 404, {"message": "the server could not find the requested resource"}
    assert "is TrainJob's operator installed?" in refused(cluster, tmp_path)
    cluster.refuse["POST", jobs] = 403, {"message": "exceeded quota: pods=0"}
    assert "was refused: exceeded quota: pods=0" in refused(cluster, tmp_path)
    del cluster.refuse["POST", jobs]
    cluster.waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image registry.test/cookbook:1"}
    assert "cannot start: ImagePullBackOff: Back-off pulling image registry.test/cookbook:1" in refused(
        cluster, tmp_path, "cluster.image_timeout_seconds=1"
    )


def test_a_cluster_that_does_not_answer(tmp_path):
    server = {
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "x", "user": {}}],
    }
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        **server,
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    _, _, output = run_cookbook(
        "recipe=pytorch",
        *ON_PODS,
        output_root=tmp_path / "out",
        status=1,
        environment={"KUBECONFIG": str(tmp_path / "kubeconfig")},
    )
    assert "http://127.0.0.1:9 does not answer" in output and "kubectl get nodes" in output


def test_what_pods_wait_for():
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    pods = [
        {"status": {"phase": "Pending", "conditions": [unscheduled]}},
        {"status": {"phase": "Running"}},
        {"status": {"phase": "Running"}},
    ]
    assert (
        pod_logs.summary_of(pods)
        == "pods: 1 Pending (0/3 nodes are available: 3 Insufficient nvidia.com/gpu.), 2 Running"
    )
    assert pod_logs.summary_of([]) == ""


@pytest.mark.parametrize(
    ("suspended", "waiting", "again"),
    [
        ([False, False], [False, False, False], False),
        ([True, True, False], [False, True, True, False], False),  # not the workers' fault
        ([True, False, True, False], [False, True, False, True, False], True),  # the machines were taken away
    ],
)
def test_a_job_that_kueue_holds_back_is_waited_for(monkeypatch, suspended, waiting, again):
    monkeypatch.setattr(kubernetes_place, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(kubernetes_place, "WATCH_SECONDS", 0.0)
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    answers = [{"spec": {"suspend": each}, "status": {}} for each in suspended[:-1]]
    answers.append({"spec": {"suspend": suspended[-1]}, "status": done})
    api = SimpleNamespace(path_of=lambda made: "x", ask=lambda method, path: answers.pop(0))
    logs = SimpleNamespace(look=lambda: None, drain=lambda: None)
    place, seen = object.__new__(Kubernetes), []
    place.again_since = 0.0
    wanted = {"kind": "TrainJob", "metadata": {"name": "x"}}
    said = place._follow(api, wanted, {"Complete": True}, logs, lambda waiting=False: seen.append(waiting), False)
    assert said == ("Complete", True)
    assert seen == waiting
    assert (place.again_since > 0) is again


def test_a_queue_that_is_not_there_is_refused():
    def ask(method, path):
        raise ApiException(status=status)

    place = object.__new__(Kubernetes)
    place.cluster = {"namespace": "cookbook", "queue": "team"}
    status = 404
    with pytest.raises(UserError, match="cluster.queue=team: namespace 'cookbook' has no LocalQueue of that name"):
        place._check_queue(SimpleNamespace(ask=ask))
    status = 403
    place._check_queue(SimpleNamespace(ask=ask))


def test_the_log_of_the_container_that_failed_is_followed():
    spec = {"containers": [{"name": "node"}], "initContainers": [{"name": "data"}]}

    def ended(status):
        return {"spec": spec, "status": {"initContainerStatuses": [{"name": "data", "state": status}]}}

    assert pod_logs.container_of({"spec": spec}) == "node"
    assert pod_logs.container_of(ended({"terminated": {"exitCode": 0}})) == "node"
    assert pod_logs.container_of(ended({"terminated": {"exitCode": 1}})) == "data"


# ---- podrun


def podrun_argv(tmp_path, *words):
    return [sys.executable, ROOT / "runrecord/podrun.py", "--output-dir", tmp_path, *words]


def podrun(tmp_path, *words, environment=None):
    argv = podrun_argv(tmp_path, *words)
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **(environment or {})}, timeout=300)


WRITE = """
import socket, sys
from runrecord import RunRecord
for rank, host in enumerate([socket.gethostname(), "elsewhere"]):
    with RunRecord(sys.argv[1], rank, 2, host=host) as run:
        run.progress(1, 1)
        run.table("sizes", [{"n": 1}])
print("said by the program")
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("words", "count"), [((), 1), (("--all",), 2)])
def test_podrun_says_what_is_recorded(tmp_path, words, count):
    done = podrun(
        tmp_path,
        *words,
        "--",
        sys.executable,
        "-c",
        WRITE,
        tmp_path,
        "0",
        environment={"PYTHONPATH": str(ROOT / "runrecord")},
    )
    assert done.returncode == 0, done.stderr
    assert "said by the program" in done.stdout
    told = [
        json.loads(line.removeprefix("podrun: ")) for line in done.stdout.splitlines() if line.startswith("podrun: ")
    ]
    records = [entry for entry in told if entry["path"].startswith("workers/")]
    assert len({entry["path"] for entry in records}) == count, "of this host, or of all"
    assert [entry["line"] for entry in records] == [0, 1, 2] * count
    assert [json.loads(entry["text"])["event"] for entry in records] == ["start", "progress", "end"] * count
    assert json.loads(told[-1]["text"])["rows"] == [{"n": 1}]


def test_podrun_ends_as_its_command_ends(tmp_path):
    assert podrun(tmp_path, "--", "sh", "-c", "exit 7").returncode == 7
    assert podrun(tmp_path, "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_podrun_tells_tensorflow_its_place(tmp_path):
    words = ["--tf-workers", "a-0.a:2222,a-1.a:2222", "--", "sh", "-c", "echo $TF_CONFIG"]
    done = podrun(tmp_path, *words, environment={"JOB_COMPLETION_INDEX": "1"})
    assert json.loads(done.stdout) == {
        "cluster": {"worker": ["a-0.a:2222", "a-1.a:2222"]},
        "task": {"type": "worker", "index": 1},
    }
    assert "JOB_COMPLETION_INDEX is not set" in podrun(tmp_path, *words).stderr
    words[2:2] = ["--tf-ps", "p-0.a:2222", "--tf-chief", "c-0.a:2222", "--tf-task", "ps"]
    done = podrun(tmp_path, *words, environment={"JOB_COMPLETION_INDEX": "0"})
    assert json.loads(done.stdout) == {
        "cluster": {"worker": ["a-0.a:2222", "a-1.a:2222"], "ps": ["p-0.a:2222"], "chief": ["c-0.a:2222"]},
        "task": {"type": "ps", "index": 0},
    }


def test_podrun_ends_what_serves_a_chief_when_it_has_ended_well(tmp_path):
    words = ["--tf-workers", "w:1", "--tf-ps", "p:1", "--tf-chief", "c:1", "--tf-task"]
    environment, ends_by_signal = {"JOB_COMPLETION_INDEX": "0"}, "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    (tmp_path / "chief-done.txt").write_text("")  # by an earlier try
    argv = podrun_argv(tmp_path, *words, "ps", "--", "sh", "-c", ends_by_signal)
    server = subprocess.Popen(argv, env={**os.environ, **environment})
    assert podrun(tmp_path, *words, "chief", "--", "sh", "-c", "exit 7", environment=environment).returncode == 7
    time.sleep(1.5)
    assert server.poll() is None, "the chief failed: its pod fails the job"
    assert podrun(tmp_path, *words, "chief", "--", "true", environment=environment).returncode == 0
    assert server.wait(20) == 0


def test_a_log_that_is_read_twice_counts_once(tmp_path):
    logs = pod_logs.Logs(None, "run", tmp_path, 120)
    told = [
        json.dumps({"path": "workers/rank0.jsonl", "line": number, "text": f'{{"n": {number}}}'}) for number in range(3)
    ]
    for text in [
        told[0],
        told[1],
        *told,
        told[1],
        '{"path": "workers/rank0.jsonl", "li',
        json.dumps({"path": "../x.jsonl", "line": 0, "text": "x"}),
    ]:
        logs._record(text)
    assert (tmp_path / "workers/rank0.jsonl").read_text() == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    assert not (tmp_path.parent / "x.jsonl").exists()
    assert logs.warnings() == ["2 lines of pods' logs look like a run's record and are none: left out"]
    logs._record(json.dumps({"path": "workers/rank0.jsonl", "line": 7, "text": '{"n": 7}'}))
    assert logs.warnings()[0] == "rank0.jsonl: 4 lines are missing: a pod's log was rotated"


@pytest.mark.parametrize(("on_claim", "files"), [(True, {"rank0": "ab"}), (False, {"rank0": "a", "rank0-2": "ab"})])
def test_a_record_of_the_next_try_has_a_file_of_its_own(tmp_path, on_claim, files):
    """Pods have the same names again. On a claim a process sees the old record, and gives its own another name."""
    for lines in ("a", "ab"):
        logs = pod_logs.Logs(None, "run", tmp_path, 120, on_claim)
        for number, text in enumerate(lines):
            logs._record(json.dumps({"path": "workers/rank0.jsonl", "line": number, "text": text}))
    found = {path.stem: path.read_text().replace("\n", "") for path in (tmp_path / "workers").iterdir()}
    assert found == files


def test_what_cannot_be_looked_for_on_the_cluster_ends_the_run_before_it_starts(tmp_path, monkeypatch):
    """Objects that an earlier try has left would work beside those of this one."""
    config, _ = compose_recipe("pytorch", ON_PODS)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with FakeKubernetes(None, sys.executable, "pytorch", tmp_path / "cluster") as cluster:
        where = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(where, cluster.environment["KUBECONFIG"])
        job = Job(config, ROOT / "recipes/pytorch", Path(sys.executable), tmp_path)
        place = Kubernetes(job, "run-id", systems.load(job.system))
        jobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/cookbook/trainjobs"
        cluster.refuse["GET", jobs] = 404, {"message": "the server could not find the requested resource"}
        place.prepare(None, SimpleNamespace(update=print))
        cluster.refuse["GET", jobs] = 403, {"message": "trainjobs is forbidden"}
        with pytest.raises(UserError, match="may have left cannot be looked for: .*/trainjobs: trainjobs is forbidden"):
            place.prepare(None, SimpleNamespace(update=print))


def test_a_notice_file_is_known_in_the_pods():
    made = list(yaml.safe_load_all(objects_of("pytorch", "cluster.notice_file=/srv/shared/notice")))
    (job,) = [one for one in made if one["kind"] == "TrainJob"]
    assert {"name": "NOTICE_FILE", "value": "/srv/shared/notice"} in job["spec"]["trainer"]["env"]
