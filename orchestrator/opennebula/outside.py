"""What OpenNebula says of a VM's NICs and security groups, out of the TEMPLATE of `one.vm.info`. Pure.

oned copies every rule of every group of every NIC into the VM's TEMPLATE (SECURITY_GROUP_RULE), and again when a NIC
comes or goes and when a group is changed: what stands there is what the drivers are given. A rule that names a virtual
network stands there once for each of its address ranges, with IP and SIZE.

A strange value is an error, never left out: what is left out would pass for sealed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from orchestrator.domain.errors import CloudError, CloudMissing
from orchestrator.domain.outside import Direction, Nic, NicKind, OutsideView, Rule
from orchestrator.opennebula.states import LcmState, Phase, State, phase

_KINDS = {"NIC": NicKind.NIC, "NIC_ALIAS": NicKind.ALIAS, "PCI": NicKind.PCI}
_PROTOCOLS = frozenset({"ALL", "TCP", "UDP", "ICMP", "ICMPV6", "IPSEC"})
_PORTS = re.compile(r"[0-9]{1,5}(:[0-9]{1,5})?(,[0-9]{1,5}(:[0-9]{1,5})?)*")
_NETWORK_CONTROLLER = "02"
"""The PCI base class of network controllers (PCI Code and ID Assignment Specification)."""


def read_outside(vm: Any, vm_id: int, at: datetime) -> OutsideView:
    """From what pyone makes of the answer to `one.vm.info` of this VM.

    Raises CloudMissing for a VM that is DONE (what it goes on to show is no longer so), CloudError for one that shows
    no NIC, and for what cannot be read.
    """
    try:
        shown, state = int(vm.ID), phase(State(int(vm.STATE)), LcmState(int(vm.LCM_STATE)))
        template = vm.TEMPLATE
    except (AttributeError, TypeError, ValueError) as error:
        raise _strange(f"VM {vm_id} is no VM ({error})") from error
    if shown != vm_id:
        raise _strange(f"asked for VM {vm_id}, it shows VM {shown}")
    if state is Phase.DONE:
        raise CloudMissing(f"VM {vm_id} is DONE")
    if not isinstance(template, Mapping) or not template:
        raise _strange(f"VM {vm_id} has no TEMPLATE")
    nics = tuple(
        _nic(kind, vector)
        for name, kind in _KINDS.items()
        for vector in _vectors(template, name)
        if _is_nic(name, vector)
    )
    if not nics:
        raise _strange(f"VM {vm_id} has no NIC")
    return OutsideView(nics, tuple(_rule(vector) for vector in _vectors(template, "SECURITY_GROUP_RULE")), at)


def _is_nic(name: str, vector: Mapping[str, str]) -> bool:
    """A PCI device may be anything; oned marks those that it manages as NICs, others are known by their class."""
    if name != "PCI":
        return True
    return _text(vector, "TYPE").upper() == "NIC" or _text(vector, "CLASS").startswith(_NETWORK_CONTROLLER)


def _nic(kind: NicKind, vector: Mapping[str, str]) -> Nic:
    network = _text(vector, "NETWORK")
    mac = _text(vector, "MAC")
    if kind is not NicKind.PCI and not (network and mac):
        raise _strange(f"a {kind} without NETWORK or MAC: {dict(vector)}")
    groups = [part.strip() for part in _text(vector, "SECURITY_GROUPS").split(",") if part.strip()]
    return Nic(
        network=network,
        ip=next((ip for key in ("IP", "IP6_GLOBAL", "IP6_ULA", "IP6") if (ip := _text(vector, key))), ""),
        mac=mac,
        security_groups=tuple(_number("SECURITY_GROUPS", group) for group in groups),
        kind=kind,
        external=_text(vector, "EXTERNAL").upper() == "YES" or bool(_text(vector, "EXTERNAL_IP")),
    )


def _rule(vector: Mapping[str, str]) -> Rule:
    direction, protocol = _text(vector, "RULE_TYPE").lower(), _text(vector, "PROTOCOL").upper()
    ports = _text(vector, "RANGE").replace(" ", "")
    if direction not in list(Direction) or protocol not in _PROTOCOLS or (ports and not _PORTS.fullmatch(ports)):
        raise _strange(f"a SECURITY_GROUP_RULE that says {dict(vector)}")
    return Rule(
        group=_number("SECURITY_GROUP_ID", _text(vector, "SECURITY_GROUP_ID")),
        protocol=protocol,
        direction=Direction(direction),
        ports=ports,
        addresses=_addresses(vector),
    )


def _addresses(vector: Mapping[str, str]) -> str:
    first, size, network = _text(vector, "IP"), _text(vector, "SIZE"), _text(vector, "NETWORK_ID")
    if first:
        return f"{first}/{size}" if size else first
    return f"network {network}" if network else ""


def _vectors(template: Mapping[str, Any], name: str) -> Iterator[Mapping[str, str]]:
    """pyone gives one vector as a dictionary, several as a list, none as a missing key."""
    found = template.get(name, [])
    for vector in found if isinstance(found, list) else [found]:
        if not isinstance(vector, Mapping) or not all(
            value is None or isinstance(value, str) for value in vector.values()
        ):
            raise _strange(f"a {name} that is no vector: {vector!r}")
        yield vector


def _text(vector: Mapping[str, str | None], key: str) -> str:
    return (vector.get(key) or "").strip()


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise _strange(f"{key} is {text!r}")
    return int(text)


def _strange(what: str) -> CloudError:
    return CloudError(f"what OpenNebula says of a VM's NICs cannot be read: {what[:500]}")
