"""What others could reach, read or make us do: addresses that listen, secrets, folders, words of commands."""

import json
import os
import re
import stat
import subprocess
import sys
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from cookbook import ROOT, UserError, inventory, redact
from cookbook.files import write_whole
from cookbook.places.hosts.ssh import Ssh
from cookbook.places.kubernetes import logs as pod_logs
from cookbook.report import tracking
from cookbook.settings import compose_recipe
from cookbook.tools import services
from tests.helpers import Driver, plan, recipes, run_cookbook
from tests.requirements import skip

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"tracking.uri=http://me:{SECRET}@host:5000/x", "tracking.uri=http://me:***@host:5000/x"),
        (f"postgresql://me:p@ss/{SECRET}@host/x", "postgresql://me:***@host/x"),
        (f"a://me:{SECRET}@b,c://me:{SECRET}@d", "a://me:***@b,c://me:***@d"),
        ("http://host:5000/x?mail=me@there", "http://host:5000/x?mail=me@there"),
        (f"tracking.uri=https://host/x?token={SECRET}&a=1", "tracking.uri=https://host/x?token=***&a=1"),
        (f"https://host/x?X-Amz-Signature={SECRET}", "https://host/x?X-Amz-Signature=***"),
        (f"data.path=https://{'t' * 24}@host/x", "data.path=https://***@host/x"),
        (
            f"recipe.spark_conf.spark.hadoop.fs.s3a.secret.key={SECRET}",
            "recipe.spark_conf.spark.hadoop.fs.s3a.secret.key=***",
        ),
        (
            f"recipe.spark_conf={{spark.authenticate.secret: {SECRET}, b: 2}}",
            "recipe.spark_conf={spark.authenticate.secret: ***, b: 2}",
        ),
        (f"--conf 'spark.ssl.keyPassword={SECRET} x' --conf a=b", "--conf 'spark.ssl.keyPassword=***' --conf a=b"),
        (f"MLFLOW_TRACKING_TOKEN={SECRET} python main.py", "MLFLOW_TRACKING_TOKEN=*** python main.py"),
        (f"api_key={SECRET}", "api_key=***"),
        ("recipe.max_tokens=3 recipe.num_heads=4", "recipe.max_tokens=3 recipe.num_heads=4"),
        ("tracking.uri=http://host:5000/x", "tracking.uri=http://host:5000/x"),
        ("seed=0 data=digits", "seed=0 data=digits"),
    ],
)
def test_secrets_are_left_out_of_texts(text, shown):
    assert redact.redacted_text(text) == shown


def test_secrets_are_left_out_of_settings():
    settings = {"a": {"db_password": SECRET, "user": "me", "uri": f"s3://k:{SECRET}@b/x"}, "n": 3, "tokens": [1, 2]}
    shown = redact.redacted(settings)
    assert SECRET not in json.dumps(shown)
    assert shown == {"a": {"db_password": "***", "user": "me", "uri": "s3://k:***@b/x"}, "n": 3, "tokens": [1, 2]}


def test_no_setting_of_the_cookbook_is_taken_for_a_secret():
    for recipe in recipes():
        config, _ = compose_recipe(recipe)
        assert redact.redacted(config["recipe"]) == config["recipe"]


@pytest.mark.parametrize(
    "word",
    [
        f"+recipe.spark_conf.spark\\.hadoop\\.fs\\.s3a\\.secret\\.key={SECRET}",
        f"data.path=https://me:{SECRET}@host/logs",
    ],
)
def test_a_copy_with_a_secret_is_refused(tmp_path, word):
    words = [
        sys.executable,
        "-m",
        "cookbook.tools.eject",
        "spark",
        tmp_path / "mine",
        "data=log_files",
        *([] if "path" in word else ["data.path=logs"]),
        word,
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "a copy keeps no secrets" in done.stderr
    assert SECRET not in done.stdout + done.stderr and list(tmp_path.iterdir()) == []


def test_secrets_of_spark_go_through_a_file_and_not_through_the_command_line():
    config, _ = compose_recipe("spark", [f"+recipe.spark_conf={{spark.hadoop.fs.s3a.secret.key: {SECRET}}}"])
    config["recipe"]["spark_conf"] = {"spark.hadoop.fs.s3a.secret.key": SECRET, "spark.ui.enabled": False}
    (process,) = plan(config, ROOT / "recipes/spark", Path("/env/bin/python"), Path("/run"))
    assert SECRET not in process.shell_command
    assert process.files == {"/run/scratch/secrets/spark.conf": f"spark.hadoop.fs.s3a.secret.key {SECRET}\n"}
    words = " ".join(process.argv)
    assert "--load-spark-defaults --properties-file /run/scratch/secrets/spark.conf" in words
    assert "--conf spark.ui.enabled=false" in words


def test_a_file_never_has_other_permissions_than_asked_for(tmp_path, monkeypatch):
    path, seen = tmp_path / "new/secret.conf", []
    really_open = os.open
    monkeypatch.setattr(
        "os.open", lambda name, flags, mode=0o777: seen.append((flags, mode)) or really_open(name, flags, mode)
    )
    before = os.umask(0)
    try:
        write_whole(str(path), "x", 0o600)
    finally:
        os.umask(before)
    assert [mode for flags, mode in seen if flags & os.O_CREAT] == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    write_whole(str(path), "y", 0o600)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("y", 0o600)


def service_of(folder, monkeypatch):
    folder.mkdir(exist_ok=True)
    (folder / "hosts.yaml").write_text(
        f"hosts:\n  - {{name: a, address: 127.0.0.1, slots: 2}}\nshared: true\nservices: {folder}/services\n"
    )
    return services.Service(folder / "hosts.yaml", "dask")


def test_down_removes_no_folder_that_it_has_not_made(tmp_path, monkeypatch):
    service = service_of(tmp_path / "x", monkeypatch)
    service.folder.mkdir(parents=True)
    (service.folder / "thesis.txt").write_text("ten years of work")
    with pytest.raises(
        UserError, match="is not a folder of a service: it was not made by this command, and is left alone"
    ):
        service.down()
    assert (service.folder / "thesis.txt").read_text() == "ten years of work"


def test_down_removes_what_up_has_made(tmp_path, monkeypatch):
    service = service_of(tmp_path / "x", monkeypatch)
    service.folder.mkdir(parents=True)
    (service.folder / services.MADE_HERE).touch()
    service.down()
    assert not service.folder.exists()


def test_down_follows_no_link(tmp_path, monkeypatch):
    service = service_of(tmp_path / "x", monkeypatch)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / services.MADE_HERE).touch()
    service.folder.parent.mkdir(parents=True)
    service.folder.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is left alone"):
        service.down()
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("ssh", "said"),
    [
        ('{user: "-oProxyCommand=touch /tmp/x"}', "ssh.user='-oProxyCommand"),
        ('{user: "me@other"}', "ssh.user='me@other'"),
        ('{user: ""}', "ssh.user=''"),
        ("{port: 0}", "ssh.port=0: expected a number from 1 to 65535"),
        ("{port: 70000}", "ssh.port=70000"),
        ('{key: "-F/tmp/x"}', "ssh.key='-F/tmp/x'"),
        ('{known_hosts: "/x\' -e sh"}', "ssh.known_hosts="),
        ('{known_hosts: "/x\\n-oProxyCommand=x"}', "ssh.known_hosts="),
    ],
)
def test_no_field_of_an_inventory_becomes_an_option(tmp_path, ssh, said):
    (tmp_path / "inventory.yaml").write_text(f"hosts: [{{name: a, address: 10.0.0.1}}]\nssh: {ssh}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        inventory.load(tmp_path)


@pytest.mark.parametrize(
    "field",
    ['name: "-x", address: 10.0.0.1', 'name: a, address: "-oProxyCommand=x"', "name: a, address: 1.2.3.4, gpus: -1"],
)
def test_no_field_of_a_host_becomes_an_option(tmp_path, field):
    (tmp_path / "inventory.yaml").write_text(f"hosts: [{{{field}}}]\n")
    with pytest.raises(UserError):
        inventory.load(tmp_path)


def test_a_good_inventory_is_taken(tmp_path):
    (tmp_path / "inventory.yaml").write_text(
        "hosts: [{name: a, address: 10.0.0.1}]\nssh: {user: ubuntu, port: 22, key: ~/.ssh/id, known_hosts: /my "
        "keys/known}\n"
    )
    found = inventory.load(tmp_path)
    cluster = {**found, "connect_timeout_seconds": 1, "inventory": "x"}
    cluster["ssh"].pop("key")  # it is not there
    with Ssh(cluster) as ssh:
        assert 'UserKnownHostsFile="/my keys/known"' in ssh.options()


def test_ray_s_folder_on_hosts_cannot_be_guessed(tmp_path):
    (tmp_path / "inventory.yaml").write_text("hosts: [{name: a, address: 127.0.0.1, slots: 2}]\nshared: true\n")
    folders = set()
    for _ in range(2):
        config, _ = compose_recipe("ray_train", ["cluster=hosts", f"cluster.inventory={tmp_path}"])
        config["cluster"] = inventory.with_hosts(config["cluster"])
        started = plan(config, ROOT / "recipes/ray_train", Path("/env/bin/python"), Path("/run/ray_train/time"))
        folders |= {process.cleanup_paths for process in started if process.service}
    assert len(folders) == 2
    assert all(re.fullmatch(r"/tmp/ray-[0-9a-f]{16}", folder) for (folder,) in folders)


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("/out/pytorch/2026", "#SBATCH --output=/out/pytorch/2026/logs/job.log"),
        ("/my out/pytorch/2026", "#SBATCH --output='/my out/pytorch/2026/logs/job.log'"),
        ("/out/100%j/2026", "#SBATCH --output=/out/100%%j/2026/logs/job.log"),
    ],
)
def test_slurm_s_output_is_one_word(folder, line):
    config, _ = compose_recipe("pytorch", ["cluster=slurm", "cluster.sbatch_options=['--comment=two words']"])
    (process,) = plan(config, ROOT / "recipes/pytorch", Path("/env/bin/python"), Path(folder))
    (text,) = process.files.values()
    assert line in text.splitlines()
    assert "#SBATCH --comment='two words'" in text.splitlines()


def test_an_option_of_slurm_is_no_second_line():
    config, _ = compose_recipe("pytorch", ["cluster=slurm"])
    config["cluster"]["sbatch_options"] = ["--comment=x\ntouch /tmp/x"]
    with pytest.raises(UserError, match="control characters"):
        plan(config, ROOT / "recipes/pytorch", Path("/env/bin/python"), Path("/out/x/y"))


def told(path, **content):
    return json.dumps({"path": path, "line": 0, **content})


@pytest.mark.parametrize(
    "text",
    [
        told("report.html", text="<script>"),
        told("run.json", text="{}"),
        told("config.yaml", text="seed: 1"),
        told("../x.json", text="x"),
        told("tables/../../x.json", text="x"),
        told("/etc/x.json", text="x"),
        told("checkpoints/last.pt", base64="eA=="),
        told("workers/.x.jsonl", text="{}"),
        told("pictures/x.html", text="<script>"),
        told("tables/x.json.sh", text="x"),
        told("logs/x.log", text="x"),
        told("workers/a/b.jsonl", text="x"),
        told("pictures/x.png", base64="!"),
        told("tables/x.json"),
        told("tables/x.json", text=3),
        json.dumps({"path": "tables/x.json", "text": "x"}),
        json.dumps(["tables/x.json"]),
        "7",
        "not json",
        told(None, text="x"),
    ],
)
def test_a_pod_s_log_writes_nothing_but_a_record(tmp_path, text):
    (tmp_path / "run").mkdir()
    pod_logs.Logs(None, "run", tmp_path / "run", 120)._record(text)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_pod_s_log_writes_a_record_and_follows_no_link(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    logs = pod_logs.Logs(None, "run", run, 120)
    logs._record(told("workers/rank0-pod-1.jsonl", text='{"event": "start"}'))
    logs._record(told("pictures/curve.png", base64=b64encode(b"png").decode()))
    assert (run / "workers/rank0-pod-1.jsonl").read_text() == '{"event": "start"}\n'
    assert (run / "pictures/curve.png").read_bytes() == b"png"
    (tmp_path / "victim").write_text("mine")
    (run / "tables").mkdir()
    (run / "tables/x.json").symlink_to(tmp_path / "victim")
    logs._record(told("tables/x.json", text="theirs"))
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_command_in_a_network_of_its_own_sees_loopback_only():
    look = "import socket; print(sorted(name for _, name in socket.if_nameindex()))"
    words = [sys.executable, "-m", "netrun", sys.executable, "-c", look]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "runrecord")}
    )
    assert done.returncode == 0, done.stderr
    if "no network of its own" in done.stdout:
        skip("namespaces", f"not allowed here: {done.stdout}")
    assert done.stdout.strip() == "['lo']"


def test_without_namespaces_the_command_runs_and_says_so():
    program = "import loopback, netrun; netrun.leave_network = lambda name: 'not allowed'; netrun.main(['echo', 'ran'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runrecord")},
    )
    assert done.stdout == (
        "netrun: no network of its own (not allowed): echo listens on all addresses of this machine; is there a "
        "firewall?\nran\n"
    )


@pytest.mark.parametrize("recipe", recipes())
def test_launchers_that_listen_everywhere_run_in_a_network_of_their_own(recipe):
    config, _ = compose_recipe(recipe)
    if config["recipe"]["driver"]["system"] not in ("horovod", "torchrun"):
        return  # tfrun and rayrun see to it themselves; Spark, Dask and kfp listen where they are told
    (process,) = plan(config, ROOT / f"recipes/{recipe}", Path("/env/bin/python"), Path("/run"))
    assert process.argv[:3] == ["/env/bin/python", "-m", "netrun"]
    assert " -m netrun /env/bin/" in process.shell_command


def listening(driver):
    """(address, port, name) of what the run's processes listen on in this machine's own network."""
    found = set()
    mine = os.readlink("/proc/self/ns/net")
    for process in driver.relatives():
        try:
            if os.readlink(f"/proc/{process.pid}/ns/net") != mine:
                continue
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port, process.name()))
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.full
@pytest.mark.parametrize("recipe", recipes())
def test_a_local_run_listens_on_loopback_only(tmp_path, recipe):
    driver, seen = Driver(f"recipe={recipe}", "scale=smoke", output_root=tmp_path), set()
    while driver.process.poll() is None:
        seen |= listening(driver)
    driver.end()
    outside = {place for place in seen if not (place[0].startswith("127.") or place[0] in ("::1", "::ffff:127.0.0.1"))}
    assert outside == set()


class Tracker(BaseHTTPRequestHandler):
    """A server that is well until it is sent something, and wants the password for that."""

    def do_GET(self):
        well = (
            self.path == "/health"
            and self.headers["Authorization"] == "Basic " + b64encode(f"me:{SECRET}".encode()).decode()
        )
        self.send_response(200 if well else 403)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def tracker():
    with ThreadingHTTPServer(("127.0.0.1", 0), Tracker) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_trackers_password_is_used_and_not_said(tracker):
    tracking.check({"kind": "mlflow", "uri": f"http://me:{SECRET}@{tracker}"})
    with pytest.raises(UserError, match="no MLflow server answers there"):
        tracking.check({"kind": "mlflow", "uri": f"http://me:another@{tracker}"})


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["horovod", "spark"])
def test_no_secret_stays_in_a_run_folder(tmp_path, tracker, recipe):
    words = {
        "horovod": ["tracking=mlflow", f"tracking.uri=http://me:{SECRET}@{tracker}"],
        "spark": [f"+recipe.spark_conf.spark\\.my\\.password={SECRET}"],
    }[recipe]
    _, folder, output = run_cookbook(f"recipe={recipe}", "scale=smoke", *words, output_root=tmp_path)
    assert SECRET not in output
    assert (recipe == "spark") or f"http://me:***@{tracker}" in (folder / "run.json").read_text()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (f"recipe.spark_cnf.password={SECRET}", "there is no setting recipe.spark_cnf.password"),
        (f"tracking.uri=ftp://me:{SECRET}@host/x", "tracking.uri=ftp://me:***@host/x names no store"),
    ],
)
def test_no_error_says_a_secret(tmp_path, word, shown):
    words = ["recipe=horovod", "tracking=mlflow", word]
    _, _, output = run_cookbook(*words, output_root=tmp_path, status=1)
    assert shown in output and SECRET not in output
