"""What was tried of the network: addresses as strace decodes them, and what kind of place each is."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from itertools import islice

from orchestrator.trace.arguments import split
from orchestrator.trace.parse import Call

TRIES = frozenset({"connect", "bind", "sendto", "sendmsg", "sendmmsg"})
_PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
MAX_ADDRESSES = 64
"""Of one call: sendmmsg may have as many as it has messages."""
_OWN = frozenset({"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"})
"""Families that do not lead out of the machine: programs on it, its kernel."""
_ADDRESS = re.compile(
    rb"sa_family=(AF_[A-Z0-9]{1,16})"
    rb"(?:, sin6?_port=htons\((\d{1,5})\))?"
    rb'(?:, sin_addr=inet_addr\("([0-9.]{1,15})"\))?'
    rb'(?:, sin6_flowinfo=htonl\(\d+\), inet_pton\(AF_INET6, "([0-9a-fA-F:.]{1,45})", &sin6_addr\))?'
    rb"(?:, svm_cid=([\w-]{1,20}))?(?:, svm_port=([\w-]{1,20}))?"
)
_FAMILY = re.compile(rb"[AP]F_[A-Z0-9]{1,16}|\d{1,5}|0x[0-9a-f]{1,8}")
_CHOSEN = re.compile(
    rb'(inet_addr\(|AF_INET6, )?"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|(?<=[0-9D])<[/a-z(][^<>]*>', re.DOTALL
)
"""What a process sends stands in strings, and names that it chose in these and in the names of descriptors: it could
write there what looks like an address. Addresses stand in strings too, which only strace writes."""
_METADATA = frozenset({"169.254.169.254", "fd00:ec2::254"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """`call` with an address of `family` ("AF_INET"), of a `kind` of place; `outcome`: "ok", "unfinished" or an errno.
    `port` is None where the family has none."""

    call: str
    family: str
    kind: str
    address: str
    port: int | None
    outcome: str


def attempts(call: Call) -> list[Attempt]:
    """What the call tried of the network; addresses of the machine's own programs are none."""
    parts = split(call.arguments)
    if call.name == "socket":
        found = _FAMILY.fullmatch(parts[0]) if parts else None
        family = found[0].decode() if found else "unknown"
        return [] if family in _OWN else [Attempt("socket", family, _kind(family, ""), "", None, _outcome(call))]
    tried = []
    for found in islice(_ADDRESS.finditer(_CHOSEN.sub(_kept, call.arguments)), MAX_ADDRESSES):
        family = found[1].decode()
        if family not in _OWN:
            address = (found[3] or found[4] or found[5] or b"").decode()
            number = found[2] or found[6] or b""
            port = int(number) if number.isdigit() else None
            tried.append(Attempt(call.name, family, _kind(family, address), address, port, _outcome(call)))
    return tried


def is_own(family: str) -> bool:
    return family in _OWN


def _outcome(call: Call) -> str:
    return call.error or ("unfinished" if call.result == "?" else "ok")


def _kept(found: re.Match[bytes]) -> bytes:
    return found[0] if found[1] else b""


def _kind(family: str, address: str) -> str:
    """What kind of place an address is, in words that say nothing of which.

    >>> _kind("AF_INET", "169.254.169.254"), _kind("AF_INET", "10.0.2.3"), _kind("AF_VSOCK", "2")
    ('metadata', 'private', 'other')
    """
    if address in _METADATA:
        return "metadata"
    if family not in ("AF_INET", "AF_INET6"):
        return "other"
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped:
        known = known.ipv4_mapped
    if known.is_unspecified:
        return "any"
    if known.is_loopback:
        return "loopback"
    if known.is_link_local:
        return "link-local"
    if known.is_multicast or str(known) == "255.255.255.255":
        return "multicast"
    return (
        "private" if any(known in network for network in _PRIVATE if network.version == known.version) else "internet"
    )
