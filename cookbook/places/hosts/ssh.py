"""ssh to the hosts of an inventory: connections, a program on the other side, and files there and back."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from cookbook import UserError
from cookbook.inventory import Host
from cookbook.job import Settings
from cookbook.surroundings import SHORT_PLACES

LONGEST_PLACE = 60  # characters
REMOTE = Path(__file__).with_name("remote.py")
# What ssh says -> what that means to the user.
ADVICE = {
    "Permission denied": "the key is not one that it takes: is ssh.key the right one, and ssh.user?",
    "Host key verification failed": (
        "it shows another host key than known_hosts has: was it made anew? Then renew the inventory"
    ),
    "python3: ": "there is no python3 on it: every host needs Python 3.11",
    "timed out": "nothing answers there: is it up, and does its firewall let this machine in?",
    "No route to host": "there is no way there: is it up?",
    "Connection refused": "no ssh server listens there",
}
WRITTEN_HERE = (
    "/logs",
    "/scratch",
    "/storage",
    "/run.json",
    "/report.html",
    "/config.yaml",
    "/.driver.lock",
)  # in a run folder


class Ssh:
    """Connections to the hosts of a cluster.

    The cluster's key is in an agent of its own, which hosts may use: so launchers on the head can reach the others.
    """

    def __init__(self, cluster: Settings) -> None:
        self.cluster = cluster
        self.agent: subprocess.Popen[bytes] | None = None
        # The agent's socket is in it, and a socket's path may have 107 characters.
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > LONGEST_PLACE:
            place = next((short for short in SHORT_PLACES if os.access(short, os.W_OK | os.X_OK)), place)
        self.temporary = tempfile.TemporaryDirectory(prefix="cookbook-ssh-", dir=place, ignore_cleanup_errors=True)
        self.folder = Path(self.temporary.name)

    def __enter__(self) -> Self:
        try:
            self._start_agent()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_agent(self) -> None:
        if key := self.cluster["ssh"].get("key"):
            if not Path(key).is_file():
                raise UserError(f"{self.cluster['inventory']}: ssh.key={key} is not there")
            socket = self.folder / "agent"
            # The agent ends when its input closes: so it ends with this process, even a killed one. Its environment
            # lacks the run's id. Otherwise a host that is this machine would end it while other hosts still need it.
            argv = ["ssh-agent", "-a", str(socket), "sh", "-c", "echo; cat; kill $SSH_AGENT_PID"]
            self.agent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            assert self.agent.stdout  # a pipe
            with self.agent.stdout as output:
                output.readline()  # it comes when the agent listens
            added = subprocess.run(
                ["ssh-add", "-q", key],
                env={**os.environ, "SSH_AUTH_SOCK": str(socket)},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if added.returncode:
                why = added.stderr.strip() or "ssh-add said nothing; does it have a passphrase?"
                raise UserError(f"ssh.key={key} cannot be used: {why.splitlines()[0]}")

    def __exit__(self, *error: object) -> None:
        if self.agent:
            assert self.agent.stdin  # a pipe
            self.agent.stdin.close()
            self.agent.wait()
        self.temporary.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """By this ssh finds the agent."""
        return {"SSH_AUTH_SOCK": str(self.folder / "agent")} if self.agent else {}

    def argv(self, host: Host, *command: object) -> list[str]:
        """The ssh command that runs `command` on a host."""
        # Hosts may use the run's own agent, never the user's with all of his keys.
        forwarding = "-A" if self.agent else "-a"
        return ["ssh", *self.options(), forwarding, "--", self.target(host), shlex.join(map(str, command))]

    def target(self, host: Host) -> str:
        user = self.cluster["ssh"].get("user")
        return f"{user}@{host['address']}" if user else host["address"]

    def options(self) -> list[str]:
        ssh, timeout = self.cluster["ssh"], self.cluster["connect_timeout_seconds"]
        options = [
            "BatchMode=yes",
            f"ConnectTimeout={timeout}",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ]
        if ssh.get("known_hosts"):
            options += ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={_option_value(ssh['known_hosts'])}"]
        else:
            options += ["StrictHostKeyChecking=accept-new"]
        if self.agent:
            options += ["IdentitiesOnly=no", "IdentityFile=none"]
        return [word for option in options for word in ("-o", option)] + ["-p", str(ssh.get("port", 22))]

    def program(self, host: Host, *arguments: object) -> list[str]:
        """The command that runs remote.py on a host."""
        return self.argv(host, "python3", "-u", "-c", in_one_line(REMOTE), *arguments)

    def ask(self, host: Host, spec: Settings | None, *arguments: object) -> dict[str, Any]:
        """What remote.py answers. Raises UserError, with what ssh or the host said, when it does not answer."""
        done = subprocess.run(
            self.program(host, *arguments),
            input=json.dumps(spec) + "\n",
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            timeout=60 + self.cluster["connect_timeout_seconds"],
        )
        if done.returncode:
            raise UserError(f"host {host['name']} ({host['address']}): {self._why(done.stderr, host)}")
        # Before it there may be lines that .bashrc prints there.
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return answer

    def _why(self, stderr: str, host: Host) -> str:
        text = " ".join(stderr.split()) or "the connection was closed"
        for sign, advice in ADVICE.items():
            if sign in text:
                return f"{advice} ({text[-200:]})"
        return text[-400:]


def in_one_line(program: Path) -> str:
    """A Python program as code for `python3 -c`: the user's shell on a host may be any, and csh wants one line."""
    return f'import base64; exec(base64.b64decode("{base64.b64encode(program.read_bytes()).decode()}"))'


def _option_value(path: str) -> str:
    """A path as it has to stand in an option of ssh: a blank would end it there, and a % begins a variable of ssh's."""
    return '"' + path.replace("%", "%%") + '"' if re.search(r"\s", path) else path.replace("%", "%%")


def push(ssh: Ssh, host: Host, folders: Sequence[str | Path]) -> None:
    """Copies folders to the same paths on a host, without what the run itself writes there."""
    failure = f"host {host['name']} ({host['address']}): its files could not be brought up to date"
    options = ["--relative", "--no-implied-dirs", "--delete", "--exclude=/**/.driver.lock", "--exclude=__pycache__"]
    rsync(ssh, host, failure, *options, *folders, f"{ssh.target(host)}:/")


def pull(ssh: Ssh, host: Host, folder: str | Path) -> None:
    """Copies a run folder back. A file that is newer here stays: another host's, or this one's from a moment ago."""
    failure = f"host {host['name']}: its records could not be brought back"
    options = ["--update", *(f"--exclude={name}" for name in WRITTEN_HERE)]
    rsync(ssh, host, failure, *options, f"{ssh.target(host)}:{folder}/", f"{folder}/")


def rsync(ssh: Ssh, host: Host, failure: str, *arguments: str | Path) -> None:
    """Runs rsync. Raises UserError, with `failure` and rsync's reason, when it fails."""
    command = shlex.join(["ssh", *ssh.options()])
    done = subprocess.run(
        ["rsync", "-a", "--timeout=60", "-e", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **ssh.environment},
    )
    if "is your shell clean" in done.stderr or "protocol version mismatch" in done.stderr:
        raise UserError(
            f"{failure}: a file such as .bashrc prints something there, which rsync takes for its words; have it do "
            "so in interactive shells only, or share the files (shared: true)"
        )
    if done.returncode == 127 or "rsync: command not found" in done.stderr:
        raise UserError(f"host {host['name']} has no rsync: install it there, or share the files (shared: true)")
    if done.returncode not in (0, 24):  # 24: a file was renamed while it was copied
        text = done.stderr.strip().splitlines() or ["rsync said nothing"]
        full = next((line for line in text if "No space left" in line), None)
        raise UserError(f"{failure}: {full or text[0]}")
