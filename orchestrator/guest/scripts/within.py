"""The network namespace of an armed unit, entered from outside of it by a child of ours."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

from orchestrator.guest.scripts.place import RUN, read_file
from orchestrator.guest.scripts.probe import Probing, lines

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from collections.abc import Callable

WINDOW_SECONDS = 0.1
"""To listen in. In a namespace without interfaces the kernel itself answers, and at once."""

# linux/sched.h, linux/sockios.h, linux/if.h
CLONE_NEWNET, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x40000000, 0x8913, 0x8914, 0x8916, 1


def lower_loopback() -> None:
    """Nothing can be sent over it any more: who is in the unit has no right to raise it. Raises OSError."""

    def lower() -> str:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        # without an address there is no route either: else what is sent to it would vanish, and be waited for
        nowhere = struct.pack("16sHH4s8x", b"lo", _socket.AF_INET, 0, bytes(4))
        fcntl.ioctl(sock.fileno(), SIOCSIFADDR, nowhere)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, struct.pack("16s16x", b"lo")))
        fcntl.ioctl(sock.fileno(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags & ~IFF_UP))
        return "lowered"

    if inside(lower) != "lowered":
        raise OSError("the loopback of the unit cannot be put down")


def probe_within(loopback: str) -> str:
    """Lines as `probe` writes them: what the user `task` reaches from there. loopback: "up" or "down"."""

    def probe() -> str:
        user = os.stat("/task/out")  # noqa: PTH116
        os.setgroups([])
        os.setgid(user.st_gid)
        os.setuid(user.st_uid)
        others = [name for line in lines("/proc/net/dev")[2:] if (name := line[0].partition(":")[0]) != "lo"]
        told = f"interfaces but lo\t{int(bool(others))}\t{' '.join(others) or 'none'}\n"
        if loopback == "down":
            sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            sock.settimeout(WINDOW_SECONDS)
            code = sock.connect_ex(("127.0.0.1", 9))
            up = code in (0, errno.ECONNREFUSED)  # somebody answered, and be it the kernel
            told += f"loopback 127.0.0.1 TCP 9\t{int(up)}\t{errno.errorcode.get(code, 'connected')}\n"
        return told + Probing(WINDOW_SECONDS, ()).finish()

    found = inside(probe)
    return "".join(f"unit: {line}\n" for line in found.splitlines()) or "unit: probes\t1\tthey could not be tried\n"


def inside(work: Callable[[], str]) -> str:
    """What a child says that does this there; nothing when it fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            enter(int(read_file(RUN + "/pid")))
            os.write(writing, work().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    return said.decode() if os.waitpid(child, 0)[1] == 0 else ""


def enter(pid: int) -> None:
    import ctypes  # late: it takes long to load in an emulated machine

    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(space, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
