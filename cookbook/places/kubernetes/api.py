"""The calls of Kubernetes' API that a run needs."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn, cast

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from cookbook import UserError
from cookbook.job import Settings
from cookbook.pods import RUN_LABEL, Object

GONE_SECONDS = 120  # for what was deleted to be gone
RETRY_SECONDS = 20  # for an operator's cache to know what was made a moment ago

# Objects that every system's run may have made, beside those of the system itself (`System.kubernetes_kinds`).
COMMON_KINDS = {"ConfigMap": "v1", "Secret": "v1", "Job": "batch/v1"}
JOB_ENDS = {"Complete": True, "Failed": False}  # state in a Job's status -> whether all went well


class Api:
    """The API of one cluster. Objects are asked for by their paths, so one method serves all kinds."""

    def __init__(self, cluster: Settings) -> None:
        """Raises UserError when the kubeconfig has no such cluster, or it does not answer."""
        try:
            self.client: client.ApiClient = config.new_client_from_config(context=cluster["context"])
            self.namespace: str = cluster["namespace"]
            client.VersionApi(self.client).get_code(_request_timeout=10)
        except config.ConfigException as error:
            raise UserError(f"cluster=kubernetes: no usable kubeconfig: {error}") from None
        except (HTTPError, ApiException) as error:
            why = reason_of(error) if isinstance(error, ApiException) else type(error).__name__
            raise UserError(
                f"cluster=kubernetes: {self.client.configuration.host} does not answer: {why}. "
                "Does `kubectl get nodes` work?"
            ) from None

    def ask(self, method: str, path: str, body: Object | None = None, label: str | None = None) -> Object:
        """The answer as plain data. Raises ApiException for a refusal, HTTPError where there is no answer."""
        request = self.client.param_serialize(
            method,
            path,
            query_params=[("labelSelector", label)] if label else [],
            body=body,
            auth_settings=["BearerToken"],
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
        )
        answer = self.client.call_api(*request, _request_timeout=60)
        text = answer.read().decode()
        if answer.status >= 400:
            raise ApiException(status=answer.status, reason=answer.reason, body=text)
        content: Object = json.loads(text)
        return content

    def path(self, api_version: str, kind: str) -> str:
        """Where the objects of a kind are asked for. The plural of every kind that is used here is regular."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        return f"{root}/namespaces/{self.namespace}/{kind.lower()}s"

    def path_of(self, made: Object) -> str:
        return f"{self.path(made['apiVersion'], made['kind'])}/{made['metadata']['name']}"

    def create(self, made: Object) -> Object:
        """Makes an object. Raises UserError when the API refuses it, or does not answer."""
        kind, name = made["kind"], made["metadata"]["name"]
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return self.ask("POST", self.path(made["apiVersion"], kind), made)
            except ApiException as error:
                # Trainer has a cache of the runtimes, and does not know at once one that was made a moment ago.
                if "must be created before" in reason_of(error) and time.monotonic() < deadline:
                    time.sleep(1)
                    continue
                self.refuse(kind, name, error)
            except HTTPError as error:
                raise UserError(f"{kind} {name} could not be made: {type(error).__name__}") from None

    def refuse(self, kind: str, name: str, error: ApiException) -> NoReturn:
        """Raises UserError with what the API said."""
        hint = (
            f"; is {kind}'s operator installed? (infra/kubernetes installs all of them)" if error.status == 404 else ""
        )
        raise UserError(f"{kind} {name} was refused: {reason_of(error)}{hint}") from None

    def delete(self, path: str) -> bool:
        """Deletes an object with all that belongs to it; returns whether it is gone.

        A server that does not answer is asked again.
        """
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        deadline, asked = time.monotonic() + GONE_SECONDS, False
        while time.monotonic() < deadline:
            try:
                if not asked:
                    self.ask("DELETE", path, options)
                    asked = True
                self.ask("GET", path)
            except ApiException as error:
                if error.status == 404:
                    return True
                if error.status in (401, 403):
                    return False
            except HTTPError:
                pass
            time.sleep(0.5)
        return False

    def pods(self, name: str) -> list[Object]:
        """The pods of the run of that name."""
        found = self.ask("GET", f"/api/v1/namespaces/{self.namespace}/pods", label=f"{RUN_LABEL}={name}")
        pods: list[Object] = found["items"]
        return pods

    def follow(self, pod: str, container: str) -> Iterator[str]:
        """The lines of a pod's log while they come, to the container's end.

        Raises HTTPError when the connection breaks.
        """
        text = client.CoreV1Api(self.client).read_namespaced_pod_log(
            pod, self.namespace, container=container, follow=True, _preload_content=False, _request_timeout=(10, 300)
        )
        answer = cast("BaseHTTPResponse", text)  # it is a text only where the content is preloaded
        rest = b""
        # The API sends chunks. So a line comes when it was written, and not when a block of lines is full.
        for chunk in answer.stream(decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def run_in(self, pod: str, container: str, argv: Sequence[str], text: str, seconds: float) -> tuple[str, str]:
        """Runs a command in a container, as `kubectl exec` does, with `text` as its input.

        Returns what it wrote (to its output, as errors). Raises ApiException when the API refuses that. The client
        serves nothing else meanwhile: take an Api of its own for it.
        """
        method = client.CoreV1Api(self.client).connect_get_namespaced_pod_exec
        options = {"stdin": True, "stdout": True, "stderr": True, "tty": False, "_preload_content": False}
        connection = stream(method, pod, self.namespace, container=container, command=list(argv), **options)
        try:
            connection.write_stdin(text)
            connection.run_forever(timeout=seconds)
            return connection.read_stdout(timeout=0), connection.read_stderr(timeout=0)
        finally:
            connection.close()


def reason_of(error: ApiException) -> str:
    """The reason that the API gave for its refusal."""
    try:
        message: str = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
    return message
