"""cluster=slurm with the real Slurm: a controller on this machine, a slurmd on each of two
hosts made of network namespaces."""

import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cookbook import ROOT, UserError
from cookbook.job import Job, Process
from cookbook.places import slurm as places_slurm
from cookbook.places.slurm import GOES_ON_LATER, allocation
from cookbook.settings import compose_recipe
from cookbook.tools import diagnose
from cookbook.tools.chaos import inject
from runrecord import read_records
from tests.helpers import CLEAN, Driver, free_port, latest, plan, run_cookbook, wait_for
from tests.requirements import needs
from tests.test_contracts import SHORT, check_same_result, digests, in_the_middle_of_an_epoch, quick, step_reached
from tests.test_hosts import MISSING, Place, local_hosts

GOLDEN = ROOT / "tests/golden/slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NEEDED = MISSING + [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
needs_slurm = needs("slurm", NEEDED)  # apt-get install slurm-wlm munge


class Slurm:
    """munged and slurmctld here, slurmd on host1 and host2."""

    def __init__(self, folder):
        self.folder, self.processes = Path(folder), []

    def begin(self):
        self.place = Place(self.folder / "hosts")
        subnet = (self.place.folder / "hosts").read_text().split("10.77.")[1].split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        sock = self.folder / "munge.sock"
        self.start(
            [
                "munged",
                "--foreground",
                "--force",
                f"--socket={sock}",
                *(f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "pid", "log", "seed")),
            ],
        )
        ports = [free_port() for _ in range(2)]
        settings = f"""\
            ClusterName=test
            SlurmctldHost={socket.gethostname()}(10.77.{subnet}.254)
            SlurmctldPort={ports[0]}
            SlurmdPort={ports[1]}
            SlurmUser=root
            SlurmdUser=root
            AuthType=auth/munge
            AuthInfo=socket={sock}
            CredType=cred/munge
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            MpiDefault=none
            ReturnToService=2
            JobRequeue=1
            SchedulerParameters=requeue_delay=1
            StateSaveLocation={self.folder}/state
            SlurmdSpoolDir={self.folder}/spool/%n
            SlurmctldPidFile={self.folder}/ctld.pid
            SlurmdPidFile={self.folder}/%n.pid
            SlurmctldLogFile={self.folder}/ctld.log
            SlurmdLogFile={self.folder}/%n.log
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core
            KillWait=5
            NodeName=host1 NodeAddr=10.77.{subnet}.1 CPUs=2
            NodeName=host2 NodeAddr=10.77.{subnet}.2 CPUs=2
            PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
        """
        (self.folder / "slurm.conf").write_text(inspect.cleandoc(settings) + "\n")
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        wait_for(sock.exists)
        self.start(["slurmctld", "-D"])
        for number in (1, 2):
            # Not `ip netns exec`: that mounts a fresh /sys, and slurmd wants to find its cgroups there.
            network = f"--net=/run/netns/{self.place.hosts.namespace(number)}"
            enter = ["nsenter", network, "unshare", "--uts", "--mount", "sh", "-ec"]
            (self.folder / f"spool/host{number}").mkdir()
            own = (
                f"hostname host{number}; mount --bind {self.place.folder}/hosts /etc/hosts; "
                f"mount --bind {self.place.folder}/resolv.conf /etc/resolv.conf; exec slurmd -D -N host{number}"
            )
            self.start([*enter, own])
        wait_for(lambda: self.ask("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"])

    def start(self, argv):
        environment = {**os.environ, **getattr(self, "environment", {}), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        with open(self.folder / f"{argv[0]}.out", "a") as log:
            self.processes.append(
                subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def ask(self, *words):
        return subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True).stdout

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        self.place.hosts.down()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        made.begin()
        yield made
    finally:
        made.stop()


@needs_slurm
def test_pytorch_on_two_nodes(slurm, undisturbed, tmp_path):
    words = ["recipe=pytorch", *SHORT["pytorch"]]
    content, _, output = run_cookbook(*words, "cluster=slurm", output_root=tmp_path, environment=slurm.environment)
    assert content["status"] == "ok", output
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    assert digests(content) == digests(undisturbed(*words)[0])
    assert slurm.ask("squeue", "-h") == ""


@needs_slurm
@pytest.mark.parametrize("recipe", quick(["dask", "ray_train", "spark", "tensorflow"], "tensorflow"))
def test_a_cluster_of_the_system_s_own_on_the_nodes_of_a_job(slurm, undisturbed, recipe, tmp_path):
    """srun starts what the system starts on hosts: scheduler or master, workers, and the client."""
    words = [f"recipe={recipe}", *SHORT[recipe]]
    more = ["recipe.steps=[ingest,templates]"] if recipe == "spark" else []
    here = undisturbed(*words)[0]
    content, folder, output = run_cookbook(
        *words, *more, "cluster=slurm", output_root=tmp_path, environment=slurm.environment
    )
    assert content["status"] == "ok", output
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    check_same_result(recipe, content, here)
    assert slurm.ask("squeue", "-h") == ""
    assert not (folder / "scratch/secrets").exists(), "what the job had to know of secrets is gone"
    assert list(Path("/tmp").glob(f"ray-{Path(content['folder']).name}*")) == []


@pytest.fixture
def keys(slurm, tmp_path):
    """An agent with the key that the nodes' ssh servers take, as people have one when they submit."""
    environment = {**slurm.environment, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", environment["SSH_AUTH_SOCK"]], stdout=subprocess.PIPE, text=True)
    assert "SSH_AUTH_SOCK" in agent.stdout.readline(), "it listens"
    subprocess.run(["ssh-add", "-q", slurm.place.folder / "key"], env={**os.environ, **environment}, check=True)
    yield environment
    agent.terminate()
    agent.wait()


@needs_slurm
@pytest.mark.parametrize(("num_nodes", "controller"), [(2, "gloo"), (1, "mpi")])
@pytest.mark.full
def test_horovod_with_two_workers(slurm, keys, undisturbed, tmp_path, num_nodes, controller):
    words = ["recipe=horovod", *SHORT["horovod"]]
    places = ["cluster=slurm", f"cluster.num_nodes={num_nodes}", f"recipe.controller={controller}"]
    content, _, output = run_cookbook(*words, *places, output_root=tmp_path / "out", environment=keys)
    assert content["status"] == "ok", output
    assert [worker["rank"] for worker in content["workers"]] == [0, 1]
    assert len({worker["host"] for worker in content["workers"]} & {"host1", "host2"}) == num_nodes
    assert digests(content) == digests(undisturbed(*words)[0])
    assert slurm.ask("squeue", "-h") == ""


@needs_slurm
@pytest.mark.full
@pytest.mark.parametrize("recipe", ["pytorch", "ray_train", "tensorflow"])
def test_a_job_that_is_requeued_goes_on_from_its_checkpoint(slurm, undisturbed, recipe, tmp_path, monkeypatch):
    words = [f"recipe={recipe}", *SHORT[recipe]]
    driver = Driver(*words, "cluster=slurm", output_root=tmp_path, environment=slurm.environment)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    (number,) = slurm.ask("squeue", "-h", "-o", "%i").split()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    inject.requeue(number)
    # Slurm lets a job rest for two minutes then.
    wait_for(lambda: slurm.ask("squeue", "-h", "-o", "%T").strip() == "PENDING")
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    status, output = driver.end()
    assert status == 0, output
    content, folder = latest(tmp_path, recipe)
    assert digests(content) == digests(undisturbed(*words)[0])
    assert len(content["lost_workers"]) == 2, "those of before the requeue"
    restored = [(e["epoch"], e["step"]) for record in read_records(folder) for e in record if e["event"] == "restore"]
    assert max(restored) > (0, 0), "from its checkpoint"


@needs_slurm
@pytest.mark.full
def test_a_job_whose_time_is_nearly_over_saves_and_goes_back_into_the_queue(slurm, undisturbed, tmp_path):
    """Slurm's own signal for that, sent earlier: to the script alone, as --signal=B: says."""
    words = ["recipe=pytorch", *SHORT["pytorch"]]
    places = ["cluster=slurm", "cluster.notice_grace_seconds=600"]
    driver = Driver(*words, *places, output_root=tmp_path, environment=slurm.environment)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    (number,) = slurm.ask("squeue", "-h", "-o", "%i").split()
    slurm.ask("scancel", "--signal=TERM", "--batch", number)
    wait_for(lambda: slurm.ask("squeue", "-h", "-o", "%T").strip() == "PENDING", 120)
    _, folder = latest(tmp_path, "pytorch")
    taken, saved = step_reached(folder)
    assert taken == saved and saved[1] > 0, "no step is lost"
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    status, output = driver.end()
    assert status == 0, output
    content, _ = latest(tmp_path, "pytorch")
    assert digests(content) == digests(undisturbed(*words)[0])
    assert f"epoch {saved[0]}, step {saved[1]}" in (folder / "logs/job.log").read_text(), "where it went on"


@needs_slurm
@pytest.mark.full
def test_the_nodes_of_a_job_are_looked_at_while_it_runs(slurm, tmp_path):
    driver = Driver("recipe=pytorch", "cluster=slurm", output_root=tmp_path, environment=slurm.environment)
    driver.wait_until(lambda: in_the_middle_of_an_epoch(driver))
    inject.stop(driver.pid_of(1))
    try:
        text = diagnose.diagnose(tmp_path / "pytorch/latest")
    finally:
        inject.go_on(driver.pid_of(1))
    assert re.search(r"rank 1 \(pid \d+ on host[12]\) holds the others up: it is stopped", text), text
    assert "Who waits: rank 0 in the exchange of gradients at main.py:" in text
    driver.interrupt()
    assert driver.end()[0] == 130


@needs_slurm
@pytest.mark.full
def test_ctrl_c_cancels_the_job_and_a_cancelled_job_fails_the_run(slurm, tmp_path):
    driver = Driver("recipe=pytorch", "cluster=slurm", output_root=tmp_path, environment=slurm.environment)
    driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()))
    driver.interrupt()
    assert driver.end()[0] == 130
    wait_for(lambda: slurm.ask("squeue", "-h") == "")
    driver = Driver(
        "recipe=pytorch", "cluster=slurm", "resume=never", output_root=tmp_path / "other", environment=slurm.environment
    )
    driver.wait_until(lambda: any(event["event"] == "rows" for event in driver.events()))
    slurm.ask("scancel", *slurm.ask("squeue", "-h", "-o", "%i").split())
    # Slurm sends SIGTERM, and SIGKILL after KillWait: workers that were fast enough have saved.
    status, output = driver.end()
    content, folder = latest(tmp_path / "other", "pytorch")
    if content["status"] == "preempted":
        assert status == 75, output
    else:
        assert status == 1, output
        assert "started but did not finish" in content["reason"]
    assert "CANCELLED" in (folder / "logs/sbatch.log").read_text()


@needs_slurm
def test_the_processes_are_gone_after_a_job(slurm):
    for number in (1, 2):
        wait_for(
            lambda number=number: not any("recipes/" in local_hosts.words_of(pid) for pid in slurm.place.pids(number))
        )


def test_no_slurm_is_said(tmp_path):
    folders = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "sbatch").exists()]
    if "/usr/bin" not in folders:
        ignore = shutil.ignore_patterns("sbatch", "squeue", "scancel", "scontrol")
        shutil.copytree("/usr/bin", tmp_path / "bin", symlinks=True, ignore=ignore)
    environment = {"PATH": ":".join([*folders, str(tmp_path / "bin")])}
    words = ["recipe=pytorch", "cluster=slurm", f"output_root={tmp_path}/out"]
    argv = [sys.executable, "-m", "cookbook", *words]
    done = subprocess.run(argv, cwd=ROOT, env={**CLEAN, **environment}, capture_output=True, text=True)
    said = "sbatch, squeue, scancel, scontrol is missing: run the driver on a node from which jobs are submitted"
    assert (done.returncode, said in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["pytorch", "horovod"])
def test_the_script_is_the_one_that_was_reviewed(recipe):
    """To take over a change that is meant: UPDATE_GOLDEN=1 make test ARGS="tests/test_slurm.py -k
    reviewed", and read the diff."""
    words = [
        "cluster=slurm",
        "cluster.num_workers=8",
        "cluster.gpus_per_worker=1",
        "cluster.partition=gpu",
        "cluster.sbatch_options=['--qos=high']",
    ]
    config, _ = compose_recipe(recipe, words)
    run_dir = Path("/shared/outputs") / recipe / "2026-01-31_12-00-00"
    (process,) = plan(config, Path("/shared/recipes") / recipe, Path("/shared/.venvs/x/bin/python"), run_dir)
    (text,) = process.files.values()
    assert process.argv == ["sbatch", "--parsable", str(run_dir / "job.sh")]
    path = GOLDEN / f"{recipe}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


LEAVES = 'while [ ! -e "$notice" ]; do sleep 0.05; done; echo saved; exit {status}'


@pytest.mark.parametrize(
    ("leaves", "state", "requeued"),
    [
        (LEAVES.format(status=1), "RUNNING", True),
        (LEAVES.format(status=0), "RUNNING", False),  # it came to its end all the same
        (LEAVES.format(status=1), "COMPLETING", False),  # somebody has cancelled the job
    ],
)
def test_the_script_waits_for_the_workers_and_puts_the_job_back(tmp_path, leaves, state, requeued):
    """With stand-ins of Slurm's commands: what the script does with the SIGTERM that --signal=B: asks for."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "scontrol $*"\n')
    for name in ("squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    script = GOES_ON_LATER.format(notice=f"'{tmp_path}/pre empt'", body=f"echo started\n{leaves}")
    (tmp_path / "pre empt").write_text("of an earlier try")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    argv = ["bash", "-c", f"set -euo pipefail\n{script}"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "started\n"
        job.terminate()
        said = job.communicate(timeout=60)[0].split("\n")
    assert said == ["saved", *(["scontrol requeue 7"] if requeued else []), ""]
    assert job.returncode == (0 if "exit 0" in leaves else 1)
    assert (tmp_path / "pre empt").read_text() == "SIGTERM of Slurm\n"


def test_a_script_without_a_notice_ends_as_its_workers_do(tmp_path):
    script = GOES_ON_LATER.format(notice=tmp_path / "preempt", body="exit 3")
    assert subprocess.run(["bash", "-c", f"set -euo pipefail\n{script}"]).returncode == 3
    assert not (tmp_path / "preempt").exists()


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done
echo "$node $*" >> "$STEPS"
exec "$@"
"""
SCONTROL = """#!/bin/sh
[ "$2" = hostnames ] && printf 'one\\ntwo\\n' && exit
echo "NodeName=$4 NodeAddr=127.0.0.$([ "$4" = one ] && echo 1 || echo 2)"
"""
SERVE = ["sh", "-c", "trap 'echo ended; exit 0' TERM; echo ready; while :; do sleep 0.1; done"]

TOO_EARLY = ["sh", "-c", "echo ready; sleep 1"]  # two of them, at nearly the same moment


@pytest.mark.parametrize(
    ("service", "client", "status", "said"),
    [
        (SERVE, ["true"], 0, ""),
        (TOO_EARLY, ["sleep", "60"], 1, " ended with exit status 0"),
        (SERVE, ["sh", "-c", "exit 3"], 3, "client ended with exit status 3"),
        (["sh", "-c", "echo ready; sleep 1; exit 0"], ["sleep", "60"], 1, "service ended with exit status 0"),
        (["sh", "-c", "echo no room; exit 5"], ["true"], "error", "is not ready after 30 s: no room"),
    ],
)
def test_what_is_started_on_the_nodes_of_a_job_ends_with_it(
    tmp_path, monkeypatch, capsys, service, client, status, said
):
    """With stand-ins of srun and scontrol: services first, on the right nodes, and nothing of them is left."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STEPS": str(tmp_path / "steps")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "[one-two]")
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    seen = []

    def on_hosts(job, hosts):
        seen.extend((node.name, node.address, node.slots) for node in hosts.nodes)
        own = (str(tmp_path / "own"),)
        more = [Process("other", service, host="127.0.0.2", service=True)] if service is TOO_EARLY else []
        return [
            *more,
            Process("service", service, host="127.0.0.2", service=True, ready="ready", cleanup_paths=own),
            Process("client", client, {"WHO": "client"}, host="127.0.0.1", files={str(tmp_path / "x"): "secret"}),
        ]

    monkeypatch.setattr(allocation.systems, "load", lambda name: SimpleNamespace(on_hosts=on_hosts))
    config, _ = compose_recipe("dask", ["cluster=slurm", "cluster.num_workers=4", "cluster.start_timeout_seconds=30"])
    job = Job(config, tmp_path, Path(sys.executable), tmp_path / "run")
    (tmp_path / "job.json").write_text(allocation.job_file(job))
    before = signal.getsignal(signal.SIGTERM)
    try:
        if status == "error":
            with pytest.raises(UserError, match=said):
                allocation.main([str(tmp_path / "job.json")])
        else:
            assert allocation.main([str(tmp_path / "job.json")]) == status
            assert said in capsys.readouterr().out
            assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [("one", "127.0.0.1", 2), ("two", "127.0.0.2", 2)]
    steps = [line.split()[0] for line in (tmp_path / "steps").read_text().splitlines() if not line.endswith("own")]
    assert steps == (["two"] * (1 + (service is TOO_EARLY)) + ["one"] * (status != "error"))
    assert not (tmp_path / "own").exists()
    if service is SERVE:
        assert (tmp_path / "run/logs/service.log").read_text().split() == ["ready", "ended"]


def test_what_cannot_be_a_job():
    with pytest.raises(UserError, match="cannot be divided among cluster.num_nodes=2"):
        plan_of("pytorch", "cluster.num_workers=3")
    with pytest.raises(
        UserError, match="cluster=slurm: kubeflow starts no workers there; it does with cluster=kubernetes, local"
    ):
        plan_of("kubeflow")
    for recipe in ("horovod", "ray_train"):
        with pytest.raises(UserError, match="a Slurm job has a fixed size"):
            plan_of(recipe, "recipe.elastic=true")
    with pytest.raises(UserError, match="cluster.ray_address=head:6379 is for cluster=local: with cluster=slurm"):
        plan_of("ray_train", "cluster.ray_address=head:6379")


def plan_of(recipe, *words):
    config, _ = compose_recipe(recipe, ["cluster=slurm", *words])
    return plan(config, ROOT / "recipes" / recipe, Path("/env/bin/python"), Path("/run/x/y"))


def test_why_a_job_waits_is_said_once(monkeypatch):
    """A job that asks for more time than its partition allows would wait for ever, and nobody know why."""
    answers = [
        {"JobState": "PENDING", "Reason": reason} for reason in ("None", *["PartitionTimeLimit"] * 3, "Resources")
    ]
    answers += [{"JobState": "RUNNING", "Reason": "None"}, {"JobState": "COMPLETED", "Reason": "None"}]
    monkeypatch.setattr(places_slurm, "about", lambda number: answers.pop(0))
    monkeypatch.setattr(places_slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(places_slurm, "WATCH_SECONDS", 0.001)
    job, said = places_slurm.Slurm(SimpleNamespace(cluster={}), "run", None), []
    job.stage = SimpleNamespace(line=said.append)
    assert job._follow("7", lambda waiting: None) == "COMPLETED"
    assert said == [f"job 7 waits, and Slurm says why: {reason}" for reason in ("PartitionTimeLimit", "Resources")]
