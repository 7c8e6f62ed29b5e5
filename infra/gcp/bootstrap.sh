#!/bin/bash
# Runs as root at the start of a machine.
set -euo pipefail
test -e /var/lib/bootstrap-done && exit 0
apt-get update -q
apt-get install -y -q git make g++ cmake rsync python3.11 python3.11-venv openjdk-17-jre-headless
touch /var/lib/bootstrap-done
