"""A network of its own for servers that listen on all interfaces of the machine, whatever they are told (Linux)."""

import ctypes
import fcntl
import os
import socket
import struct
import sys


def leave_network(variable):
    """Moves this process, and those it will start, into a network with nothing but loopback; returns why not, or None.

    Raises SystemExit, naming the environment variable that keeps it out of this, when it has gone half way.
    """
    if sys.platform != "linux":
        return "that takes Linux"
    isolated = False
    new_network, new_user, user, group = 0x40000000, 0x10000000, os.getuid(), os.getgid()  # CLONE_NEWNET, CLONE_NEWUSER
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(new_network | (new_user if user else 0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        isolated = True
        if user:  # who is not root may do so as "root" of a user namespace, and stays who he is for everything else
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        with socket.socket() as sock:
            up = struct.pack("16sh", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
            fcntl.ioctl(sock, 0x8914, up)  # SIOCSIFFLAGS
    except OSError as error:
        if isolated:  # there is no way back, and nothing works without loopback
            raise SystemExit(
                f"a network of its own was made, but loopback cannot be set up in it ({error}): set {variable}=host"
            ) from None
        return str(error)
