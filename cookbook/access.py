"""How workers on other machines get at an object store: the driver's own settings and keys for it, and no others.

Settings (region, endpoint) go as environment variables. Keys go as a file that only the user can read, in the run's
folder of secrets, which is removed at the end: environment variables would show in the command lines of launchers that
hand them on by ssh (horovodrun).
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cookbook import UserError

SETTINGS = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ADDRESSING_STYLE"),
    *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_EC2_METADATA_DISABLED"),
    *("GOOGLE_CLOUD_PROJECT", "STORAGE_EMULATOR_HOST"),
)
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Access:
    """What each worker process gets."""

    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # path -> content; only for the user's own eyes


def to_store(address: str, secrets: Path, environment: Mapping[str, str] | None = None) -> Access:
    """The access to the store at `address`; `secrets` is the run's folder for files with keys.

    `environment`: where settings and keys are looked for; None: this process's own.

    Without keys here, the workers use what their machines have (an instance's role). Raises UserError for a profile or
    a file of keys that is named and not there.
    """
    environment = os.environ if environment is None else environment
    made = {name: environment[name] for name in SETTINGS if environment.get(name)}
    if address.startswith("s3://"):
        made = _aws_profile(environment) | made
    files: dict[str, str] = {}
    if address.startswith("s3://") and (keys := _aws_keys(environment)):
        path = str(secrets / "aws")
        files[path] = "[default]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in keys.items())
        made["AWS_SHARED_CREDENTIALS_FILE"] = path
    if address.startswith("gs://") and (named := environment.get("GOOGLE_APPLICATION_CREDENTIALS")):
        try:
            files[str(secrets / "google.json")] = Path(named).expanduser().read_text()
        except OSError as error:
            raise UserError(f"GOOGLE_APPLICATION_CREDENTIALS={named}: {error.strerror}") from None
        made["GOOGLE_APPLICATION_CREDENTIALS"] = str(secrets / "google.json")
    return Access(made, files)


def _aws_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Region and endpoint that the profile has in the AWS command line's file of settings, as variables."""
    profile, parser = environment.get("AWS_PROFILE") or "default", configparser.RawConfigParser()
    parser.read(Path(environment.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser())
    section = profile if profile == "default" else f"profile {profile}"
    names = {"region": "AWS_DEFAULT_REGION", "endpoint_url": "AWS_ENDPOINT_URL"}
    found = {name: parser.get(section, key, fallback="") for key, name in names.items()} if section in parser else {}
    if environment.get("AWS_REGION"):
        found.pop("AWS_DEFAULT_REGION", None)
    return {name: value for name, value in found.items() if value}


def _aws_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """The keys of the environment, or those of the profile in the file of keys; {} without any."""
    if environment.get("AWS_ACCESS_KEY_ID") and not environment.get("AWS_PROFILE"):
        return {name: environment[name] for name in KEYS if environment.get(name)}
    path = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile, parser = environment.get("AWS_PROFILE") or "default", configparser.RawConfigParser()
    parser.read(path)
    found = {name: parser.get(profile, name.lower(), fallback="") for name in KEYS} if profile in parser else {}
    if not found.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_PROFILE"):
        raise UserError(
            f"AWS_PROFILE={profile}: {path} has no keys of that name, and workers on other machines cannot use another "
            "way to sign in: `aws configure export-credentials --format env` prints keys for the environment"
        )
    return {name: value for name, value in found.items() if value}
