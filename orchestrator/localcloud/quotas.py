"""Quotas of users and groups: limits set by the administrator, use counted from the objects themselves.

A limit of -1 is the default (none here), -2 is none. Sections as `one.user.quota` and `one.group.quota` take them: VM,
NETWORK, DATASTORE, IMAGE.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.localcloud.model import Group, Owned, User, Vm, VmState
from orchestrator.localcloud.refusals import internal
from orchestrator.localcloud.store import Store
from orchestrator.localcloud.template import TemplateError, Vector, parse, text_of, vectors

_VM_LIMITS = ("CPU", "MEMORY", "VMS", "SYSTEM_DISK_SIZE")
_RUNNING_LIMITS = ("RUNNING_CPU", "RUNNING_MEMORY", "RUNNING_VMS")
_UNCOUNTED = ("PCI_DEV", "PCI_NIC", "RUNNING_PCI_DEV", "RUNNING_PCI_NIC")
_LIMITS = {
    "VM": _VM_LIMITS + _RUNNING_LIMITS,
    "NETWORK": ("LEASES",),
    "DATASTORE": ("IMAGES", "SIZE"),
    "IMAGE": ("RVMS",),
}


Holder = User | Group


@dataclass(slots=True)
class Wanted:
    """What a new VM (or image) would use: `vm` by limit; leases by network, running VMs by image, `images` and `size`
    by datastore."""

    vm: dict[str, float] = field(default_factory=dict)
    leases: dict[int, int] = field(default_factory=dict)
    rvms: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    size: dict[int, int] = field(default_factory=dict)


def set_quotas(holder: Holder, text: str) -> None:
    """Set the limits that `text` names; those that a vector leaves out are the default again. Raises Refused 8192."""
    try:
        given = parse(text)
    except TemplateError as error:
        raise internal(str(error)) from None
    for section, limits in _LIMITS.items():
        for vector in vectors(given, section):
            for name, value in vector.items():
                if name in limits:
                    _number(name, value)
            others = [item for item in vectors(holder.quotas, section) if item.get("ID", "") != vector.get("ID", "")]
            kept = {name: value for name, value in vector.items() if name in (*limits, "ID")}
            holder.quotas[section] = [*others, kept]


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise internal(f"Quota limit {name} must be a number") from None


def _owns(holder: Holder, thing: Owned) -> bool:
    return (thing.uid if isinstance(holder, User) else thing.gid) == holder.oid


def _used(store: Store, holder: Holder) -> Wanted:
    used = Wanted(vm=dict.fromkeys((*_VM_LIMITS, *_RUNNING_LIMITS), 0.0))
    for vm in store.vms:
        if vm.state == VmState.DONE or not _owns(holder, vm):
            continue
        running = vm.state == VmState.ACTIVE or (vm.state == VmState.PENDING)
        for name, amount in vm_usage(vm).items():
            used.vm[name] += amount
            if running and f"RUNNING_{name}" in used.vm:
                used.vm[f"RUNNING_{name}"] += amount
        for nic in vectors(vm.template, "NIC"):
            _count(used.leases, nic.get("NETWORK_ID"))
        for disk in vectors(vm.template, "DISK"):
            _count(used.rvms, disk.get("IMAGE_ID"))
    for image in store.images:
        if _owns(holder, image):
            used.images[image.datastore_id] = used.images.get(image.datastore_id, 0) + 1
            used.size[image.datastore_id] = used.size.get(image.datastore_id, 0) + image.size
    return used


def _count(counts: dict[int, int], key: str | None) -> None:
    if key:
        counts[int(key)] = counts.get(int(key), 0) + 1


def vm_usage(vm: Vm) -> dict[str, float]:
    """What one VM uses: CPU in cores, MEMORY and SYSTEM_DISK_SIZE in MB."""
    return {
        "CPU": float(text_of(vm.template, "CPU", "0")),
        "MEMORY": float(text_of(vm.template, "MEMORY", "0")),
        "VMS": 1.0,
        "SYSTEM_DISK_SIZE": float(sum(int(disk.get("SIZE", "0")) for disk in vectors(vm.template, "DISK"))),
    }


def check(store: Store, user: User, wanted: Wanted) -> str | None:
    """The text of the first quota that `wanted` would break, of the user or then of the user's group, or None."""
    holders: list[Holder] = [user] if user.oid else []
    if user.oid and user.gid and (group := store.groups.find(user.gid)):
        holders.append(group)
    return next((broken for holder in holders if (broken := _broken(store, holder, wanted))), None)


def _broken(store: Store, holder: Holder, wanted: Wanted) -> str | None:
    if not holder.quotas:
        return None
    used = _used(store, holder)
    who = f"{holder.kind} [{holder.oid}]"
    for limits in vectors(holder.quotas, "VM"):
        for name, amount in wanted.vm.items():
            for key in (name, f"RUNNING_{name}"):
                limit = float(limits.get(key, "-1"))
                if limit >= 0 and used.vm.get(key, 0.0) + amount > limit:
                    return f"{who} limit of {limits[key]} reached for {key} quota in VM."
    for section, key, already, more in (
        ("NETWORK", "LEASES", used.leases, wanted.leases),
        ("IMAGE", "RVMS", used.rvms, wanted.rvms),
        ("DATASTORE", "IMAGES", used.images, wanted.images),
        ("DATASTORE", "SIZE", used.size, wanted.size),
    ):
        for limits in vectors(holder.quotas, section):
            ident = int(limits.get("ID", "-1"))
            limit = float(limits.get(key, "-1"))
            amount = more.get(ident, 0)
            if limit >= 0 and amount and already.get(ident, 0) + amount > limit:
                return f"{who} limit of {limits[key]} reached for {key} quota in {section} with ID: {ident}."
    return None


def quota_vectors(store: Store, holder: Holder, section: str) -> list[Vector]:
    """A section as `one.user.info` shows it: limits and use. Nothing for oneadmin and its group, who have no quotas."""
    if holder.oid == 0:
        return []
    used = _used(store, holder)
    match section:
        case "VM":
            limits = vectors(holder.quotas, "VM")
            if not limits and not used.vm["VMS"]:
                return []
            row: Vector = {}
            for name in (*_VM_LIMITS, *_RUNNING_LIMITS, *_UNCOUNTED):
                row[name] = limits[0].get(name, "-1") if limits else "-1"
                amount = used.vm.get(name, 0.0)
                row[f"{name}_USED"] = f"{amount:.2f}" if name.endswith("CPU") else str(int(amount))
            return [row]
        case "NETWORK":
            return _rows(holder, section, {"LEASES": used.leases})
        case "IMAGE":
            return _rows(holder, section, {"RVMS": used.rvms})
        case _:
            return _rows(holder, section, {"IMAGES": used.images, "SIZE": used.size})


def _rows(holder: Holder, section: str, counts: dict[str, dict[int, int]]) -> list[Vector]:
    limits = {int(item["ID"]): item for item in vectors(holder.quotas, section) if item.get("ID", "").isdigit()}
    idents = sorted(set(limits).union(*(set(count) for count in counts.values())))
    rows = []
    for ident in idents:
        row = {"ID": str(ident)}
        for key, count in counts.items():
            row[key] = limits.get(ident, {}).get(key, "-1")
            row[f"{key}_USED"] = str(count.get(ident, 0))
        rows.append(row)
    return rows
