"""Does the cloud's own view of a machine agree with its seal? What is complained of, in words for people."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.domain.outside import Direction, Nic, NicKind, OutsideView, Rule
from orchestrator.domain.seal import Seal

SSH = 22
"""Where the image's sshd listens, whatever port its network shows to the outside."""


def complaints(seal: Seal, view: OutsideView, *, ssh_port: int = SSH) -> tuple[str, ...]:
    """Nothing when the seal holds, and for a profile that is open.

    A closed one wants one NIC and no other way in or out (no alias, no passed-through device, no external address); at
    least one security group on it; no outbound rule in any group; and inbound only TCP, to SSH or `ssh_port`. What no
    rule allows, OpenNebula's security groups refuse.

    >>> from datetime import UTC, datetime
    >>> complaints(Seal("sealed", 1), OutsideView((), (), datetime.now(UTC)))
    ('it has 0 NICs, and not one',)
    """
    return tuple(_complaints(view, {SSH, ssh_port})) if seal.closed else ()


def _complaints(view: OutsideView, ports: set[int]) -> Iterator[str]:
    if len(view.nics) != 1:
        yield f"it has {len(view.nics)} NICs, and not one"
    for nic in view.nics:
        yield from _of_nic(nic)
    for rule in view.rules:
        match rule.direction:
            case Direction.OUTBOUND:
                yield f"security group {rule.group} lets it send {_what(rule)}"
            case Direction.INBOUND if rule.protocol != "TCP" or not _only(rule.ports, ports):
                yield f"security group {rule.group} lets it be sent {_what(rule)}"
            case Direction.INBOUND:
                pass


def _of_nic(nic: Nic) -> Iterator[str]:
    where = f"NIC {nic.ip or nic.mac} in {nic.network}"
    match nic.kind:
        case NicKind.NIC:
            pass
        case NicKind.ALIAS:
            yield f"{where} is a second address of another"
        case NicKind.PCI:
            yield f"{where} is a device of the host, which no security group filters"
    if nic.external:
        yield f"{where} is reached from outside"
    if not nic.security_groups:
        yield f"{where} has no security group"


def _only(ports: str, allowed: set[int]) -> bool:
    """All that OpenNebula's RANGE names, "80,443,1024:65535", is allowed; "" are all ports."""
    return set(ports.split(",")) <= {str(port) for port in allowed}


def _what(rule: Rule) -> str:
    ports = f" to ports {rule.ports}" if rule.ports else ""
    return f"{rule.protocol}{ports}{f' ({rule.addresses})' if rule.addresses else ''}"
