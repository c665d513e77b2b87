"""Try to reach something from here, everything at once; tell what answered.

Words: the verb; the time to listen, in seconds; then address and port of each further TCP target.
Writes a line for each target: name TAB 1 or 0 (reached) TAB detail.

Reached means: something that is not this machine sent an answer. An accepted connection or a datagram always counts. A
refusal (RST, or an ICMP error of another machine) counts unless the two control addresses, at which nothing can be
(RFC 5737), are refused in the same way: then a fence on the way refuses everything by itself, as QEMU's restricted user
networking does with RST, and its refusals tell nothing of what is behind it. Silence does not count, nor what this
machine's own kernel says (no route; no neighbour of that address). Not tried: ARP, neighbour discovery, DHCP, and ICMP
echo to the gateway, which QEMU's user networking answers itself, restricted or not.

Only modules written in C are used: others take too long to load in an emulated machine.
"""
# ruff: noqa: PTH123

from __future__ import annotations

import _socket as s
import errno
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # see above
    from collections.abc import Sequence

IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE, IPV6_MULTICAST_LOOP = 11, 25, 0x2000, 19
IPV6, ICMPV6 = 41, 58
REFUSALS = "reset", "icmp"
PATIENCE = 2.0
CONTROLS = "198.51.100.7", "203.0.113.7"
QUERY = bytes.fromhex("4d4601000001000000000000") + b"\x07example\x03com\x00\x00\x01\x00\x01"
ECHO = b"\x80\x00\x00\x00MF\x00\x01mayfly"


def lines(path: str) -> list[list[str]]:
    """The words of a file's lines; nothing when there is no such file."""
    try:
        with open(path) as file:
            return [line.split() for line in file]
    except OSError:
        return []


def gateways() -> list[str]:
    routes = [field for field in lines("/proc/net/route")[1:] if field[1] == "00000000" != field[2]]
    return [".".join(str(byte) for byte in bytes.fromhex(field[2])[::-1]) for field in routes]


def gateways6() -> list[tuple[str, str]]:
    none = "0" * 32
    routes = [field for field in lines("/proc/net/ipv6_route") if field[0] == none != field[4] and field[1] == "00"]
    return [(s.inet_ntop(s.AF_INET6, bytes.fromhex(field[4])), field[9]) for field in routes]


def nameservers() -> list[str]:
    listed = [field[1] for field in lines("/etc/resolv.conf") if field[:1] == ["nameserver"] and len(field) > 1]
    return [address for address in listed if ":" not in address and not address.startswith("127.")]


def interfaces6() -> list[tuple[str, int, str]]:
    """Each IPv6 address of this machine, with its interface's number and name."""
    found = lines("/proc/net/if_inet6")
    return [(s.inet_ntop(s.AF_INET6, bytes.fromhex(field[0])), int(field[1], 16), field[5]) for field in found]


def source_of(address: str) -> str | None:
    """This machine's address on the way to `address`. Sends nothing."""
    one = s.socket(s.AF_INET, s.SOCK_DGRAM)
    try:
        one.connect((address, 9))
        return str(one.getsockname()[0])
    except OSError:
        return None
    finally:
        one.close()


def neighbours(address: str) -> list[str]:
    head, _, last = address.rpartition(".")
    return [f"{head}.{number}" for number in (int(last) - 1, int(last) + 1) if 0 < number < 255]


class Try:
    """One thing tried. `answer`: None while there is none, else its sort ("yes", "reset", "icmp", "local") and text."""

    def __init__(self, name: str, kind: int, target: tuple[object, ...], payload: bytes = b"") -> None:
        self.name, self.payload, self.kind = name, payload, kind
        self.answer: tuple[str, str] | None = None
        six = ":" in str(target[0])
        try:
            self.sock = s.socket(s.AF_INET6 if six else s.AF_INET, kind, ICMPV6 if kind == s.SOCK_RAW else 0)
            self.sock.setblocking(False)
            self.sock.setsockopt(IPV6 if six else s.IPPROTO_IP, IPV6_RECVERR if six else IP_RECVERR, 1)
            if kind == s.SOCK_RAW:
                self.sock.setsockopt(IPV6, IPV6_MULTICAST_LOOP, 0)
                self.sock.sendto(payload, target)
            else:
                self.sock.connect(target)
                if payload:
                    self.sock.send(payload)
        except BlockingIOError:
            pass
        except OSError as error:
            self.answer = "local", f"no way: {error.strerror}"

    def look(self, mine: set[str]) -> bool:
        """There is an answer now, of something other than this machine or of its own kernel."""
        sender = self.offender()
        code = self.sock.getsockopt(s.SOL_SOCKET, s.SO_ERROR)
        if sender and sender not in mine:
            self.answer = "icmp", f"an ICMP error from {sender}"
        elif sender or (code and code != errno.ECONNREFUSED):
            self.answer = "local", f"no way: {errno.errorcode.get(code, 'unreachable')}"
        elif code:
            self.answer = "reset", "refused"
        elif self.kind == s.SOCK_STREAM:
            try:
                self.sock.getpeername()
                self.answer = "yes", "connected"
            except OSError:
                pass
        else:
            try:
                data, whence = self.sock.recvfrom(512)
                if self.kind == s.SOCK_DGRAM or (data[:1] == b"\x81" and whence[0].partition("%")[0] not in mine):
                    self.answer = "yes", f"an answer from {whence[0]}"
            except OSError:
                pass
        return self.answer is not None

    def offender(self) -> str | None:
        """Who sent the ICMP error that waits here, if one does."""
        try:
            _, ancillary, _, _ = self.sock.recvmsg(512, 512, MSG_ERRQUEUE)
        except OSError:
            return None
        for level, kind, data in ancillary:
            # struct sock_extended_err: ee_errno (4 bytes), ee_origin (1: 2 is ICMP, 3 ICMPv6), …; a sockaddr at 16
            if (level, kind) == (s.IPPROTO_IP, IP_RECVERR) and data[4] == 2:
                return str(s.inet_ntop(s.AF_INET, data[20:24]))
            if (level, kind) == (IPV6, IPV6_RECVERR) and data[4] == 3:
                return str(s.inet_ntop(s.AF_INET6, data[24:40]))
        return None


def everything(extra: list[tuple[str, int]]) -> tuple[list[Try], set[str]]:
    """What is tried, and this machine's own addresses."""
    tcp = s.SOCK_STREAM
    gateway, six = gateways(), interfaces6()
    own = source_of(gateway[0] if gateway else CONTROLS[0])
    mine = {"127.0.0.1", *([own] if own else []), *(address for address, _, _ in six)}
    scopes = {name: number for _, number, name in six if name != "lo"}
    tries = [Try(f"control {address} TCP 9", tcp, (address, 9)) for address in CONTROLS]
    tries += [Try(f"{address} TCP {port}", tcp, (address, port)) for address, port in extra]
    for address in gateway:
        # QEMU's user networking takes its gateway's address for the host's loopback
        tries += [Try(f"gateway {address} TCP {port}", tcp, (address, port)) for port in (22, 53, 80, 443, 2633)]
    for address in dict.fromkeys([*nameservers(), *(each.rpartition(".")[0] + ".3" for each in gateway), "8.8.8.8"]):
        tries.append(Try(f"DNS {address} UDP 53", s.SOCK_DGRAM, (address, 53), QUERY))
        tries.append(Try(f"DNS {address} TCP 53", tcp, (address, 53)))
    tries += [Try(f"metadata {each} TCP 80", tcp, (each, 80)) for each in ("169.254.169.254", "fd00:ec2::254")]
    tries += [Try(f"public {address} TCP 443", tcp, (address, 443)) for address in ("1.1.1.1", "2606:4700:4700::1111")]
    beside = neighbours(own) if own else []
    tries += [Try(f"neighbour {address} TCP 22", tcp, (address, 22)) for address in beside if address not in gateway]
    for address, name in gateways6():
        tries.append(Try(f"gateway {address} TCP 22", tcp, (address, 22, 0, scopes.get(name, 0))))
    for name, scope in scopes.items():
        tries.append(Try(f"all nodes ff02::1%{name}", s.SOCK_RAW, ("ff02::1", 0, 0, scope), ECHO))
        tries.append(Try(f"link-local fe80::2%{name} TCP 22", tcp, ("fe80::2", 22, 0, scope)))
    return tries, mine


class Probing:
    """Everything is tried when it is made; `finish` listens until `window` seconds after that. `words`: address and
    port of each further TCP target."""

    def __init__(self, window: float, words: Sequence[str]) -> None:
        self.tries, self.mine = everything([(words[at], int(words[at + 1])) for at in range(0, len(words), 2)])
        self.window, self.until = window, time.monotonic() + window

    def finish(self) -> str:
        """A line for each target."""
        self.listen()
        controls = [one.answer[0] if one.answer else "" for one in self.tries[: len(CONTROLS)]]
        told = []
        for one in self.tries:
            sort, text = one.answer or ("silence", f"silence for {self.window:g} s")
            fenced = sort in REFUSALS and all(control == sort for control in controls)
            if fenced:
                text += ", by the fence: addresses at which nothing is are refused as well"
            told.append(f"{one.name}\t{int(sort == 'yes' or (sort in REFUSALS and not fenced))}\t{text}\n")
        return "".join(told)

    def listen(self) -> None:
        tries = self.tries
        waiting = {one.sock.fileno(): one for one in tries if one.answer is None}
        poller = select.poll()
        for descriptor, one in waiting.items():
            poller.register(descriptor, select.POLLOUT if one.kind == s.SOCK_STREAM else select.POLLIN)
        while waiting:
            left = self.until - time.monotonic()
            if left <= 0 and any(one.answer and one.answer[0] in REFUSALS for one in tries):
                # to judge a refusal the controls must be known, and they are slower than the rest only in a busy
                # machine
                left = PATIENCE + left if any(one.answer is None for one in tries[: len(CONTROLS)]) else 0
            if left <= 0:
                # what has come while something else was done here is heard too
                self.hear(poller, waiting, 0)
                break
            self.hear(poller, waiting, left)

    def hear(self, poller: select.poll, waiting: dict[int, Try], seconds: float) -> None:
        for descriptor, _ in poller.poll(seconds * 1000):
            if waiting[descriptor].look(self.mine):
                poller.unregister(descriptor)
                del waiting[descriptor]


if __name__ == "__main__":
    print(Probing(float(sys.argv[2]), sys.argv[3:]).finish(), end="")
