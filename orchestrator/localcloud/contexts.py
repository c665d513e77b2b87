"""CONTEXT: what a guest is told. Variables are expanded, and each NIC becomes ETHn_*."""

from __future__ import annotations

import re

from orchestrator.localcloud.model import User, Vm
from orchestrator.localcloud.store import Store
from orchestrator.localcloud.template import Vector, text_of, vector_of, vectors

_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]]*)\])?")
# Shown for each NIC, empty when the network says nothing about it.
_ETH_KEYS = [
    "DNS",
    "EXTERNAL",
    "GATEWAY",
    "IP",
    "IP6",
    "IP6_GATEWAY",
    "IP6_METHOD",
    "IP6_METRIC",
    "IP6_PREFIX_LENGTH",
    "IP6_ULA",
    "MAC",
    "MASK",
    "METHOD",
    "METRIC",
    "MTU",
    "NETWORK",
    "ROUTES",
    "SEARCH_DOMAIN",
    "VLAN_ID",
    "VROUTER_IP",
    "VROUTER_IP6",
    "VROUTER_MANAGEMENT",
]
_FROM_NETWORK = {
    "DNS": "DNS",
    "GATEWAY": "GATEWAY",
    "MASK": "NETWORK_MASK",
    "NETWORK": "NETWORK_ADDRESS",
    "MTU": "GUEST_MTU",
    "METHOD": "METHOD",
    "METRIC": "METRIC",
    "SEARCH_DOMAIN": "SEARCH_DOMAIN",
}


def fill_context(store: Store, user: User, vm: Vm) -> None:
    """Complete the VM's CONTEXT, if it has one: expand variables, add ETHn_* (when NETWORK="YES"), TARGET and
    DISK_ID."""
    given = vector_of(vm.template, "CONTEXT")
    if not given:
        return
    context = {key: expand(value, user, vm) for key, value in given.items()}
    context.setdefault("TARGET", "sda")
    context.setdefault("DISK_ID", str(len(vectors(vm.template, "DISK"))))
    if context.get("NETWORK", "").upper() == "YES":
        for nic in vectors(vm.template, "NIC"):
            for key, value in _eth(store, nic).items():
                context.setdefault(f"ETH{nic['NIC_ID']}_{key}", value)
    vm.template["CONTEXT"] = [context]


def _eth(store: Store, nic: Vector) -> Vector:
    """The network's attribute GUEST_IP stands for the lease where the guest does not see its lease: behind a 1:1
    NAT."""
    network = store.networks.get(int(nic["NETWORK_ID"])).template
    values = dict.fromkeys(_ETH_KEYS, "")
    values |= {key: text_of(network, attribute) for key, attribute in _FROM_NETWORK.items()}
    values["IP"] = text_of(network, "GUEST_IP") or nic.get("IP", "")
    values["MAC"] = nic["MAC"]
    return values


def expand(text: str, user: User, vm: Vm) -> str:
    """`$NAME`, `$USER[ATTRIBUTE]`, `$NIC[ATTRIBUTE]` and attributes of the VM; what is not there becomes nothing."""

    def value(match: re.Match[str]) -> str:
        name, inside = match.group(1).upper(), match.group(2)
        if inside is None:
            return _attribute(vm, name)
        wanted = inside.split(",")[0].strip().upper()
        if name == "USER":
            return text_of(user.template, wanted)
        if name == "NIC":
            nics = vectors(vm.template, "NIC")
            return nics[0].get(wanted, "") if nics else ""
        return ""

    return _VARIABLE.sub(value, text)


def _attribute(vm: Vm, name: str) -> str:
    match name:
        case "NAME":
            return vm.name
        case "UID" | "GID" | "UNAME" | "GNAME":
            return str(getattr(vm, name.lower()))
        case _:
            return text_of(vm.template, name) or text_of(vm.user_template, name)
