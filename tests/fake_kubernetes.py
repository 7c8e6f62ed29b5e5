"""A Kubernetes cluster of this machine: its API on loopback, and the systems' operators, which
*do* what a run's objects say.

A pod is a process in namespaces of its own (network, mounts, host name, processes): its command runs as it is written,
with the image's folders and the pod's volumes where they belong. The operators set what the real ones set; how each
does it is said at its method.
"""

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import psutil

from cookbook.pods import QUEUE_LABEL
from tests.helpers import ROOT

# Everything in a folder OWN, then over the places where a pod sees it; /tmp comes last, as OWN is likely there.
POD = """
set -e
hostname "$NAME"
mount --make-rprivate /
mkdir -p "$OWN/etc" && mount -t tmpfs none "$OWN/etc" && cp -a /etc/. "$OWN/etc/" && cp "$HOSTS" "$OWN/etc/hosts"
echo "nameserver 127.0.0.1" > "$OWN/etc/resolv.conf"  # refuses at once: the machine's own cannot be reached from there
bind() { mkdir -p "$2"; mount --rbind "$1" "$2"; }
bind "$REPOSITORY/recipes/$RECIPE" "$OWN/srv/recipe"
bind "$REPOSITORY/data" "$OWN/srv/data"
bind "$PYTHON_HOME" "$OWN/srv/venv"
VOLUMES
mkdir -p "$OWN/tmp/$REPOSITORY" && mount --rbind "$REPOSITORY" "$OWN/tmp/$REPOSITORY"
case "$REPOSITORY" in
    /tmp/*) mkdir -p "$OWN/tmp/${REPOSITORY#/tmp/}"; mount --rbind "$REPOSITORY" "$OWN/tmp/${REPOSITORY#/tmp/}";;
esac
mount --rbind "$OWN/etc" /etc; mount --rbind "$OWN/srv" /srv
cd /; mount --rbind "$OWN/tmp" /tmp; cd /srv/recipe
exec "$@"
"""


class FakeKubernetes:
    """Use as a context manager. `hosts`: what infra/local has brought up, one for each pod of
    a run; `python`: of the recipe.

    `objects`: {(plural, name): object}; `made`: all that were ever made; `refuse`: {(method, path): (status, answer)}.
    """

    def __init__(self, hosts, python, recipe, folder):
        self.hosts, self.python, self.recipe, self.folder = hosts, Path(python), recipe, Path(folder)
        self.objects, self.made, self.pods, self.refuse, self.requests = {}, [], {}, {}, []
        self.claims, self.waiting = {"cookbook-shared"}, None
        self.queues = {}  # of Kueue: name -> an event, which admits what waits
        (self.folder / "shared").mkdir(parents=True)

    def __enter__(self):
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                path, _, query = self.path.partition("?")
                cluster.requests.append((self.command, path))
                if path.endswith("/log"):
                    return self.stream(path.split("/")[-2])
                if path.endswith("/exec"):
                    return self.run_in(path.split("/")[-2], parse_qs(query)["command"])
                status, content = cluster.refuse.get((self.command, path)) or cluster.respond(
                    self.command, path, query, body
                )
                raw = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def stream(self, name):
                """In chunks, as the real one: each is there when it is written."""
                pod = cluster.pods[name]
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                with open(pod["log"], "rb") as log:
                    while (chunk := log.read(65536)) or pod["process"].poll() is None:
                        self.write_chunk(chunk)
                        time.sleep(0 if chunk else 0.05)
                    self.write_chunk(log.read())
                self.wfile.write(b"0\r\n\r\n")

            def run_in(self, name, argv):
                """As the real one: a WebSocket, whose messages begin with the number of a stream."""
                key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
                self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
                self.end_headers()
                text = b""
                while text.count(b"\n") < 2:  # what the driver's only command reads
                    text += self.read_message()[1:]
                done = subprocess.run([*cluster.into(name), *argv], input=text, capture_output=True)
                for stream, content in ((b"\1", done.stdout), (b"\2", done.stderr), (b"\3", b'{"status": "Success"}')):
                    self.write_message(0x82, stream + content)
                self.write_message(0x88, b"")
                self.close_connection = True

            def read_message(self):
                _, length = self.rfile.read(2)
                length &= 0x7F
                if length > 125:
                    length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
                mask = self.rfile.read(4)
                return bytes(byte ^ mask[place % 4] for place, byte in enumerate(self.rfile.read(length)))

            def write_message(self, head, content):
                self.wfile.write(bytes([head, 127]) + len(content).to_bytes(8, "big") + content)

            def write_chunk(self, content):
                if content:
                    self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

            protocol_version = "HTTP/1.1"
            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *words):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        }
        (self.folder / "kubeconfig").write_text(json.dumps(kubeconfig))
        self.environment = {"KUBECONFIG": str(self.folder / "kubeconfig")}
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        for name in list(self.pods):
            self.end_pod(name)

    # The API

    def respond(self, method, path, query, body):
        if path.rstrip("/") == "/version":
            unsaid = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0", **dict.fromkeys(unsaid, "")}
        found = re.fullmatch(r"/(?:api|apis)/((?:[^/]+/)?v\w+)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?", path)
        if not found:
            return 404, {"message": f"nothing at {path}"}
        version, namespace, plural, name = found.groups()
        if plural == "persistentvolumeclaims":
            return (
                (200, {}) if name in self.claims else (404, {"message": f'persistentvolumeclaims "{name}" not found'})
            )
        if plural == "localqueues":
            return (200, {}) if name in self.queues else (404, {"message": f'localqueues "{name}" not found'})
        label = unquote(parse_qs(query).get("labelSelector", [""])[0]).partition("=")
        if plural == "pods":
            return 200, {
                "items": [self.about(name) for name in self.pods if self.pods[name]["labels"].get(label[0]) == label[2]]
            }
        if method == "GET" and not name:
            own = [made for (kind, _), made in self.objects.items() if kind == plural]
            return 200, {
                "items": [made for made in own if made["metadata"].get("labels", {}).get(label[0]) == label[2]]
            }
        key = plural, name or body["metadata"]["name"]
        if method == "POST":
            if key in self.objects:
                return 409, {"message": f'{plural} "{key[1]}" already exists'}
            assert (body["apiVersion"], body["metadata"]["namespace"]) == (version, namespace)
            if QUEUE_LABEL in body["metadata"].get("labels", {}):
                body["spec"]["suspend"] = True  # Kueue's webhook does so
            self.objects[key] = body
            self.made.append(body)
            if operator := getattr(self, f"operate_{plural}", None):
                threading.Thread(target=self.operate, args=(operator, body), daemon=True).start()
            return 201, body
        if key not in self.objects:
            return 404, {"message": f'{plural} "{key[1]}" not found'}
        if method == "DELETE":
            del self.objects[key]
            for pod in [pod for pod, about in self.pods.items() if about["owner"] == key[1]]:
                self.end_pod(pod)
            return 200, {"kind": "Status", "status": "Success"}
        return 200, self.objects[key]

    def about(self, name):
        pod = self.pods[name]
        status = None if self.waiting else pod["process"].poll()
        phase = "Pending" if self.waiting else "Running" if status is None else "Failed" if status else "Succeeded"
        states = [{"name": "one", "state": {"waiting": self.waiting} if self.waiting else {}}]
        return {
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "one"}]},
            "status": {"phase": phase, "containerStatuses": states},
        }

    # Pods

    def operate(self, operator, made):
        made["status"] = {}
        if made["spec"].get("suspend"):
            self.queues[made["metadata"]["labels"][QUEUE_LABEL]].wait()
            made["spec"]["suspend"] = False
        try:
            made["status"] = operator(made["metadata"]["name"], made["spec"])
        except Exception as error:  # whatever it is, the run must hear of it
            failed = {"type": "Failed", "status": "True", "message": f"the test's operator failed: {error!r}"}
            made["status"] = {
                "conditions": [failed],
                "jobDeploymentStatus": "Failed",
                "jobStatus": "Failed",
                "applicationState": {"state": "FAILED"},
            }

    def start_pod(self, name, template, owner, place, words=None, environment=None, mounts=(), alias=None):
        """Starts a pod's only container on host number `place`; with an alias it is another process in that pod."""
        (container,) = template["spec"]["containers"]
        words = words or [*container["command"], *container.get("args", [])]
        for first in template["spec"].get("initContainers", []):  # with the same volumes, and its own log's lines here
            words = ["sh", "-c", shlex.join([*first["command"], *first["args"]]) + ' && exec "$@"', "sh", *words]
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        own = self.folder / "pods" / name
        own.mkdir(parents=True, exist_ok=True)
        lines = [
            f'bind {shlex.quote(str(folder))} "$OWN"{path}'
            for path, folder in [
                *mounts,
                *((m["mountPath"], self.volume(volumes[m["name"]], own)) for m in container["volumeMounts"]),
            ]
            if path.startswith("/srv/") or path == "/etc/mpi"
        ]
        index = re.search(r"-(\d+)$", name)
        image = {"PATH": f"/srv/venv/bin:{os.environ['PATH']}", "JAVA_HOME": os.environ.get("JAVA_HOME", "")}
        image |= {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }  # who may make namespaces is root here
        variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        variables = (
            image | variables | ({"JOB_COMPLETION_INDEX": index.group(1)} if index else {}) | (environment or {})
        )
        variables |= {
            "OWN": str(own / "root"),
            "HOSTS": str(self.folder / "hosts"),
            "REPOSITORY": str(ROOT),
            "RECIPE": self.recipe,
            "NAME": name,
        }
        variables |= {"PYTHON_HOME": str(self.python.parent.parent)}
        argv = [
            "ip",
            "netns",
            "exec",
            self.hosts.namespace(place),
            "unshare",
            "-m",
            "-u",
            "-p",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
            "sh",
            "-c",
        ]
        argv += [POD.replace("VOLUMES", "\n".join(lines)), "sh", *map(str, words)]
        return self.start(alias or name, argv, owner, template, variables)

    def start_in(self, name, argv, owner, template, environment):
        """A process with a container's variables, by words that lead into its namespaces."""
        (container,) = template["spec"]["containers"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]} | environment
        return self.start(name, argv, owner, template, {"PATH": f"/srv/venv/bin:{os.environ['PATH']}", **variables})

    def start(self, name, argv, owner, template, variables):
        log = self.folder / f"{name}.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                argv, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.pods[name] = {"process": process, "log": log, "owner": owner, "labels": template["metadata"]["labels"]}
        return process

    def into(self, name):
        """The words that lead into a pod's namespaces."""
        outer = psutil.Process(self.pods[name]["process"].pid)
        (inner,) = [child for child in outer.children() if child.name() != "unshare"]
        enter = ["nsenter", f"--target={inner.pid}", "--mount", "--uts", "--pid", "--net", "--wdns=/srv/recipe", "--"]
        return [*enter, "env", f"PATH=/srv/venv/bin:{os.environ['PATH']}"]

    def volume(self, volume, own):
        """The folder of this machine that stands for a volume."""
        if "persistentVolumeClaim" in volume:
            return self.folder / "shared"
        folder = own / volume["name"]
        folder.mkdir(exist_ok=True)
        content = {}
        if "configMap" in volume:
            content = self.objects["configmaps", volume["configMap"]["name"]]["data"]
        elif "secret" in volume:
            secret = self.objects["secrets", volume["secret"]["secretName"]]["data"]
            content = {key: base64.b64decode(value).decode() for key, value in secret.items()}
        for key, text in content.items():
            (folder / key).write_text(text)
        return folder

    def name_hosts(self, *names):
        """The cluster's DNS: the first name is the first host's, and so on."""
        addresses = [line.split()[0] for line in (self.hosts.folder / "hosts").read_text().splitlines()[1:]]
        self.addresses = dict(zip(names, addresses, strict=False))
        lines = [f"{address} {name} {name.split('.')[0]}" for name, address in self.addresses.items()]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")

    def end_pod(self, name):
        self.end_process(name)
        self.pods.pop(name, None)
        shutil.rmtree(self.folder / "pods" / name, ignore_errors=True)  # its own volumes end with it

    def end_process(self, name):
        process = self.pods[name]["process"]
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # The operators

    def operate_jobs(self, name, spec):
        self.name_hosts(name)
        status = self.start_pod(name, spec["template"], name, 1).wait()
        return {
            "conditions": [
                {"type": "Failed" if status else "Complete", "status": "True", "message": f"exit status {status}"}
            ]
        }

    def operate_trainjobs(self, name, spec):
        """Kubeflow Trainer: torch gets PET_*; MPI a key, a host file with the launcher as its first node;
        others only their index."""
        runtime = self.objects["trainingruntimes", spec["runtimeRef"]["name"]]["spec"]
        jobs = {job["name"]: job["template"] for job in runtime["template"]["spec"]["replicatedJobs"]}
        policy, count = runtime["mlPolicy"], spec["trainer"]["numNodes"]
        nodes = [f"node-0-{index}" for index in range(count)]
        each = {job: made["spec"].get("completions", count) for job, made in jobs.items()}
        groups = [f"{job}-0-{index}" for job, number in each.items() for index in range(number)]
        kinds = ["launcher-0-0", *nodes[:-1]] if "mpi" in policy else groups
        pods = [f"{name}-{kind}" for kind in kinds]
        self.name_hosts(*(f"{pod}.{name}" for pod in pods))
        started, mounts = {}, []
        if "mpi" in policy:
            mounts = self.mpi_files(policy["mpi"], pods, name)
        for place, pod in reversed(list(enumerate(pods, 1))):
            kind = kinds[place - 1].partition("-")[0]
            template, environment, words = jobs[kind]["spec"]["template"], {}, None
            if (
                jobs[kind].get("metadata", {}).get("labels", {}).get("trainer.kubeflow.org/trainjob-ancestor-step")
                == "trainer"
            ):
                words = [*spec["trainer"]["command"], *spec["trainer"]["args"]]
                environment = {entry["name"]: entry["value"] for entry in spec["trainer"]["env"]}
            if "torch" in policy:
                torch = {
                    "NNODES": count,
                    "NPROC_PER_NODE": 1,
                    "NODE_RANK": place - 1,
                    "MASTER_ADDR": f"{pods[0]}.{name}",
                    "MASTER_PORT": 29400,
                }
                environment |= {f"PET_{key}": str(value) for key, value in torch.items()}
            started[pod] = self.start_pod(pod, template, name, place, words, environment, mounts)
            if kind == "node" and "mpi" in policy:
                time.sleep(1)  # dependsOn: Ready
        waited = [started[pods[0]]] if "mpi" in policy else list(started.values())
        while None in (statuses := [process.poll() for process in waited]) and not any(statuses):
            time.sleep(0.1)
        if any(statuses):  # a job of the set has failed, so the set has: the others are ended
            for pod in pods:
                self.end_process(pod)
        message = {
            "type": "Failed" if any(statuses) else "Complete",
            "status": "True",
            "message": f"exit statuses {statuses}",
        }
        return {"conditions": [message]}

    def mpi_files(self, policy, pods, name):
        folder = self.folder / "mpi"
        (folder / "etc").mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", folder / "id_rsa"], check=True)
        (folder / "ssh").mkdir()
        (folder / "ssh/authorized_keys").write_text((folder / "id_rsa.pub").read_text())
        shutil.copy(folder / "id_rsa", folder / "ssh/id_rsa")
        slots = policy["numProcPerNode"]
        (folder / "etc/hostfile").write_text("".join(f"{pod}.{name} slots={slots}\n" for pod in pods))
        return [(policy["sshAuthMountPath"], folder / "ssh"), ("/etc/mpi", folder / "etc")]

    def operate_rayjobs(self, name, spec):
        """KubeRay: a token, `ray start` with the groups' parameters on head and workers, the entry point
        by a shell on the head."""
        cluster = spec["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
        names = [f"{name}-head", *(f"{name}-workers-{index}" for index in range(workers["replicas"]))]
        self.name_hosts(*names)
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}

        def start(place, group, *more):
            words = ["ray", "start", "--block", "--node-ip-address", self.addresses[names[place - 1]], *more]
            words += [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
            return self.start_pod(names[place - 1], group["template"], name, place, words, environment)

        # This Ray has no job server (the image has: requirements-ray.txt), so the head goes without one.
        start(1, head, "--head", "--port", "6379", "--include-dashboard=false")
        self.wait_for_text(names[0], "Ray runtime started")
        for place in range(2, len(names) + 1):
            start(
                place, workers, "--address", f"{self.addresses[names[0]]}:6379"
            )  # gRPC asks a name server, not the hosts file
            self.wait_for_text(names[place - 1], "Ray runtime started")
        environment |= {"RAY_ADDRESS": f"{self.addresses[names[0]]}:6379"}
        # As the job server does it: another process in the head's own container.
        inside = str(psutil.Process(self.pods[names[0]]["process"].pid).children()[0].pid)
        words = [
            "nsenter",
            "--target",
            inside,
            "--mount",
            "--uts",
            "--net",
            "--pid",
            "bash",
            "-c",
            f"cd /srv/recipe; {spec['entrypoint']}",
        ]
        status = self.start_in(f"{name}-submitter", words, name, head["template"], environment).wait()
        return {
            "jobDeploymentStatus": "Failed" if status else "Complete",
            "jobStatus": "FAILED" if status else "SUCCEEDED",
            "message": "",
        }

    def operate_daskjobs(self, name, spec):
        """Dask's operator: a scheduler with a service, a pod for each worker, and the runner, which is
        told the scheduler's address."""
        cluster = spec["cluster"]["spec"]
        labelled = {"metadata": self.objects["daskjobs", name]["metadata"]}
        count = cluster["worker"]["replicas"]
        scheduler = f"{name}-scheduler.{labelled['metadata']['namespace']}.svc.cluster.local"
        self.name_hosts(scheduler, *(f"{name}-worker-{index}" for index in range(count)))
        self.start_pod(f"{name}-scheduler", {**labelled, "spec": cluster["scheduler"]["spec"]}, name, 1)
        self.wait_for_text(f"{name}-scheduler", "Scheduler at:")
        for index in range(count):
            self.start_pod(f"{name}-worker-{index}", {**labelled, "spec": cluster["worker"]["spec"]}, name, index + 2)
        # The runner has a pod of its own, and this machine's first host.
        status = self.start_pod(f"{name}-runner", {**labelled, "spec": spec["job"]["spec"]}, name, 1).wait()
        return {"jobStatus": "Failed" if status else "Successful"}

    def operate_sparkapplications(self, name, spec):
        """Spark's operator calls spark-submit, whose driver asks the API for executors. Here that part is a standalone
        cluster's: a worker on each executor's pod; the driver's pod runs spark-submit's PythonRunner with the
        application's file and arguments."""
        executor, driver = spec["executor"], spec["driver"]
        names = [f"{name}-driver", *(f"{name}-exec-{index}" for index in range(1, executor["instances"] + 1))]
        self.name_hosts(*names)
        secret = {
            "_SPARK_AUTH_SECRET": "not much of a secret",
            "SPARK_DAEMON_JAVA_OPTS": "-Dspark.authenticate=true -Dspark.network.crypto.enabled=true",
        }
        master = f"spark://{self.addresses[names[0]]}:7077"

        def start(place, side, words, alias=None):
            container = {"env": side["env"], "volumeMounts": side["volumeMounts"]}
            template = {
                "metadata": {"labels": side["labels"]},
                "spec": {"volumes": spec["volumes"], "containers": [container]},
            }
            own = secret | {
                "SPARK_LOCAL_IP": self.addresses[names[place - 1]],
                "PYSPARK_PYTHON": "/srv/venv/bin/python",
                "SPARK_WORKER_DIR": "/tmp",
            }
            return self.start_pod(names[place - 1], template, name, place, words, own, alias=alias)

        daemon = ["spark-class", "org.apache.spark.deploy"]
        start(
            1,
            driver,
            [
                daemon[0],
                f"{daemon[1]}.master.Master",
                "--host",
                self.addresses[names[0]],
                "--port",
                "7077",
                "--webui-port",
                "0",
            ],
            f"{name}-master",
        )
        self.wait_for_text(f"{name}-master", "I have been elected leader")
        for place in range(2, len(names) + 1):
            words = [
                daemon[0],
                f"{daemon[1]}.worker.Worker",
                "--host",
                self.addresses[names[place - 1]],
                "--webui-port",
                "0",
            ]
            start(place, executor, [*words, "--cores", executor["cores"], "--memory", executor["memory"], master])
            self.wait_for_text(names[place - 1], "Successfully registered with master")
        conf = spec["sparkConf"] | {
            "spark.authenticate.secret": secret["_SPARK_AUTH_SECRET"],
            "spark.executor.memory": executor["memory"],
            "spark.executor.cores": executor["cores"],
            "spark.executor.instances": executor["instances"],
            "spark.cores.max": executor["cores"] * executor["instances"],
            "spark.driver.host": self.addresses[names[0]],
        }
        assert spec["mainApplicationFile"].startswith("local://") and spec["type"] == "Python"
        words = [
            "spark-submit",
            "--master",
            master,
            *(word for key, value in conf.items() for word in ("--conf", f"{key}={value}")),
        ]
        status = start(
            1, driver, [*words, spec["mainApplicationFile"].removeprefix("local://"), *spec["arguments"]]
        ).wait()
        return {
            "applicationState": {
                "state": "FAILED" if status else "COMPLETED",
                "errorMessage": f"exit status {status}" if status else "",
            }
        }

    def wait_for_text(self, pod, text, seconds=300):
        deadline = time.monotonic() + seconds
        while text not in (said := self.pods[pod]["log"].read_text(errors="replace")):
            assert self.pods[pod]["process"].poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)
