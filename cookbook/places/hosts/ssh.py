"""ssh to the hosts of an inventory: connections, a program on the other side, and files there and back."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from cookbook import UserError

REMOTE = Path(__file__).with_name("remote.py")


class Ssh:
    """Connections to the hosts of a cluster, with its key in an agent of its own: launchers on the head can then reach the others."""

    def __init__(self, cluster):
        self.cluster, self.agent = cluster, None
        self.folder = Path(tempfile.mkdtemp(prefix="cookbook-ssh-"))

    def __enter__(self):
        try:
            self._start_agent()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_agent(self):
        if key := self.cluster["ssh"].get("key"):
            if not Path(key).is_file():
                raise UserError(f"{self.cluster['inventory']}: ssh.key={key} is not there")
            socket = self.folder / "agent"
            # It ends when this process does, however that comes: its input is closed then. Not with the run's mark: a host that is
            # this very machine ends all that has it, before the others are done.
            # Its first line says that the agent listens.
            words = ["ssh-agent", "-a", socket, "sh", "-c", "echo; cat; kill $SSH_AGENT_PID"]
            self.agent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            with self.agent.stdout as said:
                said.readline()
            added = subprocess.run(["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
            if added.returncode:
                why = added.stderr.strip() or "ssh-add said nothing; does it have a passphrase?"
                raise UserError(f"ssh.key={key} cannot be used: {why.splitlines()[0]}")

    def __exit__(self, *error):
        if self.agent:
            self.agent.stdin.close()
            self.agent.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self):
        return {"SSH_AUTH_SOCK": str(self.folder / "agent")} if self.agent else {}

    def words(self, host, *command):
        """The ssh command that runs `command` on a host."""
        # Only an agent of this run's own is shown to hosts, never the user's with all of his keys.
        return [
            "ssh",
            *self.options(),
            "-A" if self.agent else "-a",
            "--",
            self.target(host),
            shlex.join(map(str, command)),
        ]

    def target(self, host):
        user = self.cluster["ssh"].get("user")
        return f"{user}@{host['address']}" if user else host["address"]

    def options(self):
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

    def program(self, host, *words):
        """The command that runs remote.py on a host."""
        return self.words(host, "python3", "-u", "-c", REMOTE.read_text(), *words)

    def ask(self, host, spec, *words):
        """What remote.py answers; raises UserError with what ssh or the host said when it does not answer."""
        done = subprocess.run(
            self.program(host, *words), input=json.dumps(spec) + "\n", capture_output=True, text=True,
            env={**os.environ, **self.environment}, timeout=60 + self.cluster["connect_timeout_seconds"],
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"host {host['name']} ({host['address']}): {self._why(done.stderr, host)}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _why(self, stderr, host):
        text = " ".join(stderr.split()) or "the connection was closed"
        for sign, advice in (
            ("Permission denied", "the key is not one that it takes: is ssh.key the right one, and ssh.user?"),
            ("Host key verification failed", "it shows another host key than known_hosts has: was it made anew? Then renew the inventory"),
            ("python3: ", "there is no python3 on it: every host needs Python 3.11"),
            ("timed out", "nothing answers there: is it up, and does its firewall let this machine in?"),
            ("No route to host", "there is no way there: is it up?"),
            ("Connection refused", "no ssh server listens there"),
        ):  # fmt: skip
            if sign in text:
                return f"{advice} ({text[-200:]})"
        return text[-400:]


def _option_value(path):
    """A path as ssh's options take it: a blank would end it, and a % begins one of their own words."""
    return '"' + path.replace("%", "%%") + '"' if re.search(r"\s", path) else path.replace("%", "%%")


def push(ssh, host, folders):
    """Copies folders to the same paths on a host, without what the run itself writes there."""
    rsync(
        ssh, host, f"host {host['name']} ({host['address']}): its files could not be brought up to date",
        "--relative", "--no-implied-dirs", "--delete", "--exclude=/**/.driver.lock", "--exclude=__pycache__", *folders, f"{ssh.target(host)}:/",
    )  # fmt: skip


def pull(ssh, host, folder):
    """Copies a run folder back. A file that is longer or newer here (another host's, or this one's from a moment ago) stays."""
    source = f"{ssh.target(host)}:{folder}/"
    excluded = [
        f"--exclude={name}"
        for name in ("/logs", "/scratch", "/run.json", "/report.html", "/config.yaml", "/.driver.lock")
    ]
    rsync(
        ssh,
        host,
        f"host {host['name']}: its records could not be brought back",
        "--update",
        *excluded,
        source,
        f"{folder}/",
    )


def rsync(ssh, host, failure, *words):
    command = shlex.join(["ssh", *ssh.options()])
    done = subprocess.run(
        ["rsync", "-a", "--timeout=60", "-e", command, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **ssh.environment},
    )
    if done.returncode == 127 or "rsync: command not found" in done.stderr:
        raise UserError(f"host {host['name']} has no rsync: install it there, or share the files (shared: true)")
    if done.returncode not in (0, 24):  # 24: a file was renamed while it was copied
        text = done.stderr.strip().splitlines() or ["rsync said nothing"]
        full = next((line for line in text if "No space left" in line), None)
        raise UserError(f"{failure}: {full or text[0]}")
