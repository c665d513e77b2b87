"""No kernel module is loaded any more: what a process asks of the kernel (a socket of an odd protocol) loads none.

So there are no sockets of a family that nobody has used yet: AF_VSOCK, which would lead to the hypervisor from whatever
network namespace. The kernel says so itself, and what was tried is in the trace. Where such a family is there all the
same, a filter refuses it, and hides it from a tracer that has a filter of its own.
"""
# ruff: noqa: PTH110

from __future__ import annotations

import _socket
import os

from orchestrator.guest.scripts.place import read_file, write_file

AF_ALG, AF_VSOCK = 38, 40
SWITCH = "/proc/sys/kernel/modules_disabled"


def close_modules() -> None:
    """Until the machine restarts. What a layer is mounted with is loaded before."""
    if not os.path.exists(SWITCH) or read_file(SWITCH).strip() == b"1":
        return
    known = read_file("/proc/filesystems").split()
    missing = [name for name in ("squashfs", "overlay") if name.encode() not in known]
    missing += [] if os.path.exists("/sys/module/loop") else ["loop"]
    if missing:  # not so in our own image; what cannot be loaded, who mounts it will tell
        os.waitpid(os.posix_spawnp("modprobe", ["modprobe", "-qa", *missing], os.environ), 0)
    write_file(SWITCH, b"1")


def families() -> list[str]:
    """Properties of the unit: none when the kernel has none of these families, as in our own image."""
    for family in (AF_ALG, AF_VSOCK):
        try:
            os.close(
                _socket.socket(family, _socket.SOCK_STREAM if family == AF_VSOCK else _socket.SOCK_SEQPACKET).detach()
            )
        except OSError:
            continue
        return ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"]
    return []
