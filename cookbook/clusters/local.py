"""All processes on this machine."""

import socket
import time
from pathlib import Path

from cookbook import UserError
from cookbook import processes as os_processes

POLL_SECONDS = 0.1


def _check_port(port):
    """Raises UserError when somebody else has the port: launchers say that late, or wait for ever."""
    if port is None:
        return
    try:
        # Not bound to loopback alone: torchrun's store listens on all addresses.
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"cluster.port={port} is taken ({error.strerror}): choose another one, or null for any that is free"
        ) from None


def run(processes, cluster, run_dir, mark, watch):
    """Starts the processes, calls `watch()` until all have ended, and stops all the others when one fails.

    Each one's output goes to <run_dir>/logs/<name>.log. Returns {name: exit status}; leaves no process behind, however
    it ends. A launcher that ends well but leaves workers behind is waited for no longer than the grace period.
    """
    _check_port(cluster["port"])
    logs = Path(run_dir) / "logs"
    logs.mkdir(exist_ok=True)
    started, statuses = {}, {}
    try:
        for process in processes:
            for path, content in process.files.items():
                os_processes.write_file(path, content, 0o755 if content.startswith("#!") else 0o600)
            with open(logs / f"{process.name}.log", "a") as log:
                started[process.name] = os_processes.start(process.argv, mark, process.environment, output=log)
        while len(statuses) < len(started) and not any(statuses.values()):
            watch()
            time.sleep(POLL_SECONDS)
            statuses = {name: child.returncode for name, child in started.items() if child.poll() is not None}
        watch()
    finally:
        os_processes.stop(mark, cluster["stop_grace_seconds"])
        for child in started.values():
            child.wait()
    return {name: child.returncode for name, child in started.items()}
