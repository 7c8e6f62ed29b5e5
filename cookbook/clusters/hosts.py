"""Processes on several hosts by ssh: looked at before, brought the files, followed, and left as they were."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from cookbook import ROOT, UserError, inventory
from cookbook import processes as os_processes
from cookbook.clusters import local

REMOTE = Path(__file__).with_name("remote.py")
NEEDED_BYTES = 500 << 20  # free on a host, beyond what is copied there


class Ssh:
    """Connections to the hosts of a cluster, with its key in an agent of its own: launchers on the head can then reach the others."""

    def __init__(self, cluster, mark):
        self.cluster, self.mark, self.agent = cluster, mark, None
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


def prepare(cluster, recipe, python, data_dir, run_dir, mark, stage):
    """Looks at every host, brings it what the run needs, and returns the cluster's settings with each host's network interface.

    Raises UserError naming the host that cannot take part.
    """
    service = inventory.access_to(cluster["services"], recipe) if cluster["use_services"] else None
    if service:
        stage.line(f"on the running cluster {service['address']}")
    sources = sorted([*(ROOT / "runrecord").glob("*.py"), *(ROOT / f"recipes/{recipe}").glob("*.py")])
    here = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    wanted = [Path(path) for path in (python.parent.parent, ROOT / "recipes", ROOT / "runrecord", run_dir) if path]
    wanted += [Path(data_dir)] if data_dir else []
    with Ssh(cluster, mark) as ssh:

        def look(host):
            spec = {"address": host["address"], "paths": [str(run_dir)], "files": [str(path) for path in sources]}
            spec["interpreter"] = str(python.resolve())
            return ssh.ask(host, spec, "look")

        stage.update(f"looking at {len(cluster['hosts'])} hosts")
        found = _on_each(cluster["hosts"], look)
        for host, about in zip(cluster["hosts"], found, strict=True):
            who = f"host {host['name']} ({host['address']})"
            if not about["interpreter"]:
                raise UserError(
                    f"{who} has no {python.resolve()}: the environment that is brought there needs the same Python at the same path as here"
                )
            if not about["interface"]:
                raise UserError(
                    f"{who}: no network interface of it has that address; expected the one that the hosts reach each other by"
                )
            if about["free"][str(run_dir)] < NEEDED_BYTES:
                raise UserError(
                    f"{who} has {about['free'][str(run_dir)] >> 20} MiB free where the run writes, expected at least {NEEDED_BYTES >> 20}: "
                    "make room there, or set output_root to another disk"
                )
            if cluster["shared"] and about["files"] != here:
                raise UserError(
                    f"{who} has another version of recipes/{recipe} or runrecord than this machine: bring its checkout to the same commit, or "
                    "leave `shared` out of the inventory, and the files are brought there"
                )
        if not cluster["shared"]:
            stage.update(f"bringing {len(wanted)} folders to {len(cluster['hosts'])} hosts")
            _on_each(cluster["hosts"], lambda host: push(ssh, host, wanted))
    known, hosts = cluster["ssh"].get("known_hosts"), zip(cluster["hosts"], found, strict=True)
    return {
        **cluster,
        "service": service,
        "known_hosts": Path(known).read_text() if known else None,
        "hosts": [{**host, "interface": about["interface"]} for host, about in hosts],
    }


def _on_each(hosts, work):
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(work, hosts))


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


def run(processes, cluster, run_dir, mark, watch):
    """See `local.run`. Services (a scheduler, a worker of a cluster made for this run) end when all others have; one that ends
    before fails the run. Nothing of the run is left on any host that can be reached."""
    logs, started, statuses = Path(run_dir) / "logs", {}, {}
    logs.mkdir(exist_ok=True)
    hosts, services = (
        {host["address"]: host for host in cluster["hosts"]},
        {process.name for process in processes if process.service},
    )
    # Records are brought back beside the loop: it must not fall silent towards the hosts.
    with Ssh(cluster, mark) as ssh, concurrent.futures.ThreadPoolExecutor(1) as puller:
        pulled, pulling = time.monotonic(), None
        try:
            for process in processes:
                for path, content in process.files.items():
                    os_processes.write_file(path, content, 0o755 if content.startswith("#!") else 0o600)
            if not cluster["shared"] and any(process.files for process in processes):
                _on_each(cluster["hosts"], lambda host: push(ssh, host, [run_dir]))
            for process in processes:
                with open(logs / f"{process.name}.log", "a") as log:
                    started[process.name] = begin(ssh, hosts[process.host], process, cluster, mark, log)
                if process.ready:
                    log = logs / f"{process.name}.log"
                    wait_until_ready(process, started, log, cluster["start_timeout_seconds"], watch)
            while True:
                statuses = {name: child.returncode for name, child in started.items() if child.poll() is not None}
                if any(statuses.values()) or statuses.keys() & services or statuses.keys() >= started.keys() - services:
                    break
                watch()
                _say_hello(started)
                if pulling and pulling.done():
                    # What it raised is left alone: a host that is gone for good ends the run in another way.
                    pulling, pulled = None, time.monotonic()
                if not cluster["shared"] and not pulling and time.monotonic() - pulled > cluster["pull_seconds"]:
                    pulling = puller.submit(_on_each, cluster["hosts"], lambda host: pull(ssh, host, run_dir))
                time.sleep(local.POLL_SECONDS)
        finally:
            ended_early = {
                name: status or 1
                for name, status in statuses.items()
                if name in services and set(started) - services - set(statuses)
            }
            if pulling:
                concurrent.futures.wait([pulling])
            leaves = [f"{run_dir}/scratch", *(path for process in processes for path in process.leaves)]
            lost = stop(ssh, cluster, run_dir, mark, started, leaves)
            watch()
    if lost:
        statuses |= {f"the clean-up of {name}": why for name, why in lost.items()}
    return {name: status for name, status in statuses.items() if name not in services} | ended_early


def begin(ssh, host, process, cluster, mark, log):
    """Starts one process by ssh; its settings, secrets among them, go through the connection and stand in no command line."""
    spec = {
        "argv": [str(word) for word in process.argv], "environment": {**process.environment, **process.secrets}, "mark": mark,
        "grace": cluster["stop_grace_seconds"], "silence": cluster["silence_seconds"],
    }  # fmt: skip
    child = subprocess.Popen(
        ssh.program(host, "start"), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **ssh.environment, os_processes.MARK: mark},
    )  # fmt: skip
    child.stdin.write(json.dumps(spec) + "\n")
    child.stdin.flush()
    return child


def _say_hello(started):
    """A host that hears nothing any more ends what it runs."""
    for child in started.values():
        with contextlib.suppress(OSError, ValueError):
            child.stdin.write("\n")
            child.stdin.flush()


def wait_until_ready(process, started, log, seconds, watch):
    """Waits until a service has written the words that `process.ready` looks for."""
    deadline, child = time.monotonic() + seconds, started[process.name]
    while not re.search(process.ready, log.read_text(errors="replace")):
        if child.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise UserError(f"{process.name} on {process.host} is not ready after {seconds} s: " + " / ".join(last))
        watch(waiting=True)
        _say_hello(started)
        time.sleep(local.POLL_SECONDS)


def stop(ssh, cluster, run_dir, mark, started, leaves):
    """Ends all on all hosts, and brings the last records home. Returns {host: why} of those that could not be reached."""
    lost = {}

    def end(host):
        try:
            ssh.ask(host, None, "sweep", mark, cluster["stop_grace_seconds"], *leaves)
            if not cluster["shared"]:
                pull(ssh, host, run_dir)
        except (UserError, subprocess.TimeoutExpired) as error:
            lost[host["name"]] = str(error)

    _on_each(cluster["hosts"], end)
    for child in started.values():
        with contextlib.suppress(OSError, ValueError):
            child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
    # What still runs here is ssh itself, to a host that does not answer.
    os_processes.stop(mark, cluster["stop_grace_seconds"])
    for child in started.values():
        child.wait()
    return lost
