"""uv trusts what pip trusts: by variables, by pip's settings, by the system's store;
and says what to do where it does not."""

import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading

import pytest

from cookbook import UserError, bootstrap, certificates, processes
from cookbook.prepare import environments
from cookbook.prepare.tools import uv
from tests.helpers import Silent
from tests.requirements import skip

EMPTY = {"PIP_CONFIG_FILE": os.devnull, "HOME": "/nowhere"}


@pytest.fixture
def pem(tmp_path):
    (tmp_path / "company.pem").write_text("")
    return str(tmp_path / "company.pem")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_variable_is_heeded(pem, name):
    assert certificates.certificates({**EMPTY, name: pem}) == {"SSL_CERT_FILE": pem}


def test_the_first_of_several_wins(pem, tmp_path):
    other = str(tmp_path)
    assert certificates.certificates({**EMPTY, "SSL_CERT_FILE": pem, "PIP_CERT": other}) == {"SSL_CERT_FILE": pem}
    assert certificates.certificates({**EMPTY, "PIP_CERT": other, "REQUESTS_CA_BUNDLE": pem}) == {"SSL_CERT_DIR": other}


def test_pip_s_setting_is_heeded(pem, tmp_path):
    (tmp_path / "pip.conf").write_text(f"[global]\ncert = {pem}\nfind-links =\n    /wheels\n    /more\n")
    environment = {"HOME": "/nowhere", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    assert certificates.certificates(environment) == {"SSL_CERT_FILE": pem}
    assert certificates.pip_setting("find-links", environment).split() == ["/wheels", "/more"]
    assert certificates.pip_setting("find-links", {**environment, "PIP_FIND_LINKS": "/mine"}) == "/mine"


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"REQUESTS_CA_BUNDLE=/nowhere/x\.pem: there is no such file"):
        certificates.certificates({**EMPTY, "REQUESTS_CA_BUNDLE": "/nowhere/x.pem"})


def test_the_system_s_store_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(certificates, "_system_has_certificates", lambda: True)
    assert certificates.certificates(EMPTY) == {"UV_SYSTEM_CERTS": "1"}
    monkeypatch.setattr(certificates, "_system_has_certificates", lambda: False)
    assert certificates.certificates(EMPTY) == {}
    assert certificates.certificates({**EMPTY, "SSL_CERT_DIR": "/mine"}) == {}


def test_uv_gets_pip_s_folders_of_wheels(monkeypatch):
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    assert bootstrap.uv_environment()["UV_FIND_LINKS"] == "/wheels,/more"
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    assert "UV_FIND_LINKS" not in bootstrap.uv_environment()


def test_uv_goes_where_pip_goes(tmp_path, monkeypatch):
    settings = (
        "index-url = https://me:pw@art/simple\ntrusted-host = art\n    more\nproxy = proxy:3128\nno-index = true\n"
    )
    (tmp_path / "pip.conf").write_text(f"[global]\n{settings}")
    environment = {"HOME": "/nowhere", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    found = {
        "UV_DEFAULT_INDEX": "https://me:pw@art/simple",
        "UV_INSECURE_HOST": "art more",
        "UV_NO_INDEX": "1",
        "HTTPS_PROXY": "http://proxy:3128",
        "HTTP_PROXY": "http://proxy:3128",
    }
    assert certificates.way_to_index(environment) == found
    own = {"UV_INDEX_URL": "https://mine", "https_proxy": "http://p", "UV_INSECURE_HOST": "me", "PIP_NO_INDEX": "0"}
    assert certificates.way_to_index(environment | own) == {"UV_INSECURE_HOST": "me"}
    assert certificates.way_to_index(EMPTY) == {}
    before = environments.fingerprint("pytorch")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CERT", os.environ.get("PIP_CERT", ""))
    assert bootstrap.install_environment()["UV_DEFAULT_INDEX"] == "https://me:pw@art/simple"
    monkeypatch.undo()
    monkeypatch.setenv("PIP_INDEX_URL", "https://token-of-today@art/simple")
    assert environments.fingerprint("pytorch") == before, "the lock says what is installed"


@pytest.fixture
def proxy(tmp_path):
    """(address, certificate file) of an empty package index behind TLS,
    whose certificate only that file vouches for."""
    if not shutil.which("openssl"):
        skip("openssl", "openssl is missing: no certificate of one's own can be made")
    (tmp_path / "extensions").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    for line in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=company -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout own.key -out own.csr",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out own.pem",
    ):
        subprocess.run(["openssl", *line.split()], cwd=tmp_path, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "own.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/simple", tmp_path / "ca.pem"
    server.shutdown()


def test_uv_behind_a_proxy_with_a_certificate_of_its_own(proxy, tmp_path, monkeypatch):
    address, ca = proxy
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    words = [
        uv(),
        "pip",
        "install",
        "--dry-run",
        "--no-cache",
        "--python",
        sys.executable,
        "--index-url",
        address,
        "no-such-x",
    ]

    def install():
        trusted = certificates.certificates()
        with pytest.raises(UserError) as error:
            processes.run_tool(words, Silent(), tmp_path / "log", "installing failed", "test-certificates", trusted)
        return str(error.value)

    refused = install()
    assert "A certificate was not accepted" in refused and "SSL_CERT_FILE=/path/to/" in refused
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    answered = install()  # the index is reached, and has no such package
    assert "certificate" not in answered and "no-such-x was not found" in answered
