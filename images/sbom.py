"""Completes an image's list of parts (SBOM, CycloneDX): adds Python itself and the Debian packages.

    python sbom.py PACKAGES.json STATUS OS_RELEASE SBOM.json

PACKAGES.json is what `cyclonedx-py environment` writes: the Python packages. STATUS and OS_RELEASE are the image's
/var/lib/dpkg/status and /etc/os-release. Runs while an image is built, in the environment of requirements-sbom.txt.
"""

import json
import platform
import sys
from email import message_from_string
from pathlib import Path

from packageurl import PackageURL


def debian_packages(status, os_release):
    """(name, version, URL) of each package that is installed."""
    system = dict(line.replace('"', "").split("=", 1) for line in os_release.splitlines() if "=" in line)
    release = f"{system['ID']}-{system['VERSION_ID']}"
    for text in filter(None, status.split("\n\n")):
        package = message_from_string(text)
        if package["Status"] == "install ok installed":
            facts = {"arch": package["Architecture"], "distro": release}
            yield (
                package["Package"],
                package["Version"],
                PackageURL("deb", system["ID"], package["Package"], package["Version"], facts).to_string(),
            )


def main(packages, status, os_release, target):
    listed = json.loads(Path(packages).read_text())
    version = platform.python_version()
    more = [("python", version, PackageURL("generic", None, "python", version).to_string())]
    more += debian_packages(Path(status).read_text(), Path(os_release).read_text())
    if len(more) < 2:
        raise SystemExit(f"{status} lists no package that is installed")
    listed["components"] += [
        {"bom-ref": url, "type": "library", "name": name, "version": version, "purl": url}
        for name, version, url in more
    ]
    Path(target).write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
