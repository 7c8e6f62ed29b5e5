"""Runs a command in a network of its own that has loopback only, on this machine (Linux).

    python -m netrun torchrun --nproc-per-node 2 main.py config.yaml

Some launchers listen on all addresses of the machine, whatever they are told, and trust whoever connects: torchrun's
store, and the servers of horovodrun, which unpickle what they are sent (CVE-2024-10190). In a network of its own
neither another machine nor another user of this one can connect.

NETRUN_NETWORK=host keeps the command in the machine's network. NETRUN_NETWORK=own refuses to start it where it cannot
have a network of its own; without, that is said, and it starts all the same.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from loopback import end_with_parent, leave_network


def main(argv: list[str]) -> NoReturn:
    if not argv:
        raise SystemExit("usage: python -m netrun COMMAND [ARGUMENT ...]")
    network = os.environ.get("NETRUN_NETWORK")
    if network != "host" and (problem := leave_network("NETRUN_NETWORK")):
        found = f"netrun: no network of its own ({problem}): {os.path.basename(argv[0])} listens on all addresses of "
        if network == "own":
            raise SystemExit(f"{found}this machine, and trusts who connects. With a firewall: NETRUN_NETWORK=host")
        print(f"{found}this machine; is there a firewall?", flush=True)
    # The driver has asked for this signal already, but a process that enters a user namespace loses that wish.
    end_with_parent(signal.SIGTERM)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise SystemExit(f"netrun: {argv[0]} cannot be started: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
