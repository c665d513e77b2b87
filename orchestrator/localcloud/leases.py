"""Leases: which VM has which address of a virtual network."""

from __future__ import annotations

import ipaddress

from orchestrator.localcloud.bodies import range_at
from orchestrator.localcloud.model import AddressRange, Network
from orchestrator.localcloud.refusals import internal
from orchestrator.localcloud.store import Store
from orchestrator.localcloud.template import Vector

HELD = -1
"""The "VM" of an address that one.vn.hold took out of use."""
_PREFIX = "02:00"


def new_range(vector: Vector, ar_id: int) -> AddressRange:
    """From an `AR=[TYPE, IP, SIZE]` vector; the MAC is made from the IP. Raises Refused 8192."""
    ip, size = vector.get("IP", ""), vector.get("SIZE", "")
    kind = vector.get("TYPE", "IP4")
    if kind not in ("IP4", "ETHER"):
        raise internal(f"Address range type {kind} is not supported by this cloud")
    if not size.isdigit() or int(size) == 0:
        raise internal("Wrong SIZE for address range")
    if kind == "IP4":
        try:
            packed = ipaddress.IPv4Address(ip).packed
            ipaddress.IPv4Address(ip) + (int(size) - 1)
        except ValueError:
            raise internal(f"Wrong format for IP attribute: {ip}") from None
        mac = ":".join([_PREFIX, *(f"{byte:02x}" for byte in packed)])
    else:
        mac = f"{_PREFIX}:00:00:00:{ar_id + 1:02x}"
    return AddressRange(ar_id, kind, ip if kind == "IP4" else "", vector.get("MAC", mac), int(size))


def find(network: Network, ip: str = "", mac: str = "") -> tuple[AddressRange, int] | None:
    """The range and index of an address, whether it is in use or not."""
    for item in network.ranges:
        if ip and item.ip:
            try:
                index = int(ipaddress.IPv4Address(ip)) - int(ipaddress.IPv4Address(item.ip))
            except ValueError:
                return None
        elif mac and not ip:
            index = int(mac.replace(":", ""), 16) - int(item.mac.replace(":", ""), 16)
        else:
            continue
        if 0 <= index < item.size:
            return item, index
    return None


def take(store: Store, network: Network, vm_id: int, ip: str = "", mac: str = "") -> tuple[AddressRange, str, str]:
    """Lease the wanted address, or the lowest free one: its range, IP and MAC. Raises Refused 8192."""
    if ip or mac:
        wanted = find(network, ip, mac)
        places = [wanted] if wanted and str(wanted[1]) not in wanted[0].leases else []
    else:
        places = [
            (item, index)
            for item in network.ranges
            if (index := next((at for at in range(item.size) if str(at) not in item.leases), None)) is not None
        ]
    if not places:
        raise internal(f"Cannot get IP/MAC lease from virtual network {network.oid}.")
    item, index = places[0]
    item.leases[str(index)] = vm_id
    store.networks.save(network)
    return item, *range_at(item, index)


def give_back(store: Store, network_id: int, ar_id: int, vm_id: int, mac: str) -> None:
    """End a lease; "not leased to that VM" is success."""
    network = store.networks.find(network_id)
    if network is None:
        return
    for item in network.ranges:
        if item.ar_id == ar_id:
            for index, holder in list(item.leases.items()):
                if holder == vm_id and range_at(item, int(index))[1] == mac:
                    del item.leases[index]
    store.networks.save(network)
