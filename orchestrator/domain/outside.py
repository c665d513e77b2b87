"""What the cloud itself says of a VM's way to others: its NICs, and the rules of their security groups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class NicKind(StrEnum):
    """NIC: an interface of its own. ALIAS: one more address of another NIC. PCI: a passed-through device, which no
    security group filters."""

    NIC = "nic"
    ALIAS = "alias"
    PCI = "pci"


class Direction(StrEnum):
    """Seen from the VM."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class Nic:
    """One interface, and the ids of the security groups that filter it; without any, nothing is filtered. `ip` is empty
    when it has no address. `external`: an address from outside is led to it (a floating one)."""

    network: str
    ip: str
    mac: str
    security_groups: tuple[int, ...]
    kind: NicKind = NicKind.NIC
    external: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Traffic that a security group lets through: all other is dropped. `protocol`: ALL, TCP, UDP, ICMP, ICMPV6 or
    IPSEC. `ports`: "22", "80,443,1024:65535", empty for every port. `addresses`: whose traffic, empty for everybody's:
    "10.0.0.4/16" is not a prefix but 16 addresses from there on."""

    group: int
    protocol: str
    direction: Direction
    ports: str = ""
    addresses: str = ""


@dataclass(frozen=True, slots=True)
class OutsideView:
    """All NICs of a VM, at least one, and all rules of all their groups, as the cloud had them `at` this time."""

    nics: tuple[Nic, ...]
    rules: tuple[Rule, ...]
    at: datetime
