"""Several hosts: network namespaces of this machine, each with an address, a name and an sshd of its own;
recipes run across them."""

import contextlib
import getpass
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cookbook import UserError, inventory, systems
from cookbook.bootstrap import uv_environment
from cookbook.job import Job, Process
from cookbook.places import hosts
from cookbook.places.hosts import running
from cookbook.places.hosts.ssh import Ssh, push
from cookbook.prepare.tools import uv
from cookbook.settings import compose_recipe
from cookbook.tools import services
from cookbook.tools.chaos import inject
from tests.helpers import CLEAN, ROOT, Driver, latest, plan, run_cookbook
from tests.object_store import KEYS, Store, s3_server
from tests.requirements import needs, skip
from tests.test_contracts import DATA_PARALLEL, SHORT, check_same_result, digests, in_the_middle_of_an_epoch, quick

SCRIPT = ROOT / "infra/local/hosts.py"
spec = importlib.util.spec_from_file_location("infra_local_hosts", SCRIPT)
local_hosts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local_hosts)

MISSING = [
    what
    for what, there in (
        ("root", os.geteuid() == 0),
        ("ip (iproute2)", shutil.which("ip")),
        ("sshd (openssh-server)", local_hosts.SSHD),
        ("rsync", shutil.which("rsync")),
    )
    if not there
]
needs_hosts = needs("hosts", MISSING)
SYSTEMS = ["horovod", "pytorch", "tensorflow", "spark", "dask", "ray_train"]


def links_namespaces_and_mounts():
    """Their names; what other programs of this machine have or let go of meanwhile is theirs."""
    links = re.findall(r"^\d+: ([^:@\s]+)", local_hosts.sh("ip", "-o", "link"), re.MULTILINE)
    assert "lo" in links
    namespaces, mounts = local_hosts.sh("ip", "netns", "list"), Path("/proc/mounts").read_text()
    return {*links, *namespaces.splitlines(), *mounts.splitlines()}


class Place:
    """Hosts in a folder of a test's own."""

    def __init__(self, folder, **options):
        self.folder, self.options = Path(folder), options
        self.hosts = local_hosts.Hosts(folder, **options)
        self.hosts.up()

    @property
    def words(self):
        return ["cluster=hosts", f"cluster.inventory={self.folder}"]

    def pids(self, number):
        return [int(pid) for pid in local_hosts.sh("ip", "netns", "pids", self.hosts.namespace(number)).split()]

    def ssh_alone(self):
        """Nothing runs on the hosts but what `up` has started."""
        for _ in range(50):
            found = [local_hosts.words_of(pid).replace("\0", " ") for number in (1, 2) for pid in self.pids(number)]
            strange = [words for words in found if "sshd" not in words]
            if not strange and len(found) == 2:
                return True
            time.sleep(0.2)
        raise AssertionError(f"left on the hosts: {found}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("two") / "hosts")
    yield place
    place.hosts.down()


@needs_hosts
@pytest.mark.parametrize("recipe", quick(SYSTEMS, "horovod"))
def test_two_hosts_come_to_the_same_result_as_one(two, undisturbed, recipe, tmp_path):
    # Spark's other steps would only take longer.
    more = ["recipe.steps=[ingest,templates]"] if recipe == "spark" else []
    words = [f"recipe={recipe}", *SHORT[recipe], *more]
    here = undisturbed(*(words if not more else words[:-1]))[0]
    content, _, output = run_cookbook(*words, *two.words, output_root=tmp_path)
    assert content["status"] == "ok", output
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    assert sorted(worker["rank"] for worker in content["workers"]) == [0, 1]
    check_same_result(recipe, content, here)
    assert two.ssh_alone()
    assert list(Path("/tmp").glob(f"ray-{Path(content['folder']).name}*")) == []


@needs_hosts
@pytest.mark.full
def test_horovod_over_mpi(two, undisturbed, tmp_path):
    words = ["recipe=horovod", *SHORT["horovod"]]
    content, _, output = run_cookbook(*words, "recipe.controller=mpi", *two.words, output_root=tmp_path)
    assert content["status"] == "ok", output
    assert [worker["host"] for worker in content["workers"]] == ["host1", "host2"]
    assert digests(content) == digests(undisturbed(*words)[0])
    assert two.ssh_alone()


@needs_hosts
@pytest.mark.full
def test_parameter_servers_on_two_hosts(two, tmp_path):
    words = ["recipe=tensorflow", "recipe.mode=parameter_server", "recipe.num_ps=2", "recipe.num_epochs=2"]
    content, _, output = run_cookbook(*words, *two.words, output_root=tmp_path)
    assert content["status"] == "ok", output
    assert content["num_rows"] == 2 * 1438
    assert [worker["host"] for worker in content["workers"]] == ["host1", "host2"]
    assert all(worker["samples"] > 0 for worker in content["workers"])
    served = sorted((service["role"], service["host"]) for service in content["services"])
    assert served == [("chief", "host1"), ("ps", "host1"), ("ps", "host2")]
    assert two.ssh_alone()


@pytest.fixture
def service(two):
    """Starts a recipe's cluster that stays up on the two hosts."""
    started = []

    def start(recipe, *overrides):
        started.append(services.Service(two.folder, recipe, overrides))
        started[-1].up()
        return started[-1]

    yield start
    for one in started:
        one.down()
        assert list(one.folder.parent.glob(f"{one.recipe}*")) == []


@pytest.fixture
def no_ssh(monkeypatch, tmp_path):
    """Processes of `hosts` start on this machine; the function gives how often each has been started."""
    started = []

    def begin(ssh, host, process, cluster, run_id, log):
        started.append(process.name)
        script = process.argv[min(started.count(process.name), len(process.argv)) - 1]
        return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)

    def stop(ssh, cluster, run_dir, run_id, children, cleanup_paths):
        for child in children.values():
            child.kill()
            child.communicate()
        return {"b": "host b (10.0.0.2): is it up"}

    monkeypatch.setattr(running, "begin", begin)
    monkeypatch.setattr(running, "stop", stop)
    monkeypatch.setattr(running, "Ssh", lambda cluster: contextlib.nullcontext())
    monkeypatch.setattr(running, "AGAIN_SECONDS", 0.1)
    return started


# What a process does when it is started for the first, the second, the third time.
PROGRAM = Process("program", ["sleep 2"], host="10.0.0.1")
LOST_TWICE = ["sleep 0.2; exit 1", "exit 255", "sleep 60"]


def run_without_ssh(tmp_path, *processes, elastic=False):
    config = compose_recipe("ray_train", [f"recipe.elastic={str(elastic).lower()}"])[0]
    config["cluster"] |= {"hosts": [{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.2"}]}
    config["cluster"] |= {"shared": True, "use_services": False}
    place = hosts.SshHosts(Job(config, ROOT / "recipes/ray_train", Path("python"), tmp_path), "id", systems.load("ray"))
    return place, place.run(processes, lambda waiting=False: None)


def test_a_service_that_may_come_back_is_started_again(no_ssh, tmp_path):
    service = Process("ray-b", LOST_TWICE, host="10.0.0.2", service=True, comes_back=True)
    place, statuses = run_without_ssh(tmp_path, service, PROGRAM, elastic=True)
    assert statuses == {"program": 0}
    assert no_ssh.count("ray-b") == 3
    assert place.warnings == ["the clean-up of b was not possible: host b (10.0.0.2): is it up"]


def test_a_service_that_may_not_come_back_fails_the_run(no_ssh, tmp_path):
    service = Process("ray-b", LOST_TWICE, host="10.0.0.2", service=True)
    place, statuses = run_without_ssh(tmp_path, service, PROGRAM)
    assert statuses == {"ray-b": 1, "the clean-up of b": "host b (10.0.0.2): is it up"}
    assert no_ssh.count("ray-b") == 1
    assert place.warnings == []


def processes_of(place):
    return {*place.pids(1), *place.pids(2)}


@needs_hosts
@pytest.mark.parametrize("recipe", ["spark", "dask", "ray_train"])
@pytest.mark.full
def test_a_cluster_that_stays_up(two, service, undisturbed, recipe, tmp_path):
    words, more = [f"recipe={recipe}", *SHORT[recipe]], ["recipe.steps=[ingest]"] if recipe == "spark" else []
    here = undisturbed(*words)[0]
    running = service(recipe)
    before = processes_of(two)
    content, folder, output = run_cookbook(*words, *more, *two.words, output_root=tmp_path)
    assert "on the running cluster" in output
    (log,) = folder.glob("logs/*.log")  # the run has started its program, and nothing else
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    assert (content["num_rows"], content["account"]) == (here["num_rows"], here["account"])
    if recipe == "dask":
        assert {worker["pid"] for worker in content["workers"]} <= before, "Dask's workers are the cluster's own"
    access = json.loads(running.access_file.read_text())
    (hidden,) = (value for name, value in access.items() if name in ("secret", "key", "token"))
    hidden = max(hidden.split("\n"), key=len)
    assert len(hidden) >= 32
    for text in (
        output,
        log.read_text(),
        *((folder / name).read_text() for name in ("run.json", "config.yaml", "report.html")),
    ):
        assert hidden not in text
    assert before <= processes_of(two), "the cluster is still there"
    running.down()
    assert two.ssh_alone()
    assert list(Path("/tmp").glob("ray-service-*")) == []


def agents_of_this_machine():
    found = psutil.process_iter(["pid", "name", "status"])
    return {one.info["pid"] for one in found if one.info["name"] == "ssh-agent" and one.info["status"] != "zombie"}


@needs_hosts
@pytest.mark.full
def test_a_cluster_that_stays_up_loses_a_part_or_its_supervisor(two, service, tmp_path, capfd):
    running = service("dask")
    running.up()
    assert re.search(r"dask: tls://10\.77\.\d+\.1:\d+ is up\n$", capfd.readouterr().out), "twice is once"
    assert running.access_file.stat().st_mode & 0o077 == 0
    supervisor = inventory.supervisor(running.state())
    worker = next(pid for pid in two.pids(2) if "dask_worker" in local_hosts.words_of(pid))
    inject.kill(worker)
    supervisor.wait(30)
    text = (running.folder / "supervisor.log").read_text()
    assert "the dask cluster has ended: {'dask-worker-host2-0': 137}" in text
    assert running.status() == 1
    assert two.ssh_alone()
    agents = agents_of_this_machine()
    supervisor = inventory.supervisor(service("dask").state())
    assert len(agents_of_this_machine() - agents) == 1
    supervisor.kill()
    supervisor.wait(5)
    assert two.ssh_alone(), "the hosts have ended what nobody keeps up"
    deadline = time.monotonic() + 5
    while agents_of_this_machine() - agents and time.monotonic() < deadline:
        time.sleep(0.1)
    assert agents_of_this_machine() - agents == set(), "nor is its key left with anybody"
    _, _, output = run_cookbook("recipe=dask", *SHORT["dask"], *two.words, output_root=tmp_path, status=1)
    assert "the cluster that it describes is gone. `make services-up RECIPE=dask INVENTORY=...` starts it" in output
    assert list(running.folder.glob("service-*")) != []


@needs_hosts
@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("pytorch", [], "recipe pytorch has no cluster that could stay up: torchrun starts its workers itself"),
        ("..", [], "RECIPE=.. does not exist. There are: dask, horovod"),
        ("dask", ["cluster.num_workers=9"], "more than the 2 slots"),
    ],
)
def test_services_that_make_no_sense(two, recipe, words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        services.Service(two.folder, recipe, words)
    assert (two.folder / "inventory.yaml").exists()


def test_clusters_that_a_run_cannot_use():
    host = {"name": "one", "address": "10.0.0.1", "slots": 2, "interface": "eth0"}
    config, _ = compose_recipe(
        "spark", ["cluster=hosts", "cluster.inventory=x", "cluster.num_workers=2", "recipe.memory_mb=900"]
    )
    config["cluster"] |= {"hosts": [host], "ssh": {}, "shared": False}
    place = ROOT / "recipes/spark", Path("/HERE/bin/python"), Path("/run/spark/x")
    service = {"address": "spark://10.0.0.1:1", "secret": "0", "environment": "/HERE", "workers": 2, "memory_mb": 900}
    (process,) = plan(config, *place, service)
    assert process.argv[1:3] == ["--master", "spark://10.0.0.1:1"]
    for change, message in (
        ({"memory_mb": 800}, "has environment /HERE, workers 2, memory_mb 800; this run needs .* memory_mb 900"),
        ({"workers": 1}, "workers 1, .*; this run needs .* workers 2"),
        ({"environment": "/ELSEWHERE"}, "has environment /ELSEWHERE"),
    ):
        with pytest.raises(UserError, match=message):
            plan(config, *place, service | change)
    config["cluster"]["hosts"] = [host, {**host, "name": "two", "address": "10.0.0.2"}]
    with pytest.raises(UserError, match="the workers of spark read files that other workers wrote: .* `shared: true`"):
        plan(config, *place)
    config["cluster"] |= {"shared": True, "spark_master": "spark://head:7077"}
    with pytest.raises(UserError, match="cluster.spark_master=spark://head:7077 is for cluster=local"):
        plan(config, *place)


@needs_hosts
@pytest.mark.full
def test_hosts_that_share_no_files(tmp_path, undisturbed):
    """Checkout, environment and dataset are brought there; records and checkpoints are brought back while it runs."""
    words = ["recipe=pytorch", *SHORT["pytorch"]]
    expected = undisturbed(*words)[0]
    output_root, cache = tmp_path / "out", Path(expected["dataset"]["folder"]).parent
    output_root.mkdir()
    place = Place(tmp_path / "hosts", private=[str(ROOT), str(cache), str(output_root)])
    try:
        driver = Driver(*words, *place.words, output_root=output_root)
        driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()))
        assert driver.process.poll() is None, "the records come while the workers work"
        status, output = driver.end()
        assert status == 0, output
        content, folder = latest(output_root, "pytorch")
        assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
        assert digests(content) == digests(expected)
        assert [path.name for path in sorted(folder.glob("checkpoints/*"))] == [
            f"epoch-{epoch:05d}-step-00000000" for epoch in (3, 4)
        ]
        own = place.folder / f"host2{ROOT}/recipes/pytorch/main.py"
        assert own.read_bytes() == (ROOT / "recipes/pytorch/main.py").read_bytes(), "a copy of the host's own"
        assert not (place.folder / f"host1{folder}/scratch").exists()
    finally:
        place.hosts.down()


def gateway(hosts):
    """This machine's address in the hosts' network."""
    return re.search(rf"{hosts.bridge}\s+UP\s+(10\.77\.\d+\.254)", local_hosts.sh("ip", "-br", "-4", "addr"))[1]


@needs_hosts
@pytest.mark.parametrize("recipe", ["horovod", "pytorch", "tensorflow", "dask", "ray_train"])
@pytest.mark.full
def test_hosts_that_share_nothing_but_a_bucket(recipe, tools, tmp_path, undisturbed):
    """The dataset comes from the bucket, checkpoints and tables go there; keys are in no command line and no file."""
    words = [f"recipe={recipe}", *SHORT[recipe]]
    expected = undisturbed(*words)[0]
    output_root, cache = tmp_path / "out", Path(expected["dataset"]["folder"]).parent
    output_root.mkdir()
    place = Place(tmp_path / "hosts", private=[str(ROOT), str(cache), str(output_root)])
    bridge = gateway(place.hosts)
    try:
        with s3_server(tools, tmp_path, bridge) as server:
            store = Store(server, bridge)
            store.make_bucket("ours")
            more = [*place.words, "cluster.storage=s3://ours/lab"]
            content, folder, output = run_cookbook(
                *words, *more, output_root=output_root, environment=store.environment
            )
            assert content["status"] == "ok", output
            assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
            if recipe in DATA_PARALLEL:
                assert digests(content) == digests(expected)
            else:
                assert content["account"] == expected["account"]
            dataset = Path(content["dataset"]["folder"]).name
            taken = [line for line in store.asked if line.startswith("GET ") and f"{dataset}/manifest.json" in line]
            assert len(taken) == 2, "once for each host"
            names = store.names("ours", "lab/runs/")
            assert names, "checkpoints and tables"
            assert all(name.startswith(content["storage"].removeprefix("s3://ours/") + "/") for name in names)
            store.close()
        for path in [*folder.rglob("*"), *place.folder.rglob("runs*/**/*")]:
            assert not path.is_file() or KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in output
        for host in ("host1", "host2"):
            assert not (place.folder / f"{host}{folder}/scratch").exists()
            assert (place.folder / f"{host}{content['dataset']['folder']}/manifest.json").exists()
    finally:
        place.hosts.down()


@needs_hosts
@pytest.mark.parametrize("fault", ["link", "host"])
@pytest.mark.full
def test_a_host_is_lost_in_the_middle_and_the_same_command_goes_on(tmp_path, undisturbed, fault):
    words = ["recipe=pytorch", *SHORT["pytorch"]]
    place = Place(tmp_path / "hosts")
    words += [*place.words, "cluster.silence_seconds=5"]
    try:
        driver = Driver(*words, output_root=tmp_path / "out")
        driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
        if fault == "link":
            inject.cut_link(f"{place.hosts.bridge}-2")
        else:
            inject.kill_host(place.hosts.namespace(2))
        status, output = driver.end()
        assert status == 1, output
        content, folder = latest(tmp_path / "out", "pytorch")
        assert content["status"] == "failed"
        assert "host2" in content["reason"] or "started but did not finish" in content["reason"]
        if fault == "link":
            # Nobody could tell it; it has noticed the silence itself.
            for _ in range(100):
                left = [local_hosts.words_of(pid) for pid in place.pids(2)]
                if not any("recipes/pytorch" in words for words in left):
                    break
                time.sleep(0.2)
            assert not any("recipes/pytorch" in words for words in left), left
            inject.mend_link(f"{place.hosts.bridge}-2")
        else:
            place.hosts.up()
        content, again, _ = run_cookbook(*words, output_root=tmp_path / "out")
        assert again == folder
        assert digests(content) == digests(undisturbed("recipe=pytorch", *SHORT["pytorch"])[0])
    finally:
        place.hosts.down()


ELASTIC = {
    "horovod": ["recipe.elastic=true", "recipe.allow_unsafe_elastic=true"],
    "ray_train": ["recipe.elastic=true", "recipe.max_restarts=3", "recipe.checkpoint_every_steps=5"],
}


def loses_host2(place, words, tmp_path, then=lambda: None):
    """The result of a run whose second host is killed in the middle; `then` is called when one worker goes on alone."""
    driver = Driver(*words, *place.words, output_root=tmp_path / "out")
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    inject.kill_host(place.hosts.namespace(2))
    driver.wait_until(lambda: any(e.get("world_size") == 1 and e.get("role") != "driver" for e in driver.events()))
    then()
    status, output = driver.end(1800)
    assert status == 0, output
    content, _ = latest(tmp_path / "out", words[0].removeprefix("recipe="))
    assert content["metrics"]["eval/accuracy"] >= 0.9
    return content


@needs_hosts
@pytest.mark.parametrize("recipe", ELASTIC)
@pytest.mark.full
def test_elastic_training_goes_on_without_a_lost_host(recipe, tmp_path):
    place = Place(tmp_path / "hosts")
    try:
        content = loses_host2(place, [f"recipe={recipe}", *ELASTIC[recipe], "recipe.num_epochs=8"], tmp_path)
        assert content["worlds"] == [2, 1]
        assert [worker["host"] for worker in content["workers"]] == ["host1"]
        assert content["num_rows"] == 8 * 1438
        (warning,) = content["warnings"]
        assert warning.startswith("the clean-up of host2 was not possible: host host2 (10.77.")
    finally:
        place.hosts.down()


@needs_hosts
@pytest.mark.parametrize(("recipe", "epochs"), [("horovod", 30), ("ray_train", 50)])
@pytest.mark.full
def test_elastic_training_takes_in_a_host_that_is_back(recipe, epochs, tmp_path):
    place = Place(tmp_path / "hosts")
    try:
        address = re.search(r"name: host2, address: ([0-9.]+)", (place.folder / "inventory.yaml").read_text())[1]
        words = [f"recipe={recipe}", *ELASTIC[recipe], f"recipe.num_epochs={epochs}", "recipe.width=64"]
        content = loses_host2(place, words, tmp_path, then=lambda: place.hosts.start_sshd(2, address, 22))
        assert content["worlds"] == [2, 1, 2]
        assert [worker["host"] for worker in content["workers"]] == ["host1", "host2"]
        assert content["num_rows"] == epochs * 1438
        assert content["warnings"] == []
        assert len(digests(content)) == 1
        assert place.ssh_alone()
    finally:
        place.hosts.down()


@needs_hosts
def test_ctrl_c_leaves_nothing_on_any_host(two, tmp_path):
    driver = Driver("recipe=pytorch", *two.words, output_root=tmp_path)
    driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()))
    driver.interrupt()
    assert driver.end()[0] == 130
    assert latest(tmp_path, "pytorch")[0]["reason"].startswith("interrupted by SIGINT")
    assert two.ssh_alone()


def changed(two, tmp_path, old, new, name="inventory.yaml"):
    text = (two.folder / "inventory.yaml").read_text()
    assert re.search(old, text)
    (tmp_path / name).write_text(re.sub(old, new, text))
    return f"cluster.inventory={tmp_path / name}"


def fails(tmp_path, *words):
    content, _, output = run_cookbook("recipe=pytorch", "cluster=hosts", *words, output_root=tmp_path / "out", status=1)
    assert content["status"] == "failed", output
    return content["reason"]


@needs_hosts
def test_a_host_that_is_not_there(two, tmp_path):
    word = changed(two, tmp_path, r"(10\.77\.\d+)\.2", r"\1.99")
    reason = fails(tmp_path, word, "cluster.connect_timeout_seconds=3")
    assert re.match(r"host host2 \(10\.77\.\d+\.99\): ", reason)
    assert "is it up" in reason


@needs_hosts
def test_a_wrong_key(two, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    reason = fails(tmp_path, changed(two, tmp_path, r"key: \S+/key,", f"key: {tmp_path}/other,"))
    assert "the key is not one that it takes: is ssh.key the right one, and ssh.user?" in reason


@needs_hosts
def test_a_host_with_another_host_key(two, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    other = (tmp_path / "other.pub").read_text().split()[1]
    known = (two.folder / "known_hosts").read_text()
    (tmp_path / "known").write_text(re.sub(r"(ssh-ed25519) \S+", rf"\1 {other}", known))
    assert "it shows another host key than known_hosts has" in fails(
        tmp_path, changed(two, tmp_path, r"known_hosts: \S+}", f"known_hosts: {tmp_path}/known}}")
    )


@needs_hosts
@pytest.mark.full
def test_a_host_with_another_version_of_the_recipe(tmp_path):
    place = Place(tmp_path / "hosts", private=[str(ROOT / "recipes")])
    try:
        # What host1 and host2 see of the recipes is empty: another version than here.
        reason = fails(tmp_path, changed(place, tmp_path, "shared: false", "shared: true"))
        assert "has another version of recipes/pytorch or runrecord than this machine" in reason
    finally:
        place.hosts.down()


@needs_hosts
def test_a_host_whose_disk_is_full(tmp_path):
    (tmp_path / "out").mkdir()
    place = Place(tmp_path / "hosts", private=[f"{tmp_path}/out=64m"])
    try:
        reason = fails(tmp_path, f"cluster.inventory={place.folder}")
        assert re.search(
            r"host host\d \(10\.77\.\d+\.\d\) has 6\d MiB free where the run writes, expected at least 500", reason
        )
    finally:
        place.hosts.down()


@needs_hosts
def test_down_leaves_nothing_and_up_twice_is_once(tmp_path, capsys):
    before = links_namespaces_and_mounts()
    place = Place(tmp_path / "hosts", num_hosts=3, slots=2)
    first = place.pids(3)
    assert inventory.load(place.folder)["hosts"][2]["name"] == "host3"
    capsys.readouterr()
    place.hosts.up()
    assert capsys.readouterr().out.endswith("3 hosts are up\n")
    assert first[0] in place.pids(3)
    (place.folder / "inventory.yaml").unlink()  # as if it had been interrupted just before
    assert place.hosts.status() == 1
    place.hosts.down()
    assert links_namespaces_and_mounts() - before == set()
    assert list(place.folder.iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in first)


@pytest.mark.full
def test_without_root_hosts_are_processes_on_loopback(tmp_path):
    if local_hosts.SSHD is None:
        skip("sshd", "sshd is missing: apt-get install openssh-server")
    hosts = local_hosts.Hosts(tmp_path / "hosts", as_root=False)
    hosts.up()
    try:
        found = inventory.load(tmp_path / "hosts")
        assert [host["address"] for host in found["hosts"]] == ["127.0.0.1", "127.0.0.2"]
        with Ssh({**found, "inventory": "", "connect_timeout_seconds": 5}) as ssh:
            about = ssh.ask(
                found["hosts"][1],
                {"address": "127.0.0.2", "paths": ["/tmp"], "files": [], "interpreter": "/none"},
                "look",
            )
        assert about["interface"] == "lo"
        assert about["interpreter"] is False
        words = ["cluster=hosts", f"cluster.inventory={tmp_path}/hosts", "recipe.num_epochs=2"]
        content, _, _ = run_cookbook("recipe=pytorch", *words, output_root=tmp_path / "out")
        assert [worker["rank"] for worker in content["workers"]] == [0, 1]
    finally:
        hosts.down()
    assert list((tmp_path / "hosts").iterdir()) == []


GOOD = {"hosts": [{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.2", "slots": 3}]}


def load(tmp_path, content):
    (tmp_path / "inventory.yaml").write_text(json.dumps(content))
    return inventory.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hosts:\n- {name: a, address: c}\nhosts:\n- {name: b, address: d}\n", "line 1: 'hosts' stands there twice"),
        (b"hosts:\n- {name: a, name: b, address: c}\n", "line 2: 'name' stands there twice"),
        ("hosts:\n- {name: a, address: c}\n".encode("utf-16"), "is no UTF-8: save it in that encoding"),
        (b'hosts:\n- {name: a, address: "2001:db8::1"}\n', "expected an IPv4 address, or a name"),
    ],
)
def test_an_inventory_that_says_something_twice_or_in_another_way(tmp_path, content, said):
    (tmp_path / "inventory.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        inventory.load(tmp_path)


def test_the_agent_s_socket_has_a_path_that_is_short_enough(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Ssh({"ssh": {}, "inventory": "", "connect_timeout_seconds": 5}) as ssh:
        assert len(str(ssh.folder / "agent")) < 60 and ssh.folder.stat().st_mode & 0o077 == 0
    assert not ssh.folder.exists()


def test_a_key_without_a_value_is_as_good_as_none(tmp_path):
    (tmp_path / "inventory.yaml").write_text("hosts:\n- {name: a, address: c, slots: , gpus: }\nshared:\nssh:\n")
    found = inventory.load(tmp_path)
    assert found["hosts"] == [{"name": "a", "address": "c", "slots": 1, "gpus": 0}]
    assert (found["shared"], found["ssh"]) == (False, {})


def test_a_host_whose_login_files_print_something(tmp_path, monkeypatch):
    """Lines of .bashrc come before the answer; rsync cannot work then."""
    for name in ("ssh", "rsync"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Welcome to node1'\nfor last; do :; done\nexec sh -c \"$last\"\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = {"name": "a", "address": "127.0.0.1", "slots": 1, "gpus": 0}
    spec = {"address": "127.0.0.1", "paths": ["/tmp"], "files": [], "interpreter": sys.executable}
    with Ssh({"ssh": {}, "inventory": "", "connect_timeout_seconds": 5}) as ssh:
        assert ssh.ask(host, spec, "look")["interpreter"] is True
        assert ssh.ask(host, None, "sweep", "none", "1") == {}
        assert not re.search(r"[\n!]", ssh.program(host, "look")[-1]), "csh takes no line breaks within quotes"
        said = "echo 'protocol version mismatch -- is your shell clean?' >&2; exit 2"
        (tmp_path / "rsync").write_text(f"#!/bin/sh\n{said}\n")
        with pytest.raises(UserError, match="could not be brought up to date: a file such as .bashrc prints something"):
            push(ssh, host, ["/tmp/x"])


def test_an_inventory(tmp_path):
    found = load(tmp_path, GOOD)
    assert [host["slots"] for host in found["hosts"]] == [1, 3]
    assert found["shared"] is False
    cluster = {"kind": "hosts", "inventory": str(tmp_path), "num_workers": None}
    assert inventory.with_hosts(cluster)["num_workers"] == 4
    taken = inventory.with_hosts({**cluster, "num_workers": 3})["hosts"]
    assert [(host["name"], host["slots"]) for host in taken] == [("a", 1), ("b", 2)]
    with pytest.raises(UserError, match="num_workers=5 is more than the 4 slots"):
        inventory.with_hosts({**cluster, "num_workers": 5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hosts": []}, "expected `hosts:`, a list of at least one host"),
        (
            {"hosts": [GOOD["hosts"][0], {"name": "c", "address": "10.0.0.1"}]},
            "the address 10.0.0.1 stands there twice",
        ),
        ({"hosts": [{"name": "a", "address": "10.0.0.999"}]}, "address 10.0.0.999 of a is no IP address"),
        ({"hosts": [{"name": "a", "address": "-oProxyCommand=x"}]}, "expected letters, digits, dots and dashes"),
        ({"hosts": [{"name": "a", "address": "10.0.0.1", "slots": 0}]}, "slots=0: expected at least 1 worker"),
        (
            {"hosts": [{"name": "a", "address": "10.0.0.1", "slot": 2}]},
            "'slot' is unknown; there are: name, address, slots, gpus",
        ),
        ({"ssh": {"port": "22"}}, "port='22': expected int"),
        ({"hosts": [{"address": "10.0.0.1"}]}, "a host without name"),
    ],
)
def test_inventories_that_make_no_sense(tmp_path, change, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, GOOD | change)
    assert message in str(error.value)


def test_the_nodes_of_a_skypilot_task_are_hosts(monkeypatch):
    """The variables are those of SkyPilot's documentation: an address a line, the head's first."""
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.4\n10.0.0.5")
    monkeypatch.setenv("SKYPILOT_NUM_GPUS_PER_NODE", "4")
    config, _ = compose_recipe("pytorch", ["cluster=skypilot"])
    cluster = inventory.with_hosts(config["cluster"])
    assert [(host["address"], host["slots"]) for host in cluster["hosts"]] == [("10.0.0.4", 4), ("10.0.0.5", 4)]
    assert (cluster["kind"], cluster["num_workers"], cluster["shared"]) == ("hosts", 8, False)
    assert cluster["ssh"] == {"user": getpass.getuser(), "key": str(Path("~/.ssh/sky-cluster-key").expanduser())}
    monkeypatch.setenv("SKYPILOT_NUM_GPUS_PER_NODE", "0")
    assert [host["slots"] for host in inventory.load("skypilot")["hosts"]] == [1, 1]
    monkeypatch.delenv("SKYPILOT_NODE_IPS")
    with pytest.raises(UserError, match="SKYPILOT_NODE_IPS is not set; .* sky launch -c mine infra/skypilot/task.yaml"):
        inventory.with_hosts(config["cluster"])


@pytest.mark.full
def test_the_skypilot_task_against_skypilot_s_own_schema(tools, tmp_path):
    version = re.search(r"schema \(([0-9.]+)\)", (ROOT / "infra/skypilot/README.md").read_text())[1]
    install = [uv(), "pip", "install", "-q", "--no-deps", "--target", tmp_path / "sky", f"skypilot=={version}"]
    subprocess.run(install, check=True, env={**CLEAN, **uv_environment()})

    def wrong(path):
        words = [tools, ROOT / "tests/skypilot_schema.py", tmp_path / "sky", path]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    task = ROOT / "infra/skypilot/task.yaml"
    assert wrong(task) == ""
    (tmp_path / "task.yaml").write_text(task.read_text().replace("num_nodes: 2", "num_nodes: two"))
    assert "num_nodes: 'two' is not of type 'integer'" in wrong(tmp_path / "task.yaml")


def test_no_inventory(tmp_path):
    _, _, output = run_cookbook(
        "recipe=pytorch", "cluster=hosts", f"cluster.inventory={tmp_path}/none", output_root=tmp_path, status=1
    )
    assert "No such file or directory" in output
    assert "conf/cluster/hosts.yaml" in output
    with pytest.raises(UserError, match=r"cluster.inventory is not set: .* cluster.inventory=hosts.yaml"):
        inventory.with_hosts(compose_recipe("pytorch", ["cluster=hosts"])[0]["cluster"])


def test_a_host_without_python_is_named_as_such():
    with Ssh({"ssh": {}}) as ssh:
        why = ssh._why("bash: line 1: python3: command not found", {})
    assert why.startswith("there is no python3 on it")
    assert not ssh.folder.exists()
