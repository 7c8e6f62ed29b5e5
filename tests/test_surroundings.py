"""What the driver and its workers inherit; and whole runs in the surroundings of somebody else."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest.mock

import pytest

from cookbook import ROOT, UserError, bootstrap, machine, surroundings
from cookbook.tools.chaos import inject
from tests.helpers import CLEAN, latest, recipes
from tests.requirements import needs

LOCAL = {"kind": "local"}

# A shell in a Slurm allocation of another cluster, with a proxy, another Python and other systems set up.
OTHERS = """
    PYTHONPATH=/opt/other/lib PYTHONSAFEPATH=1 PYTHONWARNINGS=error PYTHONOPTIMIZE=2 PYTHONDONTWRITEBYTECODE=1
    http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9
    ALL_PROXY=http://127.0.0.1:9 grpc_proxy=http://127.0.0.1:9
    GLOO_SOCKET_IFNAME=eth7 NCCL_SOCKET_IFNAME=eth7 TP_SOCKET_IFNAME=eth7
    PMI_RANK=0 SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_NODELIST=n1 OMPI_MCA_btl=nonsense
    MASTER_ADDR=10.255.255.1 MASTER_PORT=1 TORCH_DISTRIBUTED_DEBUG=DETAIL TORCHELASTIC_RUN_ID=x
    OMP_PROC_BIND=true MKL_NUM_THREADS=64 TF_NUM_INTRAOP_THREADS=64 BLIS_NUM_THREADS=64 LOKY_MAX_CPU_COUNT=1
    RAY_ADDRESS=10.255.255.1:6379 DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0
    SPARK_HOME=/nowhere SPARK_MASTER=spark://nowhere:7077 PYSPARK_PYTHON=/nowhere/python
    HADOOP_CONF_DIR=/nowhere HOROVOD_CONTROLLER=mpi MLFLOW_RUN_ID=gone
    OPAL_PREFIX=/apps/openmpi/4.1 LOGLEVEL=info PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=cpp GLOO_DEVICE_TRANSPORT=TCP_TLS
    SBATCH_TIMELIMIT=1 SBATCH_ARRAY_INX=1-9 SQUEUE_FORMAT=%i UV_EXCLUDE_NEWER=2020-01-01 PIP_CONSTRAINT=/nowhere
    KERAS_BACKEND=jax TF_USE_LEGACY_KERAS=1 PIP_USER=1 PIP_TARGET=/nowhere UV_SYSTEM_PYTHON=1
"""
OTHERS = dict(word.split("=") for word in OTHERS.split()) | {"TF_CONFIG": '{"cluster": {}}'}


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {name for name in OTHERS if name.lower().endswith("_proxy")}))
def test_what_belongs_to_something_else_is_not_inherited(name):
    kept, dropped = surroundings.choose({name: OTHERS[name], "EDITOR": "vi"}, LOCAL)
    assert name not in kept and len(dropped[name]) > 10 and kept["EDITOR"] == "vi"
    kept, dropped = surroundings.choose({name: OTHERS[name]}, LOCAL | {"inherit": [name]})
    assert kept[name] == OTHERS[name] and dropped == {}


@pytest.mark.parametrize(
    "name",
    [
        *("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "JAVA_HOME", "HOROVOD_WITHOUT_MPI", "NCCL_DEBUG"),
        *("SSL_CERT_FILE", "TORCH_DISTRIBUTED_DEBUG", "SLURM_CONF", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_what_is_meant_for_the_run_is_inherited(name):
    kept, dropped = surroundings.choose({name: "INFO"}, LOCAL)
    assert kept == {name: "INFO"} and dropped == {}


def test_a_place_that_is_new_inherits_as_little_as_the_others():
    assert surroundings.choose({"RANK": "3", "PYTHONPATH": "/lib", "EDITOR": "vi"}, {"kind": "polite"})[0] == {
        "EDITOR": "vi"
    }


def test_another_cluster_s_network_is_inherited_on_hosts():
    assert "GLOO_SOCKET_IFNAME" in surroundings.choose({"GLOO_SOCKET_IFNAME": "ib0"}, {"kind": "hosts"})[0]


def test_sbatch_s_own_variables_do_not_win_over_settings():
    given = {"SBATCH_PARTITION": "debug", "SBATCH_ACCOUNT": "mine", "SBATCH_QOS": "high"}
    slurm = {"kind": "slurm", "partition": None, "account": None}
    assert surroundings.choose(given, slurm)[0] == given
    assert surroundings.choose(given, slurm | {"partition": "gpu"})[0] == {
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_QOS": "high",
    }


@pytest.mark.parametrize(
    ("own", "inherit", "handed_on"),
    [
        ({}, [], "C.UTF-8"),
        ({"LC_ALL": "C"}, [], "C.UTF-8"),
        ({"LANG": "tr_TR.UTF-8"}, [], "C.UTF-8"),
        ({"LC_ALL": "ja_JP.eucJP"}, ["LC_*"], "ja_JP.eucJP"),
    ],
)
def test_workers_name_files_in_utf_8_whatever_the_locale(monkeypatch, own, inherit, handed_on):
    monkeypatch.setattr(surroundings, "ORIGINAL", {"PATH": "/bin"} | own)
    with unittest.mock.patch.dict(os.environ):
        surroundings.settle(LOCAL | {"inherit": inherit})
        assert os.environ["LC_ALL"] == handed_on


def test_the_driver_itself_starts_anew_in_utf_8():
    """LANG=en_US alone is ISO-8859-1; no such locale may be installed here, so ASCII stands for it."""
    environment = CLEAN | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    code = "import sys; print(sys.flags.utf8_mode, sys.argv[1:]); "
    code += "from cookbook import __main__ as main; main._speak_utf8(); print(len(sys.argv[1]))"
    words = [sys.executable, "-u", "-c", code, "a=ü"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.stdout.splitlines() == ["0 ['a=\\udcc3\\udcbc']", "1 ['a=ü']", "3"], done.stderr


def test_java_unpacks_its_libraries_where_they_may_run(tmp_path, monkeypatch):
    assert surroundings.java_options({}, None) == {} or not machine.may_run_programs("/tmp")
    monkeypatch.setattr(machine, "may_run_programs", lambda place: place == str(tmp_path))
    made = surroundings.java_options({"JAVA_TOOL_OPTIONS": "-Xint"}, str(tmp_path))
    assert made == {"JAVA_TOOL_OPTIONS": f'-Xint -Djava.io.tmpdir="{tmp_path}"'}
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path))
    assert surroundings.java_options({}, None) == {"JAVA_TOOL_OPTIONS": f'-Djava.io.tmpdir="{tmp_path}"'}


def test_a_keras_json_in_the_home_is_not_read(monkeypatch):
    monkeypatch.setattr(surroundings, "ORIGINAL", {"PATH": "/bin", "KERAS_HOME": "/home/me/.keras"})
    with unittest.mock.patch.dict(os.environ):
        surroundings.settle(LOCAL)
        assert os.environ["KERAS_HOME"] == os.devnull
        surroundings.settle(LOCAL | {"inherit": ["KERAS_HOME"]})
        assert os.environ["KERAS_HOME"] == "/home/me/.keras"


def test_who_names_a_running_system_keeps_what_reaches_it():
    given = {"SPARK_CONF_DIR": "/etc/spark"}
    assert surroundings.choose(given, LOCAL)[0] == {}
    assert surroundings.choose(given, LOCAL | {"spark_master": "spark://a:7077"})[0] == given


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({"http_proxy": "http://p:3128"}, "localhost,127.0.0.1,::1,127.0.0.0/8"),
        (
            {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "corp.example"},
            "corp.example,localhost,127.0.0.1,::1,127.0.0.0/8",
        ),
        ({"no_proxy": "localhost, corp.example"}, "localhost,corp.example,127.0.0.1,::1,127.0.0.0/8"),
        ({"http_proxy": "http://p:3128", "NO_PROXY": "*"}, "*"),
    ],
)
def test_loopback_is_never_asked_for_through_a_proxy(given, listed):
    made = surroundings.choose(given, LOCAL)[0]
    assert made["no_proxy"] == made["NO_PROXY"] == listed


def test_grpc_is_told_in_its_own_words_that_there_is_no_proxy():
    made = surroundings.choose({"http_proxy": "http://p:3128", "no_proxy": "*"}, LOCAL)[0]
    assert made["no_grpc_proxy"] == "localhost,127.0.0.1,::1,127.0.0.0/8"


def test_without_a_proxy_nothing_is_added():
    assert surroundings.choose({"A": "b"}, LOCAL)[0] == {"A": "b"}


def test_a_long_tmpdir_gets_a_short_link(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert surroundings.temporary_folder({"TMPDIR": str(long)}) == (str(long), [])
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder, link = surroundings.own_folder("0123456789")
    assert folder == long / "cb-01234567" and len(str(link)) <= surroundings.LONGEST_TMPDIR and link.resolve() == folder
    link.unlink()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    (plain,) = surroundings.own_folder("0123456789")
    assert str(plain) == "/tmp/cb-01234567"
    plain.rmdir()
    gone, (note,) = surroundings.temporary_folder({"TMPDIR": "/nowhere/at/all"})
    assert gone is None and "TMPDIR=/nowhere/at/all is no folder that can be written" in note


def test_an_object_store_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match="recipe.object_store_mb=999999: this machine has 4096 MB"):
        machine.check_object_store(999_999, 4 << 30)
    machine.check_object_store(500, 4 << 30)


def test_a_user_without_a_name_is_refused_where_spark_would_ask_for_it():
    with pytest.raises(UserError, match="user 54321 has no name on this machine.*me:x:54321:0::/tmp:/bin/sh"):
        machine.check_user(54321)
    machine.check_user(0)


@pytest.mark.parametrize(
    ("groups", "files", "cores", "megabytes"),
    [
        ("0::/\n", {"cpu.max": "150000 100000", "memory.max": "2097152000", "memory.current": "1048576000"}, 2, 1000),
        (
            "0::/slurm/job_7/step_0\n",
            {"memory.max": "max", "slurm/job_7/memory.max": "2097152000", "slurm/job_7/memory.current": "1048576000"}
            | {"slurm/job_7/step_0/cpu.max": "100000 100000"},
            1,
            1000,
        ),
        (
            "4:memory:/job_7\n3:cpu,cpuacct:/job_7\n1:name=systemd:/\n",
            {"memory/job_7/memory.limit_in_bytes": "2097152000", "memory/job_7/memory.usage_in_bytes": "0"}
            | {"cpu/job_7/cpu.cfs_quota_us": "100000", "cpu/job_7/cpu.cfs_period_us": "100000"},
            1,
            2000,
        ),
        ("3:cpu:/../outside\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64, None),
    ],
)
def test_limits_of_a_container_a_job_s_step_and_a_service(groups, files, cores, megabytes, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(groups)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert machine.num_cores() == cores
    assert [(most - now) >> 20 for most, now in machine.memory_limits()] == ([megabytes] if megabytes else [])


@pytest.mark.parametrize(
    ("devices", "there", "told"),
    [
        (["cpu", "cpu"], True, 1),
        (["cpu", "cpu"], False, 0),
        (["cuda:0", "cuda:1"], True, 0),
        ([None, None], True, 0),
        ([], True, 0),
    ],
)
def test_a_gpu_that_nobody_used_is_spoken_of(devices, there, told, tmp_path, monkeypatch):
    """Only where the recipe says what its workers computed on."""
    monkeypatch.setattr(machine, "FIRST_GPU", tmp_path / "nvidia0")
    if there:
        machine.FIRST_GPU.touch()
    assert len(machine.idle_gpu(devices)) == told


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("-n 60", "this shell allows 60 open files, and 2 workers need 64: ulimit -n 1024"),
        ("-f 200", "this shell allows files of 204,800 bytes, and a run writes larger ones"),
    ],
)
def test_a_shell_s_limit_that_no_run_can_keep_is_named_at_once(limit, said, tmp_path):
    command = f"ulimit {limit}; exec {sys.executable} -m cookbook recipe=pytorch output_root={tmp_path}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_small_dev_shm_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(65536, 0, 65536))
    with pytest.raises(UserError, match="has 64 kB free, and 4 processes that read ahead.*num_loader_workers=0"):
        machine.check_shared_memory(4, tmp_path)
    machine.check_shared_memory(0, tmp_path)


# ---- whole runs

MISSING = [name for name in ("unshare", "mount") if not shutil.which(name)] + ([] if os.getuid() == 0 else ["root"])


def run_with_hosts(tmp_path, hosts, words, environment):
    """(run.json or None, output, status) of a driver that sees other lines in /etc/hosts."""
    (tmp_path / "hosts").write_text(hosts)
    script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", tmp_path / "hosts"]
    driver = [sys.executable, "-m", "cookbook", *words, f"output_root={tmp_path}"]
    done = subprocess.run([*namespace, *driver], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    recipe = words[0].removeprefix("recipe=")
    content = latest(tmp_path, recipe)[0] if (tmp_path / recipe / "latest").exists() else None
    return content, done.stdout + done.stderr, done.returncode


@pytest.mark.full
@needs("root", MISSING)
@pytest.mark.parametrize("recipe", recipes())
def test_a_run_in_the_surroundings_of_somebody_else(tmp_path, recipe):
    """Variables of other systems, no HOME, a long TMPDIR, and the machine's own name with an address that is gone."""
    long = tmp_path / ("t" * 73)
    long.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "COOKBOOK_CACHE": str(bootstrap.cache_dir()),
        "TMPDIR": str(long),
        **OTHERS,
    }
    del (
        environment["PYTHONPATH"],
        environment["PYTHONSAFEPATH"],
        environment["PYTHONOPTIMIZE"],
        environment["PYTHONWARNINGS"],
    )  # make takes them from the driver
    hosts = f"127.0.0.1 localhost\nfd00::1 {socket.gethostname()}\n10.255.255.1 {socket.gethostname()}\n"
    content, output, status = run_with_hosts(tmp_path, hosts, [f"recipe={recipe}", "scale=smoke"], environment)
    assert status == 0, output
    assert content["status"] == "ok"
    assert (
        content["world_size"] == 2 or "one process did all the work" in content["warnings"][0]
    )  # Tune, on a busy machine
    assert "GLOO_SOCKET_IFNAME" in output and "not handed on to the workers" in output
    assert json.dumps(content).count("10.255.255.1") == json.dumps(content).count("fd00::1") == 0


@pytest.mark.full
@needs("root", MISSING)
@pytest.mark.parametrize("recipe", recipes())
def test_a_machine_whose_own_name_leads_nowhere(tmp_path, recipe):
    environment = {name: value for name, value in os.environ.items() if name != inject.MARK}
    hosts = "::1 localhost\n127.0.0.1 localhost\n"
    content, output, status = run_with_hosts(tmp_path, hosts, [f"recipe={recipe}", "scale=smoke"], environment)
    assert status == 0, output
    assert content["status"] == "ok"


@pytest.mark.full
@needs("root", MISSING)
@pytest.mark.parametrize("recipe", recipes())
def test_localhost_that_does_not_resolve_is_no_matter_or_named_at_once(tmp_path, recipe):
    environment = {name: value for name, value in os.environ.items() if name != inject.MARK}
    hosts = f"127.0.1.1 {socket.gethostname()}\n"
    content, output, status = run_with_hosts(tmp_path, hosts, [f"recipe={recipe}", "scale=smoke"], environment)
    if status:
        assert content is None, output
        assert "the name localhost does not resolve on this machine" in output and "/etc/hosts" in output
    else:
        assert content["status"] == "ok"
        assert content["world_size"] == 2 or "one process did all the work" in content["warnings"][0]  # as above
