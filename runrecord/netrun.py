"""Runs a command in a network of its own that has loopback only, on this machine (Linux).

    python -m netrun torchrun --nproc-per-node 2 main.py config.yaml

Some launchers listen on all addresses of the machine, whatever they are told, and trust whoever connects: torchrun's store, and the
servers of horovodrun, which unpickles what it is sent (CVE-2024-10190). Here no other machine can connect, nor another user of this one.
NETRUN_NETWORK=host keeps the command in the machine's network.
"""

import ctypes
import os
import signal
import sys

from loopback import leave_network


def main(argv):
    if not argv:
        raise SystemExit("usage: python -m netrun COMMAND [ARGUMENT ...]")
    if os.environ.get("NETRUN_NETWORK") != "host" and (problem := leave_network("NETRUN_NETWORK")):
        name = os.path.basename(argv[0])
        print(
            f"netrun: no network of its own ({problem}): {name} listens on all addresses of this machine; is there a firewall?",
            flush=True,
        )
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: who enters a namespace of users loses it
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise SystemExit(f"netrun: {argv[0]} cannot be started: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
