"""What tests need beyond Python, by name: a skip names it,
and a job promises it with REQUIRE=hosts,slurm (or REQUIRE=all).

A test says `@needs("hosts", MISSING)` or calls `skip("sshd", "sshd is missing")`. Without what it needs it is skipped,
and the skip is listed at the end. The root conftest.py makes such a skip a failure where the job promised the thing.
"""

import re

import pytest

KNOWN = {
    "actionlint": "the linter of workflows (make lint; not part of REQUIRE=all: its package downloads a program)",
    "chromium": "a browser without a window",
    "hosts": "root, iproute2, openssh-server and rsync: hosts made of network namespaces",
    "images": "root, podman, runc and debootstrap: images are built and run (make tools USE=images)",
    "namespaces": "user and network namespaces that an ordinary user, or root, may make",
    "mlflow": "the environment of tests/tracking: an MLflow server",
    "node": "nodejs: the schemas of cloud providers",
    "prometheus": "prometheus (Debian): it reads the endpoint of a run",
    "openssl": "openssl: certificates of one's own",
    "runner": "root, sudo and unshare: a user for the workflows' steps",
    "root": "root, or sudo without a password",
    "slurm": "what hosts need, and slurm-wlm and munge",
    "sshd": "openssh-server",
    "terraform": "terraform: infra/",
}


def required(text):
    """The names in the text of REQUIRE; raises pytest.UsageError at an unknown one."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - KNOWN.keys() - {"all"}:
        raise pytest.UsageError(
            f"REQUIRE={text}: {', '.join(sorted(unknown))} is unknown; expected names of: all, {', '.join(KNOWN)}"
        )
    return names


def reason_of(name, text):
    if name not in KNOWN:
        raise ValueError(f"{name!r} is not in KNOWN of tests/requirements.py; expected one of: {', '.join(KNOWN)}")
    return f"[{name}] {text}"


def needs(name, missing):
    """A mark that skips a test while anything is in the list `missing`."""
    return pytest.mark.skipif(bool(missing), reason=reason_of(name, f"missing: {', '.join(missing)}"))


def skip(name, text, **options):
    pytest.skip(reason_of(name, text), **options)


def broken_promises(reasons, promised):
    """The reasons of skips that the job must not have; a skip that names nothing counts only for REQUIRE=all."""
    found = []
    for reason in reasons:
        named = re.match(r"(?:Skipped: )?\[(\w+)\]", reason)
        if "all" in promised or (named and named[1] in promised):
            found.append(reason)
    return found
