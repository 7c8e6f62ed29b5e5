"""Live metrics: what the tail reads, what each sink gets, and that none of them can hold up a run."""

import datetime
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import yaml
from filelock import FileLock

from cookbook import ROOT, UserError, run_folder
from cookbook.files import read_json
from cookbook.report import sinks, tracking
from cookbook.report.feeder import Feeder
from cookbook.report.sinks import Run, kubeflow, prometheus
from cookbook.report.sinks import mlflow as mlflow_sink
from cookbook.report.tail import RATE_SECONDS, Tail
from cookbook.report.tailer import Tailer
from cookbook.tools import watch
from runrecord import RunRecord
from tests.helpers import CLEAN, Driver, free_port, latest, python_of, wait_for
from tests.requirements import skip

EVERY = {"every_seconds": 0.05, "wait_seconds": 20.0}
BEGAN = 1_000_000.0


def lines_of(rank, num_steps, first=0, world_size=2, **facts):
    """The record of a rank that takes a step a second and reports a loss at each; as lines."""
    start = {"event": "start", "time": BEGAN, "rank": rank, "world_size": world_size, "local_rank": 0}
    events = [start | {"host": "here", "pid": 100 + rank, "role": "worker", "attempt": 0} | facts]
    for step in range(first, first + num_steps):
        events.append({"event": "rows", "time": BEGAN + step + 1, "epoch": 0, "step": step, "count": 4})
        loss = {"event": "metric", "name": "train/loss", "value": 1 / (step + 1), "step": step, "epoch": 0, "unit": ""}
        events.append(loss | {"time": BEGAN + step + 1})
    return [json.dumps(event) + "\n" for event in events]


def make_run(folder, status="running", **more):
    """A run folder without a record."""
    (folder / "workers").mkdir(parents=True)
    content = {"recipe": "pytorch", "status": status, "started": BEGAN, "overrides": [], "command": "x", "reason": ""}
    (folder / "run.json").write_text(json.dumps(content | {"metrics": {}, "world_size": 2} | more))
    (folder / "config.yaml").write_text("seed: 0\nlearning_rate: 0.1\n")
    return Run(folder, "pytorch")


def losses(batch):
    return [(point.step, point.value) for point in batch.points if point.name == "train/loss"]


def test_a_growing_record_is_given_out_once(tmp_path):
    run = make_run(tmp_path / "run")
    tail, path = Tail(run.folder), run.folder / "workers/rank0-here-100.jsonl"
    assert not tail.read()
    zero, one = lines_of(0, 4), lines_of(1, 4)
    path.write_text(zero[0][:20])
    assert not tail.read()  # not even the first line is whole
    path.write_text("".join(zero[:3]) + zero[3][:10])
    assert losses(tail.read()) == [(0, 1.0)]
    path.write_text("".join(zero[:5]))
    assert losses(tail.read()) == [(1, 0.5)]
    assert not tail.read()
    # A rank whose file comes late has nothing new to say of steps that are known, but of its own work.
    (run.folder / "workers/rank1-here-101.jsonl").write_text("".join(one))
    assert losses(tail.read()) == [(2, pytest.approx(1 / 3)), (3, 0.25)]
    path.write_text("".join(zero))
    assert losses(tail.read()) == []
    assert {label: worker.num_steps for label, worker in tail.now.workers.items()} == {"rank_0": 4, "rank_1": 4}
    assert tail.now.workers["rank_1"].steps_per_second == 1.0
    assert tail.now.last_step == BEGAN + 4


def test_a_file_that_another_one_replaces_is_read_from_its_start(tmp_path):
    run = make_run(tmp_path / "run")
    path = run.folder / "workers/rank0-here-100.jsonl"
    tail = Tail(run.folder)
    path.write_text("".join(lines_of(0, 2)))
    assert losses(tail.read()) == [(0, 1.0), (1, 0.5)]
    # The same content in a new file, as rsync leaves it, is no other file.
    copy = path.with_suffix(".partial")
    copy.write_text("".join(lines_of(0, 3)))
    copy.replace(path)
    assert losses(tail.read()) == [(2, pytest.approx(1 / 3))]
    path.write_text("".join(lines_of(0, 1, first=7, world_size=3)))
    assert losses(tail.read()) == [(7, 0.125)]


def test_damaged_lines_and_records_without_a_start_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    lines = lines_of(0, 2)
    (run.folder / "workers/a.jsonl").write_text("".join([*lines[:2], "{half\n", "7\n", *lines[2:]]))
    (run.folder / "workers/b.jsonl").write_text("".join(lines_of(1, 9)[1:]))
    batch = Tail(run.folder).read()
    assert losses(batch) == [(0, 1.0), (1, 0.5)]


def test_the_same_record_gives_the_same_points_in_whatever_pieces(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [*lines_of(0, 35), json.dumps({"event": "end", "time": BEGAN + 40, "samples": 140, "digest": None}) + "\n"]
    path = run.folder / "workers/rank0-here-100.jsonl"
    path.write_text("".join(lines))
    whole = Tail(run.folder).read()
    rates = [point for point in whole.points if point.name == "steps_per_second"]
    assert [(point.path, point.step) for point in rates[:2]] == [
        ("rank_0/steps_per_second", int(RATE_SECONDS)),
        ("rank_0/steps_per_second", 2 * int(RATE_SECONDS)),
    ]
    assert [point.value for point in rates[:2]] == [1.0, 1.0]
    assert rates[-1].value == pytest.approx(5 / 9)  # the last five steps, and four seconds without any
    path.write_text("")
    pieces, place = [], {}
    for end in range(0, len(lines) + 1, 3):
        path.write_text("".join(lines[:end]))
        tail = Tail(run.folder, place)  # a new reader each time
        pieces += tail.read().points
        place = {name: list(entry) for name, entry in tail.place.items()}
    path.write_text("".join(lines))
    pieces += Tail(run.folder, place).read().points
    assert pieces == whole.points


def test_a_step_that_is_taken_again_after_a_restore_counts_again(tmp_path):
    run = make_run(tmp_path / "run")
    restore = json.dumps({"event": "restore", "time": BEGAN + 9, "epoch": 0, "step": 1, "generation": 5}) + "\n"
    lines = lines_of(0, 2)
    (run.folder / "workers/a.jsonl").write_text("".join([*lines, restore, lines[-1]]))
    assert losses(Tail(run.folder).read()) == [(0, 1.0), (1, 0.5), (1, 0.5)]


def test_a_worker_notes_what_its_machine_does_but_never_alone(tmp_path, monkeypatch):
    import runrecord

    monkeypatch.setattr(runrecord, "SYSTEM_SECONDS", 0.3)
    run = make_run(tmp_path / "run")
    with RunRecord(run.folder, 0, 1) as record:
        (path,) = run.folder.glob("workers/*.jsonl")
        time.sleep(0.5)
        assert len(path.read_text().splitlines()) == 1
        record.work(1)
        record.work(1)
    kinds = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert kinds == ["start", "system", "work", "work", "end"]
    points = {point.path: point.value for point in Tail(run.folder).read().points}
    (host,) = {path.split("/")[1] for path in points}
    total = points[f"system/{host}/memory_used_mb"] / points[f"system/{host}/memory_percent"]
    assert 0 <= points[f"system/{host}/cpu_percent"] <= 100
    assert total * 100 == pytest.approx(memory_mb(), rel=0.02)


def memory_mb():
    import psutil

    return psutil.virtual_memory().total / 2**20


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps what it gets; it can be down, or slow."""

    def do_POST(self):
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        data = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.seconds)
        self.server.asked += 1
        if not self.server.is_down:
            self.server.headers = dict(self.headers)
            request = service.ExportMetricsServiceRequest.FromString(data)
            for resource in request.resource_metrics:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                for metric in resource.scope_metrics[0].metrics:
                    for point in metric.gauge.data_points:
                        labels = {one.key: one.value.string_value for one in point.attributes}
                        entry = (metric.name, labels.get("series", ""), point.as_double, point.time_unix_nano)
                        self.server.points.append((named["cookbook.run"], *entry))
        self.send_response(503 if self.server.is_down else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.daemon_threads, server.points, server.asked = True, [], 0
        server.is_down, server.seconds, server.headers = False, 0.0, {}
        server.settings = {
            "kind": "otlp",
            "endpoint": f"http://127.0.0.1:{server.server_port}/v1/metrics",
            **EVERY,
        }
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def received(collector):
    """The losses that the collector has, by time."""
    return sorted((when, value) for _, name, _, value, when in collector.points if name == "cookbook.train/loss")


def expected(num_steps):
    return [(int((BEGAN + step + 1) * 1e9), 1 / (step + 1)) for step in range(num_steps)]


def test_what_a_sink_missed_while_it_was_down_is_sent_when_it_is_back(tmp_path, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    run = make_run(tmp_path / "run")
    path = run.folder / "workers/rank0-here-100.jsonl"
    feeder = Feeder(collector.settings, run)
    path.write_text("".join(lines_of(0, 2)))
    assert feeder.pump()
    assert received(collector) == expected(2) and collector.headers["authorization"] == "Bearer abc"
    collector.is_down = True
    path.write_text("".join(lines_of(0, 5)))
    assert not feeder.pump() and "503" in feeder.error
    assert "503" in read_json(feeder.path)["error"]
    path.write_text("".join(lines_of(0, 7)))
    assert not feeder.pump()
    collector.is_down = False
    # Another process goes on from what is in the run folder.
    other = Feeder(collector.settings, run)
    assert other.pump() and other.end("ok")
    assert received(collector) == expected(7)
    steps = {
        value for _, name, series, value, _ in collector.points if (name, series) == ("cookbook.step", "train/loss")
    }
    assert steps == set(range(7))
    assert read_json(other.path) == read_json(other.path) | {"ended": "ok", "error": ""}


def test_a_tailer_sends_while_the_run_goes_and_ends_with_it(tmp_path, collector):
    run = make_run(tmp_path / "run")
    path = run.folder / "workers/rank0-here-100.jsonl"
    tailer = Tailer(collector.settings, run, "COOKBOOK_RUN")
    path.write_text("".join(lines_of(0, 3)))
    wait_for(lambda: received(collector) == expected(3))
    assert tailer.process.poll() is None
    path.write_text("".join(lines_of(0, 6)))
    assert tailer.finish("ok", 60, lambda: False) == []
    assert tailer.process.returncode == 0
    assert received(collector) == expected(6)


def test_a_sink_that_is_slow_or_down_at_the_end_costs_no_more_than_the_wait(tmp_path, collector):
    run = make_run(tmp_path / "run", status="ok")
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 3)))
    collector.seconds = 30.0
    tailer = Tailer(collector.settings, run, "COOKBOOK_RUN")
    wait_for(lambda: list((run.folder / "tracking").glob("otlp-*.json")))
    began = time.monotonic()
    ((kind, why),) = tailer.finish("ok", 1.0, lambda: False)
    assert time.monotonic() - began < 10
    assert kind == "otlp" and why == "it had not taken all within 1 s"
    assert tailer.process.poll() is not None
    assert received(collector) == []
    collector.seconds = 0.0
    (line,) = tracking.send(collector.settings, run.folder, run.content())
    assert received(collector) == expected(3) and collector.settings["endpoint"] in line
    assert "(0 points that it had not got)" in tracking.send(collector.settings, run.folder, run.content())[0]
    assert received(collector) == expected(3)


def test_a_tailer_whose_driver_is_gone_sends_the_rest_and_ends(tmp_path, collector):
    run = make_run(tmp_path / "run")
    tailer = Tailer(collector.settings, run, "COOKBOOK_RUN")
    wait_for(lambda: list((run.folder / "tracking").glob("otlp-*.json")))
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 3)))
    tailer.process.stdin.close()  # as the kernel does when the driver is killed
    assert tailer.process.wait(60) == 0
    assert received(collector) == expected(3)
    (path,) = (run.folder / "tracking").glob("otlp-*.json")
    assert read_json(path)["ended"] == "interrupted"


def test_a_run_that_has_ended_is_not_sent_to_what_only_shows_runs_that_go_on(tmp_path, collector):
    run = make_run(tmp_path / "run", status="failed", interrupted_by="SIGINT")
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 2)))
    live = {"kind": "prometheus", "port": None, **EVERY}
    with pytest.raises(UserError, match="this one has ended"):
        tracking.send(live, run.folder, run.content())
    both = {"kind": "several", "sinks": ["prometheus", "otlp"], "otlp": collector.settings, "prometheus": live}
    assert len(tracking.send(both, run.folder, run.content())) == 1
    assert received(collector) == expected(2)
    with FileLock(run.folder / ".driver.lock"), pytest.raises(UserError, match="this run goes on"):
        tracking.send(both, run.folder, run.content())


def test_a_run_folder_that_cannot_be_written_to_stops_no_feeder(tmp_path, collector, monkeypatch):
    run = make_run(tmp_path / "run")
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 2)))
    (run.folder / "tracking").write_text("a file where the folder should be")
    feeder = Feeder(collector.settings, run)
    assert not feeder.pump() and "FileExistsError" in feeder.error
    (run.folder / "tracking").unlink()
    assert feeder.pump() and received(collector) == expected(2)


def test_an_address_with_a_password_stays_out_of_the_run_folder(tmp_path):
    run = make_run(tmp_path / "run")
    settings = {"kind": "otlp", "endpoint": "http://me:s3cretword@127.0.0.1:9/v1/metrics", **EVERY}
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 1)))
    feeder = Feeder(settings, run)
    assert not feeder.pump() and feeder.error
    assert "s3cretword" not in feeder.path.read_text() and "me:***@" in feeder.path.read_text()
    assert tracking.addresses(settings) == [("otlp", "http://me:***@127.0.0.1:9/v1/metrics")]


@pytest.fixture
def endpoint(tmp_path):
    """A feeder of a Prometheus endpoint over a small run, and its address."""
    run = make_run(tmp_path / "run")
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 5)))
    more = [
        {"event": "progress", "time": BEGAN + 3, "done": 3, "total": 12, "text": ""},
        {"event": "checkpoint", "time": BEGAN + 4, "path": "x", "epoch": 0, "step": 2},
        {"event": "system", "time": BEGAN + 5, "cpu_percent": 12.5, "memory_percent": 50.0},
    ]
    lines = [*lines_of(1, 3), *(json.dumps(event) + "\n" for event in more)]
    (run.folder / "workers/rank1-here-101.jsonl").write_text("".join(lines))
    feeder = Feeder({"kind": "prometheus", "port": None, **EVERY}, run)
    assert feeder.pump(), feeder.error
    yield feeder.sink.state["address"]
    feeder.sink.close()


def scraped(address):
    """{(name, labels but those of the run): value} of the endpoint's text."""
    from prometheus_client.parser import text_string_to_metric_families as families

    found = {}
    for family in families(requests.get(address, timeout=10).text):
        for sample in family.samples:
            labels = frozenset((key, value) for key, value in sample.labels.items() if key not in ("recipe", "run"))
            found[sample.name, labels] = sample.value
    return found


def test_the_prometheus_endpoint_says_what_the_record_says(endpoint):
    found = scraped(endpoint)
    of_rank = {rank: frozenset({("rank", f"rank_{rank}"), ("host", "here")}) for rank in (0, 1)}
    assert found["cookbook_rank_steps", of_rank[0]] == 5 and found["cookbook_rank_steps", of_rank[1]] == 3
    assert found["cookbook_rank_last_step_timestamp_seconds", of_rank[1]] == BEGAN + 3
    assert found["cookbook_metric", frozenset({("name", "train/loss"), ("unit", "")})] == 0.2
    assert found["cookbook_progress_ratio", frozenset()] == 0.25
    assert found["cookbook_node", frozenset({("name", "cpu_percent"), ("host", "here")})] == 12.5
    assert found["cookbook_workers", frozenset({("state", "working")})] == 2
    assert {name for name, _ in found} == set(prometheus.NAMES)
    assert endpoint.startswith("http://127.0.0.1:")


def test_each_name_of_the_dashboard_is_one_of_the_endpoint(endpoint):
    text = (ROOT / "infra/grafana/cookbook.json").read_text()
    board = json.loads(text)
    labels = {}
    for name, found in scraped(endpoint):
        labels.setdefault(name, {"recipe", "run"}).update(key for key, _ in found)
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert len(expressions) > 12
    for expression in expressions:
        names = re.findall(r"\bcookbook_\w+", expression)
        assert names and set(names) <= labels.keys(), expression
        for name, selector in re.findall(r"\b(cookbook_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= labels[name], expression
    # One that the endpoint lacks would be seen.
    assert not {"cookbook_loss"} & labels.keys()


class Trainer(BaseHTTPRequestHandler):
    """The status server of Kubeflow Trainer, as its proposal and its documentation describe it."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, self.headers["Authorization"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    certificate, key = self_signed(tmp_path)
    (tmp_path / "token").write_text("first\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Trainer) as server:
        server.got, server.token = [], tmp_path / "token"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs/one/status"
        monkeypatch.setenv(kubeflow.ADDRESS, f"https://127.0.0.1:{server.server_port}{path}")
        monkeypatch.setenv(kubeflow.CERTIFICATE, str(certificate))
        monkeypatch.setenv(kubeflow.TOKEN, str(server.token))
        yield server
        server.shutdown()


def self_signed(folder):
    """(certificate, key) for 127.0.0.1, as files."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trainer")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    (folder / "key.pem").write_bytes(text)
    return folder / "ca.crt", folder / "key.pem"


def test_a_trainjob_gets_progress_metrics_and_the_end(tmp_path, trainer):
    run = make_run(tmp_path / "run")
    progress = json.dumps({"event": "progress", "time": BEGAN + 5, "done": 5, "total": 20, "text": ""}) + "\n"
    path = run.folder / "workers/rank0-here-100.jsonl"
    path.write_text("".join(lines_of(0, 5)) + progress)
    settings = {"kind": "kubeflow", **EVERY}
    tracking.check(settings)
    feeder = Feeder(settings, run)
    assert feeder.pump(), feeder.error
    trainer.token.write_text("second\n")  # Kubernetes renews it while the job runs
    assert feeder.end("ok")
    (path, first, body), (_, second, last) = trainer.got
    assert path.endswith("/trainjobs/one/status")
    assert (first, second) == ("Bearer first", "Bearer second")
    status = body["trainerStatus"]
    datetime.datetime.fromisoformat(status.pop("lastUpdatedTime"))
    metrics = [{"name": "train/loss", "value": "0.2"}]
    assert status == {"progressPercentage": 25, "estimatedRemainingSeconds": 15, "metrics": metrics}
    assert last["trainerStatus"]["progressPercentage"] == 100


def test_a_failed_run_is_not_said_to_be_done(tmp_path, trainer):
    run = make_run(tmp_path / "run")
    progress = json.dumps({"event": "progress", "time": BEGAN + 5, "done": 20, "total": 20, "text": ""}) + "\n"
    (run.folder / "workers/a.jsonl").write_text("".join(lines_of(0, 5)) + progress)
    feeder = Feeder({"kind": "kubeflow", **EVERY}, run)
    assert feeder.pump() and feeder.end("failed")
    assert trainer.got[-1][2]["trainerStatus"]["progressPercentage"] == 99


def test_outside_of_a_trainjob_kubeflow_is_refused(monkeypatch):
    monkeypatch.delenv(kubeflow.ADDRESS, raising=False)
    with pytest.raises(UserError, match=f"{kubeflow.ADDRESS}.* is not set"):
        tracking.check({"kind": "kubeflow"})
    for name in (kubeflow.ADDRESS, kubeflow.CERTIFICATE, kubeflow.TOKEN):
        monkeypatch.setenv(name, "http://there")
    with pytest.raises(UserError, match="expected https"):
        tracking.check({"kind": "kubeflow"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "mlflo"}, "there are: none, several, kubeflow, mlflow, otlp, prometheus, tensorboard"),
        ({"kind": "several", "sinks": ["mlflw"], "mlflow": {}}, "'mlflw' is unknown; there are: mlflow"),
        ({"kind": "several", "sinks": [], "mlflow": {}}, "name one of mlflow"),
        ({"kind": "otlp", "endpoint": "127.0.0.1:4318"}, "expected http://HOST:PORT/v1/metrics"),
        ({"kind": "otlp", "endpoint": "http://127.0.0.1:4318"}, "expected http://HOST:PORT/v1/metrics"),
        ({"kind": "otlp", "endpoint": "http://here:4317/v1/metrics"}, "port 4317 is the one for gRPC, 4318 is HTTP's"),
        ({"kind": "otlp", "endpoint": "http://[::1/v1/metrics"}, "is no address: Invalid IPv6 URL"),
        ({"kind": "otlp", "endpoint": "http://here:99999/v1/metrics"}, "is no address: Port out of range"),
        ({"kind": "otlp", "endpoint": "http://here and/there"}, "is no address: expected http://HOST:PORT"),
        ({"kind": "mlflow", "uri": "http://[::1"}, "tracking.uri=http://[::1 is no address"),
        ({"kind": "mlflow", "uri": "http:/here:5000"}, "is no address: expected http://HOST:PORT"),
        ({"kind": "mlflow", "uri": "http://a..b"}, "no MLflow server answers there"),
        ({"kind": "mlflow", "uri": "HTTP://127.0.0.1:9"}, "no MLflow server answers there"),
        ({"kind": "mlflow", "uri": "sqlite:///"}, "names no file: sqlite:///FOLDER/mlflow.db"),
        ({"kind": "mlflow", "uri": "sqlite://mlflow.db"}, "names no file: sqlite:///FOLDER/mlflow.db"),
        ({"kind": "mlflow", "uri": None}, "names no store that MLflow can write"),
    ],
)
def test_a_tracker_that_does_not_exist_is_refused(settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        tracking.check(settings)


def test_a_port_that_is_taken_is_refused(collector):
    with pytest.raises(UserError, match="is taken"):
        prometheus.Sink.check({"port": collector.server_port})


@pytest.mark.parametrize(
    ("status", "interrupted_by", "ending"),
    [
        ("ok", "", "ok"),
        ("failed", "", "failed"),
        ("failed", "SIGINT", "interrupted"),
        ("preempted", "", "interrupted"),
        ("running", "", "interrupted"),  # its driver was killed
    ],
)
def test_how_a_run_has_ended(status, interrupted_by, ending):
    assert sinks.ending_of({"status": status, "interrupted_by": interrupted_by}) == ending
    assert ending in mlflow_sink.STATUS


def test_several_sinks_have_their_own_settings():
    from cookbook.settings import compose_tracking

    words = ["tracking=several", "tracking.sinks=[otlp,prometheus]", "tracking.otlp.endpoint=http://there/v1/metrics"]
    one, two = sinks.chosen(compose_tracking("pytorch", words))
    assert (one["kind"], one["endpoint"], one["every_seconds"]) == ("otlp", "http://there/v1/metrics", 5.0)
    assert (two["kind"], two["port"], two["every_seconds"]) == ("prometheus", 9464, 1.0)
    assert all(one["wait_seconds"] == 60.0 for one in (one, two))


@pytest.fixture
def watched(tmp_path):
    run = make_run(tmp_path / "run", command="make <b>")
    (run.folder / "workers/rank0-here-100.jsonl").write_text("".join(lines_of(0, 5)))
    (run.folder / "workers/rank1-here-101.jsonl").write_text("".join(lines_of(1, 3)))
    with watch.server(run.folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield run.folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_live_page_shows_rank_step_rate_and_curve(watched):
    folder, address = watched
    answer = requests.get(address, timeout=30)
    page = answer.text
    rows = re.findall(r"<tr><td>(rank \d)</td>(.*?)</tr>", page)
    cells = {rank: re.findall(r">([^<>]*)</td>", rest) for rank, rest in rows}
    assert cells["rank 0"][:4] == ["1", "5", "5", "1"] and cells["rank 1"][:3] == ["1", "3", "3"]
    since = float(cells["rank 1"][4].removesuffix(" s"))
    assert since == pytest.approx(time.time() - BEGAN - 3, abs=60)
    assert 'aria-label="train/loss: 0.2 at step 4"' in page and page.count("<polyline") == 1
    assert "make &lt;b&gt;" in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    with open(folder / "workers/rank1-here-101.jsonl", "a") as file:
        file.write("".join(lines_of(1, 2, first=5)[1:]))
    assert "train/loss: 0.1429 at step 6" in requests.get(address, timeout=30).text


def test_the_live_page_becomes_the_report(watched):
    folder, address = watched
    (folder / "report.html").write_text("<main>the report</main>")
    assert "the report" not in requests.get(address, timeout=30).text
    (folder / "run.json").write_text(json.dumps(run_folder.load(folder) | {"status": "failed"}))
    assert requests.get(address, timeout=30).text == "<main>the report</main>"
    assert requests.get(address + "status", timeout=30).text == "failed"


def test_the_live_page_is_for_this_machine_only(watched):
    _, address = watched
    assert requests.get(address, headers={"Host": "evil.example:80"}, timeout=30).status_code == 403
    assert requests.get(address + "../run.json", timeout=30).status_code == 404


def test_make_watch_says_its_address_and_ends_with_ctrl_c(tmp_path):
    run = make_run(tmp_path / "run")
    argv = [sys.executable, "-m", "cookbook.tools.watch", str(run.folder), ""]
    process = subprocess.Popen(argv, cwd=ROOT, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
    assert "No worker has started yet" in requests.get(address, timeout=60).text
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


@pytest.mark.parametrize(
    ("run", "port", "said"), [("nowhere", "", "expected the folder of a run"), ("", "x", "a number")]
)
def test_make_watch_refuses_what_it_cannot_show(run, port, said):
    with pytest.raises(UserError, match=said):
        watch.main([run, port])


@pytest.fixture(scope="module")
def mlflow_python():
    """The Python of an environment with a whole MLflow: the driver's has the client only."""
    return python_of("tracking-tests", ROOT / "tests/tracking/requirements.txt")


# MLflow then starts no processes for jobs that nobody gives it.
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Program:
    """A server in a session of its own, that can be killed and started again."""

    def __init__(self, argv, address, folder):
        self.argv, self.address, self.log = [str(word) for word in argv], address, folder / "server.log"
        self.start()

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                self.argv, cwd=self.log.parent, env=CLEAN | LEAN, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.is_up, 900)  # it imports much

    def is_up(self):
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return requests.get(self.address, timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def mlflow_server(mlflow_python, tmp_path):
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    where = f"http://127.0.0.1:{port}"
    argv = [mlflow_python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1]
    argv += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", folder / "artifacts"]
    program = Program(argv, f"{where}/health", folder)
    program.where = where
    yield program
    program.kill()


def history(client, run_id, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def the_run(client, experiment):
    """The only run of the experiment that is nobody's child, and its children."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (run,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return run, [run for run in found if "mlflow.parentRunId" in run.data.tags]


@pytest.mark.full
def test_an_mlflow_server_that_is_killed_in_the_middle_of_a_run_has_all_of_it_at_the_end(tmp_path, mlflow_server):
    from mlflow import MlflowClient

    words = ["recipe=pytorch", "scale=smoke", "scale.max_steps=null", "recipe.num_epochs=300", "tracking=mlflow"]
    words += [f"tracking.uri={mlflow_server.where}", "tracking.every_seconds=0.5", "tracking.wait_seconds=300"]
    driver = Driver(*words, output_root=tmp_path / "out")

    def num_losses():
        return sum(event.get("name") == "train/loss" and event["event"] == "metric" for event in driver.events())

    def sent():
        (path,) = (tmp_path / "out/pytorch/latest/tracking").glob("mlflow-*.json")
        return sum(size for _, size in read_json(path)["place"].values())

    driver.wait_until(lambda: num_losses() >= 4 and sent() > 0)
    mlflow_server.kill()
    at_the_kill = num_losses()
    driver.wait_until(lambda: num_losses() >= at_the_kill + 8)
    missed = sent()
    mlflow_server.start()
    driver.wait_until(lambda: sent() > missed)  # while the run goes
    status, output = driver.end()
    assert status == 0 and "could not be sent" not in output, output
    assert driver.no_process_left()
    content, folder = latest(tmp_path / "out", "pytorch")
    client = MlflowClient(mlflow_server.where)
    run, _ = the_run(client, "cookbook/pytorch")
    points = Tail(folder).read(10**9).points
    assert len(losses_of(points)) == 300
    assert losses_of(points) == [tuple(point) for point in content["curves"]["train/loss"]]
    assert history(client, run.info.run_id, "train/loss") == losses_of(points)
    names = {point.path for point in points}
    assert {"rank_0/steps_per_second", "rank_1/steps_per_second"} <= names
    assert names <= run.data.metrics.keys()
    for name in names:
        mine = sorted((point.step, point.value) for point in points if point.path == name)
        assert history(client, run.info.run_id, name) == mine
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/eval/accuracy"] == content["objective"]["value"]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert run.data.params["global_batch_size"] == str(settings["global_batch_size"])
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {"run.json", "report.html"}


def losses_of(points):
    return sorted((point.step, point.value) for point in points if point.name == "train/loss")


@pytest.mark.full
def test_trials_and_the_members_of_a_sweep_are_child_runs(tmp_path):
    from mlflow import MlflowClient

    store = {"kind": "mlflow", "uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "search", **EVERY}
    run = make_run(tmp_path / "out/ray_tune/one")
    trials = [
        {"event": "trial", "time": BEGAN + 9, "phase": "random-0", "id": f"t{number}", "epochs": [1, 2], "score": score}
        for number, score in enumerate((0.5, 0.75))
    ]
    lines = [*lines_of(0, 2, role="driver"), *(json.dumps(trial) + "\n" for trial in trials)]
    (run.folder / "workers/a.jsonl").write_text("".join(lines))
    feeder = Feeder(store, run)
    assert feeder.pump() and feeder.end("failed"), feeder.error
    client = MlflowClient(store["uri"])
    parent, children = the_run(client, "search")
    assert parent.info.status == "FAILED"
    assert {(one.data.params["trial"], one.data.metrics["score"]) for one in children} == {("t0", 0.5), ("t1", 0.75)}
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parent.info.run_id}
    # Nothing is there twice when all is sent again by somebody who knows nothing of it.
    shutil.rmtree(run.folder / "tracking")
    again = Feeder(store, run)
    assert again.pump() and again.end("failed"), again.error
    same, more = the_run(client, "search")
    assert same.info.run_id == parent.info.run_id and len(more) == 2
    # Two members of a sweep, of which the second one fails.
    for number, status in enumerate(("ok", "failed")):
        member = make_run(tmp_path / f"out/pytorch/{number}")
        (member.folder / "workers/a.jsonl").write_text("".join(lines_of(0, 2)))
        feeder = Feeder(store | {"experiment": "sweep"}, Run(member.folder, "pytorch", sweep="/out/sweeps/one"))
        assert feeder.pump() and feeder.end(status), feeder.error
    sweep, members = the_run(client, "sweep")
    assert {one.info.status for one in members} == {"FINISHED", "FAILED"}
    assert {one.data.tags["mlflow.parentRunId"] for one in members} == {sweep.info.run_id}
    assert (sweep.info.run_name, sweep.info.status) == ("sweep one", "FINISHED")


@pytest.fixture
def prometheus_server(tmp_path, endpoint):
    if not shutil.which("prometheus"):
        skip("prometheus", "prometheus is missing: apt-get install prometheus")
    folder, port = tmp_path / "prometheus", free_port()
    folder.mkdir()
    config = yaml.safe_load((ROOT / "infra/grafana/prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    target = endpoint.removeprefix("http://").removesuffix("/metrics")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    where = f"http://127.0.0.1:{port}"
    program = Program([*argv, f"--web.listen-address=127.0.0.1:{port}"], f"{where}/-/ready", folder)
    yield where
    program.kill()


@pytest.mark.full
def test_prometheus_reads_the_endpoint_and_answers_the_dashboard(prometheus_server):
    def ask(expression):
        answer = requests.get(f"{prometheus_server}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    wait_for(lambda: ask("cookbook_rank_steps"))
    by_rank = {one["metric"]["rank"]: float(one["value"][1]) for one in ask("cookbook_rank_steps")}
    assert by_rank == {"rank_0": 5, "rank_1": 3}
    board = json.loads((ROOT / "infra/grafana/cookbook.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    wait_for(lambda: ask("count_over_time(cookbook_rank_rows[1m]) > 1"))  # a rate needs two points
    empty = [one for one in expressions if not ask(one.replace("$recipe", ".*").replace("$run", ".*"))]
    # The made record has no metric but the loss, and no memory in use.
    assert [re.search(r"name!?[=~]+\"([^\"]*)", one)[1] for one in empty] == [".*loss.*|seconds/.*"]
    (behind,) = [one for one in expressions if "scalar" in one]
    found = ask(behind.replace("$recipe", ".*").replace("$run", ".*"))
    assert {one["metric"]["rank"]: float(one["value"][1]) for one in found} == {"rank_0": 0, "rank_1": 2}


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 400])
def test_the_live_page_fits_a_browser_and_renews_itself(tmp_path, watched, width):
    if not shutil.which("chromium"):
        skip("chromium", "chromium is missing: apt-get install chromium")
    folder, address = watched
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    argv += [f"--window-size={width},1400", "--virtual-time-budget=9000"]
    shot = subprocess.run(
        [*argv, f"--screenshot={tmp_path}/page.png", address], capture_output=True, text=True, timeout=300
    )
    assert (tmp_path / "page.png").exists(), shot.stderr
    with open(folder / "workers/rank0-here-100.jsonl", "a") as file:
        file.write("".join(lines_of(0, 2, first=5)[1:]))
    page = subprocess.run([*argv, "--dump-dom", address], capture_output=True, text=True, timeout=300).stdout
    assert "train/loss: 0.1429 at step 6" in page and 'id="gone" class="reason" hidden' in page
