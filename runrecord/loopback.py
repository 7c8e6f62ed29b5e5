"""A network of its own for servers that listen on all interfaces of the machine, whatever they are told (Linux)."""

import ctypes
import fcntl
import os
import socket
import struct
import sys

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER
SET_FLAGS, SET_ADDRESS, SET_NETMASK = 0x8914, 0x8916, 0x891C  # SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK


def leave_network(variable):
    """Moves this process, and those it will start, into a network with nothing but loopback; returns why not, or None.

    A child process tries it first: a system may give out the network and then refuse all rights in it (Ubuntu 24.04 does so to
    ordinary users), and there is no way back from there. Raises SystemExit, naming the environment variable that keeps it out
    of this, in the unlikely case that what worked for the child fails here.
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


def _tried_by_a_child():
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


def _move():
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK | (NEW_USER if user else 0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if user:  # who is not root may do so as "root" of a user namespace, and stays who he is for everything else
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket() as sock:
        fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh", b"lo", 0x41))  # IFF_UP | IFF_RUNNING


def own_addresses():
    """IPv4 addresses that this machine's own name leads to, those of loopback left out. Looked up in the new network: name
    servers cannot be reached from there, so that what is found is what every program in it will find."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    except OSError:
        return []
    return sorted(address for address in found if not address.startswith("127."))


def _take_addresses(addresses):
    """Gives loopback these addresses too: programs that ask for the machine's name, and talk to what they are told, would wait
    for ever (/etc/hosts has the machine's address, or one that is gone, on RHEL, on cluster nodes and in pods)."""
    with socket.socket() as sock:
        for number, address in enumerate(addresses):
            name, family = f"lo:{number}".encode(), struct.pack("=HH", socket.AF_INET, 0)
            for request, value in ((SET_ADDRESS, address), (SET_NETMASK, "255.255.255.255")):
                try:
                    fcntl.ioctl(sock, request, struct.pack("16s4s4s8s", name, family, socket.inet_aton(value), b""))
                except OSError as error:
                    print(f"the machine's own address {address} cannot be given to loopback: {error}", flush=True)
                    break
