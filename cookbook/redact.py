"""Takes secrets out of what goes into records, reports and printed commands."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
# Names of settings whose values are secrets; `key` alone names too many harmless things.
SECRET_NAME = re.compile(
    r"secret|passw(or)?d|passphrase|token$|_token|\.token|credential|api[_.-]?key"
    r"|(access|private|account|shared|encryption|storage)[_.-]?key",
    re.IGNORECASE,
)
NOT_SECRET = re.compile(
    r"tokeniz|(max|num)_tokens?|token_?(file|path)|(secret|password|key)[_.-]?(file|path|name)$", re.IGNORECASE
)
# The parameters of an address that are secrets, with their values.
PARAMETERS = (
    r"(?i)([?&;](?:[\w.-]*(?:token|secret|passw(?:or)?d|signature|sig|credential|api_?key|access_?key)[\w.-]*)=)"
    r"[^&#;\s'\"]+"
)
# NAME=VALUE and NAME: VALUE, as overrides, `--conf` words and environment variables have them.
WORD = re.compile(r"""([\w.~+@/-]*\w)(=|:\s+)('[^']*'|"[^"]*"|[^\s,'"{}\[\]]+)""")
# The same with quotes around the whole.
QUOTED = re.compile(r"""(['"])([\w.~+@/-]*\w)=(.*?)\1""")


def is_secret(name: object) -> bool:
    """Whether a setting of this name holds a secret."""
    return bool(SECRET_NAME.search(str(name)) and not NOT_SECRET.search(str(name)))


def redacted(value: Any, name: object = "") -> Any:
    """A copy of plain data (dictionaries, lists, texts) without secrets.

    A secret is known by the name of its key (`name` for the value itself), or by its place in an address.
    """
    if isinstance(value, dict):
        return {key: redacted(entry, key) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(entry, name) for entry in value]
    if is_secret(name) and value not in (None, "", True, False):
        return HIDDEN
    return redacted_text(value) if isinstance(value, str) else value


def secrets_of(value: Any, name: str = "") -> list[str]:
    """Names of the entries of plain data that hold a secret, with dots between the keys."""
    if isinstance(value, dict) and not is_secret(name):
        return [found for key, entry in value.items() for found in secrets_of(entry, f"{name}.{key}".lstrip("."))]
    return [] if [redacted(value, name)] == [value] else [name]  # in lists, nan is equal to itself


def redacted_text(text: str) -> str:
    """A text without passwords in its addresses, and without the values of secret names in words NAME=VALUE."""
    # A password may have an @ or a / in it that should have been %40 or %2F; what follows a port is a path.
    text = re.sub(r"(\w://)([^/@\s:]*):(?!\d{1,5}[/?#])([^\s'\",]+)@", rf"\1\2:{HIDDEN}@", text)
    text = re.sub(r"(\w://)([^/@\s:]{20,})@", rf"\1{HIDDEN}@", text)  # a token instead of a user
    text = re.sub(PARAMETERS, rf"\1{HIDDEN}", text)
    text = QUOTED.sub(
        lambda found: f"{found[1]}{found[2]}={HIDDEN}{found[1]}" if is_secret(found[2]) else found[0], text
    )
    return WORD.sub(lambda found: found[1] + found[2] + HIDDEN if is_secret(found[1]) else found[0], text)
