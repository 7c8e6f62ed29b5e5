"""Hosts on this machine, to try a cluster of several without having one:
`python3 hosts.py up FOLDER [--num-hosts 2] ...`.

As root each host is a network namespace with an address of its own on a bridge, a name, an sshd, and on request
folders that only it sees. Without root they are sshd processes on the loopback addresses 127.0.0.1, 127.0.0.2,
..., which share everything else.

    up      makes them, and writes FOLDER/inventory.yaml, which cluster=hosts takes; does nothing where they
            are up already
    status  says which of them answer
    down    ends every process on them and removes all of it, also what an interrupted `up` has left
"""

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists()), None
)


def sh(*words, check=True):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    """The hosts whose files are in `folder`; their namespaces and bridge bear a name that
    belongs to that folder alone."""

    def __init__(self, folder, num_hosts=2, slots=1, private=(), as_root=None, own_processes=False):
        """`own_processes`: each host sees its own processes only, numbered from 1, as a real one does (root)."""
        self.folder, self.num_hosts, self.slots, self.private = Path(folder).absolute(), num_hosts, slots, list(private)
        self.own_processes = own_processes
        self.namespaces = os.geteuid() == 0 if as_root is None else as_root
        self.id = hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]
        self.bridge = f"cb{self.id}"

    def namespace(self, number):
        return f"cb-{self.id}-{number}"

    def up(self):
        if SSHD is None:
            raise SystemExit("error: sshd is missing: apt-get install openssh-server")
        if self.is_up():
            print(f"{self.folder}: {self.num_hosts} hosts are up")
            return
        self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        # Written first: whatever is made after it, `down` finds.
        (self.folder / "state.json").write_text(
            json.dumps({"num_hosts": self.num_hosts, "namespaces": self.namespaces, "private": self.private})
        )
        for name in ("key", "host_key"):
            sh(
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"hosts of {self.folder.name}",
                "-f",
                self.folder / name,
            )
        addresses, port = (
            self.make_network()
            if self.namespaces
            else ([f"127.0.0.{number}" for number in range(1, self.num_hosts + 1)], free_port())
        )
        host_key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        names = [address if port == 22 else f"[{address}]:{port}" for address in addresses]
        (self.folder / "known_hosts").write_text("".join(f"{name} {host_key}\n" for name in names))
        lines = "".join(f"{address} host{number}\n" for number, address in enumerate(addresses, 1))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{lines}")
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        for number, address in enumerate(addresses, 1):
            self.start_sshd(number, address, port)
        for address in addresses:
            wait_for(address, port, self.folder)
        hosts = "".join(
            f"  - {{name: host{number}, address: {address}, slots: {self.slots}}}\n"
            for number, address in enumerate(addresses, 1)
        )
        files = f"key: {self.folder}/key, known_hosts: {self.folder}/known_hosts"
        ssh = f"{{user: {getpass.getuser()}, port: {port}, {files}}}"
        partial = self.folder / "inventory.partial"
        partial.write_text(
            f"hosts:\n{hosts}ssh: {ssh}\nshared: {str(not self.private).lower()}\nservices: {self.folder}/services\n"
        )
        partial.replace(self.folder / "inventory.yaml")
        print(f"{self.folder}/inventory.yaml: {', '.join(addresses)}")

    def make_network(self):
        taken = set(re.findall(r"10\.77\.(\d+)\.", sh("ip", "-4", "addr")))
        subnet = next(number for number in range(256) if str(number) not in taken)
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "addr", "add", f"10.77.{subnet}.254/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "up")
        addresses = []
        for number in range(1, self.num_hosts + 1):
            name, outer = self.namespace(number), f"{self.bridge}-{number}"
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", outer, "master", self.bridge, "up")
            addresses.append(f"10.77.{subnet}.{number}")
            for words in (
                f"addr add {addresses[-1]}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                f"route add default via 10.77.{subnet}.254",
            ):
                sh("ip", "-n", name, *words.split())
        return addresses, 22

    def links(self):
        """This machine's ends of the hosts' cables, and the bridge last."""
        names = re.findall(r"^\d+: ([^:@\s]+)", sh("ip", "-o", "link"), re.MULTILINE) if self.namespaces else []
        return sorted((name for name in names if name.split("-")[0] == self.bridge), reverse=True)

    def start_sshd(self, number, address, port):
        config = self.folder / f"sshd{number}.conf"
        config.write_text(
            f"Port {port}\nListenAddress {address}\nHostKey {self.folder}/host_key\nAuthorizedKeysFile "
            f"{self.folder}/key.pub\n"
            f"PidFile {self.folder}/sshd{number}.pid\nPasswordAuthentication no\nKbdInteractiveAuthentication "
            "no\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nMaxStartups 100\nMaxSessions 100\nUseDNS no\n"
        )
        start = [SSHD, "-D", "-f", config, "-E", self.folder / f"sshd{number}.log"]
        if self.namespaces:
            Path("/run/sshd").mkdir(exist_ok=True)
            script = [f"hostname host{number}", f"mount --bind {self.folder}/hosts /etc/hosts"]
            # No name server is reachable from there; with this address each question is refused at once,
            # instead of after seconds.
            script.append(f"mount --bind {self.folder}/resolv.conf /etc/resolv.conf")
            for word in self.private:
                path, _, size = word.partition("=")
                own = self.folder / f"host{number}{path}"
                own.mkdir(parents=True, exist_ok=True)
                Path(path).mkdir(parents=True, exist_ok=True)
                script.append(
                    f"mount -t tmpfs -o size={size} none '{path}'" if size else f"mount --bind '{own}' '{path}'"
                )
            script.append(f"exec {' '.join(map(str, start))}")
            # sysfs shows the network of who mounted it; ip netns exec sees to that.
            start = [
                "ip",
                "netns",
                "exec",
                self.namespace(number),
                "unshare",
                "--uts",
                "--mount",
                *(["--pid", "--fork", "--kill-child", "--mount-proc"] if self.own_processes else []),
                "sh",
                "-ec",
                "; ".join(script),
            ]
        log = open(self.folder / f"start{number}.log", "w")  # noqa: SIM115
        subprocess.Popen(
            [str(word) for word in start], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def is_up(self):
        try:
            state = json.loads((self.folder / "state.json").read_text())
            found = re.findall(r"address: ([0-9.]+)", (self.folder / "inventory.yaml").read_text())
            port = int(re.search(r"port: (\d+)", (self.folder / "inventory.yaml").read_text()).group(1))
        except (OSError, ValueError):
            return False
        if state["num_hosts"] != self.num_hosts or state["private"] != self.private or len(found) != self.num_hosts:
            return False
        return all(answers(address, port) for address in found)

    def down(self):
        """Leaves no process, namespace, bridge or file, however much of them there was. Touches no
        folder of anybody else's."""
        state = self.folder / "state.json"
        if self.folder.exists() and any(self.folder.iterdir()) and not state.exists():
            raise SystemExit(f"error: {self.folder} has other files, and no state.json of ours: choose an empty folder")
        # Who keeps services up first: it ends them in order.
        states = [json.loads(path.read_text()) for path in self.folder.glob("services/*/supervisor.json")]
        end([state["pid"] for state in states if "cookbook.tools.services" in words_of(state["pid"])], grace=20)
        for name in sh("ip", "netns", "list", check=False).split() if self.namespaces else []:
            if name.startswith(f"cb-{self.id}-"):
                end([int(pid) for pid in sh("ip", "netns", "pids", name, check=False).split()])
                sh("ip", "netns", "delete", name)
        # The pairs first: left to themselves they go when the kernel has taken their namespace apart, some time later.
        for link in self.links():
            sh("ip", "link", "delete", link, check=False)
        if self.links():
            raise SystemExit(f"error: {', '.join(self.links())}: could not be removed")
        for path in self.folder.glob("sshd*.pid"):
            pid = int(path.read_text().split()[0])
            if str(self.folder) in words_of(pid):
                end([pid])
        for path in self.folder.glob("*"):
            if path != state:  # the last one, so that what was interrupted can be done again
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        state.unlink(missing_ok=True)

    def status(self):
        up = self.is_up()
        print(f"{self.folder}: {self.num_hosts} hosts are {'up' if up else 'not up'}")
        return 0 if up else 1


def words_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def end(pids, grace=3):
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace
        while pids and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.1)
            pids = [
                pid
                for pid in pids
                if Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()
            ]


def answers(address, port):
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_for(address, port, folder):
    deadline = time.monotonic() + 15
    while not answers(address, port):
        if time.monotonic() > deadline:
            logs = " ".join(path.read_text() for path in sorted(folder.glob("*.log")))
            raise SystemExit(f"error: no sshd answers at {address}:{port}: {logs.strip()[-500:]}")
        time.sleep(0.1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "status", "down"])
    parser.add_argument("folder", help="where their keys, logs and inventory.yaml are; belongs to them alone")
    parser.add_argument("--num-hosts", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="workers that each host takes")
    parser.add_argument(
        "--private",
        action="append",
        default=[],
        metavar="PATH[=SIZE]",
        help="a folder of which each host sees one of its own, of limited size if given, like 64m (root only)",
    )
    words = parser.parse_args()
    if not 1 <= words.num_hosts <= 50:
        raise SystemExit(f"error: --num-hosts {words.num_hosts}: expected 1 to 50")
    hosts = Hosts(words.folder, words.num_hosts, words.slots, words.private)
    if words.private and not hosts.namespaces:
        raise SystemExit("error: --private needs root")
    return getattr(hosts, words.command)()


if __name__ == "__main__":
    sys.exit(main())
