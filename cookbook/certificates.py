"""Makes uv trust what pip trusts, and go where pip goes.

A company's proxy signs what it passes on with a certificate of its own.

uv has certificates of its own and reads neither the system's nor pip's settings. So it says `UnknownIssuer` where pip
works. `certificates()` returns environment variables that tell uv what pip was told. SSL_CERT_FILE, which uv reads
itself, wins. Then come PIP_CERT, pip's `cert` setting, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, and the system's own store.
Standard library only.
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from cookbook import UserError

VARIABLES = ["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
SIGNS = re.compile(r"UnknownIssuer|invalid peer certificate|CERTIFICATE_VERIFY_FAILED|certificate verify failed", re.I)
ADVICE = (
    "A certificate was not accepted: on this network a proxy probably signs connections itself. "
    "Say where its certificate is, in one PEM file together with the public ones: "
    "SSL_CERT_FILE=/path/to/certificates.pem make ... (SSL_CERT_FILE is {now})"
)


def certificates(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables by which uv trusts what pip trusts. Raises UserError for a file that is not there."""
    environment = os.environ if environment is None else environment
    if own := environment.get("SSL_CERT_FILE"):
        return _checked("SSL_CERT_FILE", own)
    if any(environment.get(name) for name in ("SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")):
        return {}
    for name in VARIABLES[:1]:
        if environment.get(name):
            return _checked(name, environment[name])
    if setting := pip_setting("cert", environment):
        return _checked("pip's setting `cert`", setting)
    for name in VARIABLES[1:]:
        if environment.get(name):
            return _checked(name, environment[name])
    return {"UV_SYSTEM_CERTS": "1"} if _system_has_certificates() else {}


def _checked(name: str, path: str) -> dict[str, str]:
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(
            f"{name}={path}: there is no such file; expected one with certificates (PEM). Set {name} to it, or unset it"
        )
    return {"SSL_CERT_DIR" if file.is_dir() else "SSL_CERT_FILE": str(file)}


def _system_has_certificates() -> bool:
    """Whether the system has a store. A minimal container has none; then uv's own certificates are better."""
    if sys.platform != "linux":
        return True
    found = ssl.get_default_verify_paths()
    folder = Path(found.openssl_capath)
    return Path(found.openssl_cafile).exists() or (folder.is_dir() and any(folder.iterdir()))


def pip_setting(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The value of one of pip's settings for all its commands, or None; read as pip reads it, without starting pip."""
    environment = os.environ if environment is None else environment
    value: str | None = None
    for path in _pip_files(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain
        for section in ("global", "install"):
            value = parser.get(section, name, fallback=value)
    return environment.get(f"PIP_{name.upper().replace('-', '_')}") or value or None


def way_to_index(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables by which uv finds packages where pip does: pip's index and its proxy.

    What uv was told itself wins. They say nothing of what is installed: the lock does.
    """
    environment = os.environ if environment is None else environment
    made: dict[str, str | None] = {}
    if not any(environment.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        made["UV_DEFAULT_INDEX"] = pip_setting("index-url", environment)
    made["UV_INSECURE_HOST"] = environment.get("UV_INSECURE_HOST") or pip_setting("trusted-host", environment)
    if (pip_setting("no-index", environment) or "").lower() in ("1", "true", "yes", "on"):
        made["UV_NO_INDEX"] = environment.get("UV_NO_INDEX") or "1"
    names = ("HTTPS_PROXY", "HTTP_PROXY")
    if not any(environment.get(one) for name in (*names, "ALL_PROXY") for one in (name, name.lower())):
        proxy = pip_setting("proxy", environment)
        made |= dict.fromkeys(names, proxy if not proxy or "://" in proxy else f"http://{proxy}")
    return {name: " ".join(value.split()) for name, value in made.items() if value}


def _pip_files(environment: Mapping[str, str]) -> list[Path]:
    """The files in which pip looks for its settings. A later file wins."""
    home = Path(environment.get("HOME") or os.path.expanduser("~"))
    folders = [Path(folder) for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep) if folder]
    files = [folder / "pip/pip.conf" for folder in reversed(folders)] + [Path("/etc/pip.conf")]
    if sys.platform == "darwin":
        files = [Path("/Library/Application Support/pip/pip.conf"), home / "Library/Application Support/pip/pip.conf"]
    files += [home / ".pip/pip.conf", Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"]
    files.append(Path(sys.prefix) / "pip.conf")
    if asked := environment.get("PIP_CONFIG_FILE"):
        if asked == os.devnull:
            return []  # pip's way to say: none of them
        files.append(Path(asked))
    return files


def advice(text: str, environment: Mapping[str, str] | None = None) -> str:
    """What to do when a program's output is about a certificate that was not accepted; else an empty text."""
    environment = os.environ if environment is None else environment
    return ADVICE.format(now=environment.get("SSL_CERT_FILE") or "not set") if SIGNS.search(text) else ""
