"""An S3 server on loopback (moto's), and a proxy before it that does what networks and busy stores do."""

import contextlib
import http.client
import os
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-a-secret-0815", "AWS_REGION": "us-east-1"}
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'


@contextlib.contextmanager
def s3_server(python, folder, host="127.0.0.1"):
    """The address of a server that has no bucket yet. `python`: of the environment that has moto."""
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
    with open(folder / "s3.log", "w") as log:
        words = [python, "-m", "moto.server", "-H", host, "-p", str(port)]
        process = subprocess.Popen(words, env={"PATH": os.environ["PATH"]}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "s3.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
                break
            assert time.monotonic() < deadline, "the S3 server does not come up"
            time.sleep(0.1)
        yield f"http://{host}:{port}"
    finally:
        process.kill()
        process.wait()


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path` the pattern fits."""

    pattern: str
    how: str  # busy | deny | cut: half of what is sent is read, then the connection ends | slow: after `seconds`
    times: int = 10**9
    seconds: float = 0.0
    seen: int = 0


def chunks_of(file):
    """The content of a body that is sent in chunks."""
    while size := int(file.readline().split(b";")[0], 16):
        yield file.read(size)
        file.readline()
    while file.readline().strip():
        pass


class Store:
    """The proxy. `address` is what programs get as AWS_ENDPOINT_URL; `asked`: every request, as METHOD /path."""

    def __init__(self, server, host="127.0.0.1"):
        self.server, self.faults, self.asked, self.lock = server.removeprefix("http://"), [], [], threading.Lock()
        self.in_flight = 0
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words):
                pass

            def answer(self):
                with store.lock:
                    store.in_flight += 1
                try:
                    store.answer(self)
                finally:
                    with store.lock:
                        store.in_flight -= 1

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        self.http = ThreadingHTTPServer((host, 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://{host}:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def environment(self):
        return {**KEYS, "AWS_ENDPOINT_URL": self.address}

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def settle(self):
        """Waits until what was sent has arrived, also what a program sent that is dead now."""
        deadline = time.monotonic() + 120
        while self.in_flight:
            assert time.monotonic() < deadline, f"{self.in_flight} requests do not come to an end"
            time.sleep(0.05)

    def will(self, how, pattern=r"PUT ", **options):
        self.faults.append(Fault(pattern, how, **options))
        return self.faults[-1]

    def fault_for(self, line):
        with self.lock:
            self.asked.append(line)
            for fault in self.faults:
                if fault.seen < fault.times and re.search(fault.pattern, line):
                    fault.seen += 1
                    return fault
        return None

    def answer(self, request):
        fault = self.fault_for(f"{request.command} {request.path}")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
        length = int(request.headers.get("Content-Length") or 0)
        if fault and fault.how == "cut":
            request.rfile.read(length // 2 or int(chunked))  # a GET has no body to wait for
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        body = b"".join(chunks_of(request.rfile)) if chunked else request.rfile.read(length)
        if fault and fault.how in ("busy", "deny"):
            code, name = {"busy": (503, "SlowDown"), "deny": (403, "AccessDenied")}[fault.how]
            self.reply(request, code, {}, ERROR.format(code=name, text=f"{name} by the test").encode())
            return
        if fault:
            time.sleep(fault.seconds)
        connection = http.client.HTTPConnection(self.server, timeout=120)
        try:
            connection.request(request.command, request.path, body or None, headers)
            found = connection.getresponse()
            self.reply(request, found.status, dict(found.getheaders()), found.read())
        except OSError:  # the program was killed meanwhile
            request.close_connection = True
        finally:
            connection.close()

    def reply(self, request, status, headers, content):
        with contextlib.suppress(OSError):
            request.send_response(status)
            length = headers.get("Content-Length") or headers.get("content-length")
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    request.send_header(name, value)
            request.send_header("Content-Length", length if request.command == "HEAD" else str(len(content)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)

    # What a test does to the bucket itself, past the faults. moto checks no signatures.

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.server, timeout=120)
        try:
            signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, x"}
            connection.request(method, path, body, signed)
            found = connection.getresponse()
            content = found.read()
            assert found.status < 300, f"{method} {path}: {found.status} {content[:300]}"
            return content
        finally:
            connection.close()

    def make_bucket(self, name):
        self.ask("PUT", f"/{name}")

    def names(self, bucket, prefix=""):
        text = self.ask("GET", f"/{bucket}?list-type=2&max-keys=1000&prefix={prefix}").decode()
        assert "<IsTruncated>true" not in text
        return re.findall(r"<Key>([^<]+)</Key>", text)

    def read(self, bucket, name):
        return self.ask("GET", f"/{bucket}/{name}")

    def write(self, bucket, name, content):
        self.ask("PUT", f"/{bucket}/{name}", content)
