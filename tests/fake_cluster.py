"""A cluster's two APIs (Kubernetes, Kubeflow Pipelines) on loopback, for the calls that the kubeflow recipe
makes, and its operators.

It answers as the real ones do, writes down every request, and *does* what the objects say: a TrainJob's command is
started once per node with the variables that Kubeflow Trainer sets, a trial's for each point of the grid, a service's
server; a submitted pipeline's steps run by kfp's local runner, with these APIs around them. What `/recipe` is in the
image, is the recipe's folder here.
"""

import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.helpers import free_port

RUN_PIPELINE = """
import json, sys
from kfp import components, local
package, root, arguments = sys.argv[1:]
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
components.load_component_from_file(package)(**json.loads(arguments))
"""


class FakeCluster:
    """Use as a context manager; `url`: of both APIs; `requests`: [(method, path, body), ...]; `objects`:
    {(plural, name): object}."""

    def __init__(self, python, recipe, folder):
        self.python, self.recipe, self.folder = Path(python), Path(recipe), Path(folder)
        self.requests, self.objects, self.processes, self.run, self.refuse = [], {}, [], {}, {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                cluster.requests.append((self.command, self.path, body))
                status, content = cluster.respond(self.command, *self.path.partition("?")[::2], body)
                raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *words):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        }
        (self.folder / "kubeconfig").write_text(json.dumps(kubeconfig))
        self.environment = {"KUBECONFIG": str(self.folder / "kubeconfig"), "POLL_SECONDS": "0.2"}
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        for process in self.processes:
            process.kill()
            process.wait()

    def respond(self, method, path, query, body):
        if (method, path) in self.refuse:
            return self.refuse[method, path]
        if path == "/apis/v2beta1/healthz":
            return 200, {"multi_user": True}
        if path.rstrip("/") == "/version":
            unsaid = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0", **dict.fromkeys(unsaid, "")}
        if path == "/apis/v2beta1/experiments":
            return (200, {"experiments": []}) if method == "GET" else (200, {**body, "experiment_id": "experiment-1"})
        if path == "/apis/v2beta1/runs" and method == "POST":
            return 200, self.start_pipeline(body)
        if path.startswith("/apis/v2beta1/runs/"):
            return 200, {**self.run["about"], "state": self.state_of_pipeline()}
        if path.endswith("/pods"):
            assert query == "labelSelector=pipeline%2Frunid%3Drun-1"
            status = {"phase": {"RUNNING": "Running"}.get(self.state_of_pipeline(), "Succeeded")}
            return 200, {"items": [{"metadata": {"name": "pod-1"}, "status": status}]}
        if path.endswith("/pods/pod-1/log"):
            # kfp's local runner sets in what a step says; a pod's log has it as it was said.
            return 200, "".join(line.lstrip() for line in self.run["log"].read_text().splitlines(keepends=True))
        if found := re.fullmatch(r"/apis/([^/]+)/([^/]+)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?", path):
            return self.custom_object(method, *found.groups(), body)
        return 404, {"message": f"nothing at {path}"}

    def custom_object(self, method, group, version, namespace, plural, name, body):
        key = plural, name or body["metadata"]["name"]
        if method == "POST":
            if key in self.objects:
                return 409, {"message": f"{plural} {key[1]} already exists"}
            assert body["apiVersion"] == f"{group}/{version}" and body["metadata"]["namespace"] == namespace
            self.objects[key] = body
            threading.Thread(target=self.operate, args=key, daemon=True).start()
            return 201, body
        if key not in self.objects:
            return 404, {"message": f"{plural} {key[1]} not found"}
        if method == "DELETE":
            del self.objects[key]
            return 200, {"kind": "Status", "status": "Success"}
        if method == "PATCH":
            self.objects[key].update(body)
        return 200, self.objects[key]

    def start_pipeline(self, body):
        package = self.folder / "submitted.yaml"
        spec = body["pipeline_spec"]
        package.write_text(json.dumps(spec.get("pipeline_spec", spec)))
        self.run = {
            "log": self.folder / "pod.log",
            "about": {"run_id": "run-1", "experiment_id": "experiment-1", "display_name": body["display_name"]},
        }
        arguments = json.dumps(body["runtime_config"]["parameters"])
        argv = [self.python, "-c", RUN_PIPELINE, package, self.folder / "artifacts", arguments]
        with open(self.run["log"], "w") as log:
            self.run["process"] = self.start(argv, {"RUN_ID": "run-1", "TMPDIR": str(self.folder)}, log)
        return {**self.run["about"], "state": "PENDING"}

    def state_of_pipeline(self):
        status = self.run["process"].poll()
        return "RUNNING" if status is None else "FAILED" if status else "SUCCEEDED"

    def start(self, argv, environment, output):
        own = {**os.environ, **self.environment, "PYTHONPATH": str(self.recipe), "OMP_NUM_THREADS": "1", **environment}
        own["PATH"] = f"{self.python.parent}{os.pathsep}{own['PATH']}"
        words = [str(word).replace("/recipe/", f"{self.recipe}/") for word in argv]
        process = subprocess.Popen(words, env=own, stdout=output, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def operate(self, plural, name):
        """Does what the object asks for, and says in its status how that went."""
        made = self.objects[plural, name]
        with open(self.folder / f"{plural}.log", "w") as log:
            good, status = getattr(self, f"operate_{plural}")(made["spec"], log)
        if (plural, name) in self.objects:
            made["status"] = {**status, "conditions": [{"type": good, "status": "True"}] if good else []}

    def operate_trainjobs(self, spec, log):
        trainer = spec["trainer"]
        return self.torchrun([*trainer["command"], *trainer["args"]], trainer["numNodes"], log, "Complete")

    def operate_pytorchjobs(self, spec, log):
        replicas = spec["pytorchReplicaSpecs"]
        (container,) = replicas["Master"]["template"]["spec"]["containers"]
        count = sum(replica["replicas"] for replica in replicas.values())
        return self.torchrun(container["command"] + container["args"], count, log, "Succeeded")

    def torchrun(self, words, num_nodes, log, good):
        """The variables are those of Kubeflow Trainer's torch plugin, and of the Training Operator."""
        common = {
            "PET_NNODES": num_nodes,
            "PET_NPROC_PER_NODE": 1,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": free_port(),
        }
        common["GLOO_SOCKET_IFNAME"] = "lo"
        nodes = [
            self.start(words, {key: str(value) for key, value in {**common, "PET_NODE_RANK": rank}.items()}, log)
            for rank in range(num_nodes)
        ]
        return (good if not any(node.wait() for node in nodes) else "Failed"), {}

    def operate_tfjobs(self, spec, log):
        worker = spec["tfReplicaSpecs"]["Worker"]
        (container,) = worker["template"]["spec"]["containers"]
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(worker["replicas"])]
        started = []
        for index in range(worker["replicas"]):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            started.append(self.start(container["command"] + container["args"], {"TF_CONFIG": json.dumps(task)}, log))
        return ("Succeeded" if not any(process.wait() for process in started) else "Failed"), {}

    def operate_experiments(self, spec, log):
        (parameter,) = spec["parameters"]
        (reference,) = spec["trialTemplate"]["trialParameters"]
        (container,) = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
        metric, best = spec["objective"]["objectiveMetricName"], None
        for value in parameter["feasibleSpace"]["list"]:
            place = "${trialParameters." + reference["name"] + "}"
            words = [word.replace(place, value) for word in container["command"] + container["args"]]
            path = self.folder / f"trial-{value}.log"
            with open(path, "w") as output:
                self.start(words, {}, output).wait()
            score = float(re.search(rf"{metric}=(\S+)", path.read_text()).group(1))
            best = max(best or (score, value), (score, value))
        return "Succeeded", {
            "currentOptimalTrial": {
                "parameterAssignments": [{"name": reference["reference"], "value": best[1]}],
                "observation": {
                    "metrics": [{"name": metric, "max": str(best[0]), "min": str(best[0]), "latest": str(best[0])}]
                },
            }
        }

    def operate_inferenceservices(self, spec, log):
        (container,) = spec["predictor"]["containers"]
        port = str(free_port())
        words = [
            "127.0.0.1" if word == "0.0.0.0" else port if word == "8080" else word
            for word in container["command"] + container["args"]
        ]
        server = self.start(words, {}, log)
        path = container["readinessProbe"]["httpGet"]["path"]
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1)
                return "Ready", {"address": {"url": f"http://127.0.0.1:{port}"}}
            except OSError:
                time.sleep(0.2)
        return None, {}
