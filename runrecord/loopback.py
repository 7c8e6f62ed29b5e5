"""What the launchers of this folder share: a network of their own (Linux), and how they and their children end.

Some servers listen on all interfaces, whatever they are told.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from types import FrameType

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER
SET_FLAGS, SET_ADDRESS, SET_NETMASK = 0x8914, 0x8916, 0x891C  # SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK
UP_AND_RUNNING = 0x41  # IFF_UP | IFF_RUNNING


SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


class Stopped(BaseException):
    """A signal has come that ends the launcher: it then ends what it has started."""


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler: raises Stopped."""
    raise Stopped(signal.Signals(number).name)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Asks the kernel for this signal when the parent of this process has ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, number)


def leave_network(variable: str) -> str | None:
    """Moves this process, and those it will start, into a network with nothing but loopback; returns why not, or None.

    A child process tries it first. A system may give out the network and then refuse all rights in it (Ubuntu 24.04
    does so to ordinary users), and a process that is in such a network cannot go back.

    Raises SystemExit in the unlikely case that what worked for the child fails here. The text names `variable`: the
    environment variable that keeps the program in the machine's network.
    """
    if sys.platform != "linux":
        return "that takes Linux"
    if problem := _tried_by_a_child():
        return problem
    try:
        _move()
    except OSError as error:
        raise SystemExit(
            f"a network of its own was made, but loopback cannot be set up in it ({error}): set {variable}=host"
        ) from None
    _take_addresses(own_addresses())
    return None


def _tried_by_a_child() -> str:
    """Why a network of its own cannot be had; empty if it can."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _move()
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as words:
        problem = words.read().decode(errors="replace")
    os.waitpid(child, 0)
    return problem


def _move() -> None:
    """Moves this process into a new network and switches loopback on there. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK | (NEW_USER if user else 0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if user:  # Only root of a user namespace may do this. For everything else the user keeps the own id.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket() as sock:
        fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh", b"lo", UP_AND_RUNNING))


def own_addresses() -> list[str]:
    """Addresses that this machine's own name leads to, without those of loopback.

    They are looked up in the new network. Name servers cannot be reached from there, so every program in it finds
    the same addresses.
    """
    try:
        entries = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return []
    found = {ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries}  # fe80::1%eth0
    return sorted(str(address) for address in found if not address.is_loopback)


def _take_addresses(addresses: Iterable[str]) -> None:
    """Gives loopback these addresses too.

    Some programs ask for the machine's name and connect to the address that they are told. On RHEL, on cluster nodes
    and in pods /etc/hosts has the machine's own address, or an old one. Without this they would wait for ever.
    """
    for number, address in enumerate(addresses):
        try:
            if ":" in address:
                with socket.socket(socket.AF_INET6) as sock:
                    number_of_lo = socket.if_nametoindex("lo")
                    request = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, number_of_lo)
                    fcntl.ioctl(sock, SET_ADDRESS, request)
                continue
            name, family = f"lo:{number}".encode(), struct.pack("=HH", socket.AF_INET, 0)
            with socket.socket() as sock:
                for action, value in ((SET_ADDRESS, address), (SET_NETMASK, "255.255.255.255")):
                    request = struct.pack("16s4s4s8s", name, family, socket.inet_aton(value), b"")
                    fcntl.ioctl(sock, action, request)
        except OSError as error:
            print(f"the machine's own address {address} cannot be given to loopback: {error}", flush=True)
