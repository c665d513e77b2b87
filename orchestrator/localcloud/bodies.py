"""Objects to XML bodies, except VMs: element order and shape as an OpenNebula 7.2.0 returned them."""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Iterable
from pathlib import Path

from orchestrator.localcloud.markup import (
    cdata,
    element,
    ids,
    lock_xml,
    owner_xml,
    permissions_xml,
    plain,
    template_xml,
)
from orchestrator.localcloud.model import (
    AddressRange,
    Cluster,
    Datastore,
    Group,
    Host,
    Image,
    ImageState,
    Network,
    SecurityGroup,
    Vm,
    VmTemplate,
)
from orchestrator.localcloud.store import Store
from orchestrator.localcloud.template import text_of


def template_body(thing: VmTemplate) -> str:
    return element(
        "VMTEMPLATE",
        owner_xml(thing),
        lock_xml(thing),
        permissions_xml(thing.permissions),
        element("REGTIME", thing.regtime),
        template_xml("TEMPLATE", thing.template),
    )


def image_body(store: Store, image: Image) -> str:
    datastore = store.datastores.find(image.datastore_id)
    return element(
        "IMAGE",
        owner_xml(image),
        lock_xml(image),
        permissions_xml(image.permissions),
        element("TYPE", image.type),
        element("DISK_TYPE", 0),
        element("PERSISTENT", int(image.persistent)),
        element("REGTIME", image.regtime),
        element("MODTIME", image.modtime),
        cdata("SOURCE", image.source),
        cdata("PATH", image.path),
        cdata("FORMAT", image.format),
        cdata("FS", ""),
        element("SIZE", image.size),
        element("STATE", image.state),
        element("PREV_STATE", image.state if image.source or image.state != ImageState.LOCKED else 0),
        element("RUNNING_VMS", len(image.vms)),
        element("CLONING_OPS", 0),
        element("CLONING_ID", -1),
        element("TARGET_SNAPSHOT", -1),
        element("DATASTORE_ID", image.datastore_id),
        plain("DATASTORE", datastore.name if datastore else ""),
        ids("VMS", image.vms),
        "<CLONES></CLONES><APP_CLONES></APP_CLONES>",
        template_xml("TEMPLATE", image.template),
        element("SNAPSHOTS", cdata("ALLOW_ORPHANS", "NO"), cdata("CURRENT_BASE", -1), cdata("NEXT_SNAPSHOT", 0)),
        "<BACKUP_INCREMENTS></BACKUP_INCREMENTS><BACKUP_DISK_IDS></BACKUP_DISK_IDS>",
    )


def datastore_body(store: Store, datastore: Datastore, directory: Path) -> str:
    disk = shutil.disk_usage(directory) if directory.is_dir() else None
    return element(
        "DATASTORE",
        owner_xml(datastore),
        permissions_xml(datastore.permissions),
        cdata("DS_MAD", datastore.ds_mad),
        cdata("TM_MAD", datastore.tm_mad),
        cdata("BASE_PATH", directory),
        element("TYPE", datastore.type),
        element("DISK_TYPE", 0),
        element("STATE", 0),
        ids("CLUSTERS", datastore.clusters),
        element("TOTAL_MB", disk.total >> 20 if disk else 0),
        element("FREE_MB", disk.free >> 20 if disk else 0),
        element("USED_MB", disk.used >> 20 if disk else 0),
        ids("IMAGES", (image.oid for image in store.images if image.datastore_id == datastore.oid)),
        template_xml("TEMPLATE", datastore.template),
    )


def _vm_lists(updated: Iterable[int], updating: Iterable[int] = (), failed: Iterable[int] = ()) -> str:
    return "".join(
        (
            ids("UPDATED_VMS", updated),
            "<OUTDATED_VMS></OUTDATED_VMS>",
            ids("UPDATING_VMS", updating),
            ids("ERROR_VMS", failed),
        )
    )


def security_group_body(store: Store, group: SecurityGroup) -> str:
    users = {vm.oid for vm in store.vms if vm.etime == 0 and group.oid in security_group_ids(vm)}
    updating, failed = users.intersection(group.updating_vms), users.intersection(group.error_vms)
    return element(
        "SECURITY_GROUP",
        owner_xml(group),
        permissions_xml(group.permissions),
        _vm_lists(sorted(users - updating - failed), sorted(updating), sorted(failed)),
        template_xml("TEMPLATE", group.template),
    )


def security_group_ids(vm: Vm) -> set[int]:
    """Of all NICs of a VM."""
    found: set[int] = set()
    for nic in vm.template.get("NIC", []):
        if isinstance(nic, dict):
            found |= {int(part) for part in nic.get("SECURITY_GROUPS", "").split(",") if part.strip().isdigit()}
    return found


def range_at(address_range: AddressRange, index: int) -> tuple[str, str]:
    """The IP and the MAC at an index of an address range."""
    ip = str(ipaddress.IPv4Address(address_range.ip) + index) if address_range.ip else ""
    number = int(address_range.mac.replace(":", ""), 16) + index
    return ip, ":".join(f"{number:012x}"[at : at + 2] for at in range(0, 12, 2))


def _range_head(item: AddressRange) -> list[str]:
    head = [cdata("AR_ID", item.ar_id)]
    if item.ip:
        head.append(cdata("IP", item.ip))
    return [
        *head,
        cdata("MAC", item.mac),
        cdata("SHARED", "NO"),
        cdata("SIZE", item.size),
        cdata("TYPE", item.type),
    ]


def _range_with_leases(item: AddressRange) -> str:
    last_ip, last_mac = range_at(item, item.size - 1)
    leases = []
    for index, vm_id in sorted(item.leases.items(), key=lambda pair: int(pair[0])):
        ip, mac = range_at(item, int(index))
        leases.append(element("LEASE", cdata("IP", ip) if ip else "", cdata("MAC", mac), cdata("VM", vm_id)))
    return element(
        "AR",
        *_range_head(item),
        cdata("MAC_END", last_mac),
        cdata("IP_END", last_ip) if last_ip else "",
        element("USED_LEASES", len(item.leases)),
        element("LEASES", *leases) if leases else "<LEASES/>",
    )


def _range_in_pool(item: AddressRange) -> str:
    """In a pool body the leases are packed: index, then owner type (16: a VM) and id in one number."""
    packed = "".join(f" {index} {(16 << 32) | (vm_id & 0xFFFFFFFF)}" for index, vm_id in sorted(item.leases.items()))
    return element("AR", cdata("ALLOCATED", packed) if packed else "", *_range_head(item))


def network_body(network: Network, *, with_leases: bool = True) -> str:
    users = sorted({vm for item in network.ranges for vm in item.leases.values() if vm >= 0})
    vlan = text_of(network.template, "VLAN_ID")
    ranges = [_range_with_leases(item) if with_leases else _range_in_pool(item) for item in network.ranges]
    return element(
        "VNET",
        owner_xml(network),
        lock_xml(network),
        permissions_xml(network.permissions),
        ids("CLUSTERS", network.clusters),
        cdata("BRIDGE", network.bridge),
        cdata("BRIDGE_TYPE", "linux"),
        cdata("STATE", 1),
        cdata("PREV_STATE", 1),
        "<PARENT_NETWORK_ID/>",
        cdata("VN_MAD", network.vn_mad),
        "<PHYDEV/>",
        cdata("VLAN_ID", vlan) if vlan else "<VLAN_ID/>",
        "<OUTER_VLAN_ID/><VLAN_ID_AUTOMATIC>0</VLAN_ID_AUTOMATIC><OUTER_VLAN_ID_AUTOMATIC>0</OUTER_VLAN_ID_AUTOMATIC>",
        element("USED_LEASES", sum(len(item.leases) for item in network.ranges)),
        "<VROUTERS></VROUTERS>",
        _vm_lists(users),
        template_xml("TEMPLATE", network.template),
        element("AR_POOL", *ranges),
    )


def cluster_body(store: Store, cluster: Cluster) -> str:
    return element(
        "CLUSTER",
        element("ID", cluster.oid),
        plain("NAME", cluster.name),
        ids("HOSTS", (host.oid for host in store.hosts if host.cluster_id == cluster.oid)),
        ids("DATASTORES", (item.oid for item in store.datastores if cluster.oid in item.clusters)),
        ids("VNETS", (item.oid for item in store.networks if cluster.oid in item.clusters)),
        template_xml("TEMPLATE", cluster.template),
    )


def group_body(store: Store, group: Group) -> str:
    return element(
        "GROUP",
        element("ID", group.oid),
        plain("NAME", group.name),
        template_xml("TEMPLATE", group.template),
        ids("USERS", (user.oid for user in store.users if group.oid in user.groups)),
        "<ADMINS></ADMINS>",
    )


def sample_xml(host: Host, sample: dict[str, int]) -> str:
    """One monitoring record of a host; memory in kB, CPU in percent of a core."""
    return element(
        "MONITORING",
        element("TIMESTAMP", sample["TIMESTAMP"]),
        element("ID", host.oid),
        element(
            "CAPACITY",
            *(cdata(key, sample[key]) for key in ("FREE_CPU", "FREE_MEMORY", "USED_CPU", "USED_MEMORY")),
        ),
        element("SYSTEM", cdata("NETRX", sample["NETRX"]), cdata("NETTX", sample["NETTX"])),
    )


def host_body(store: Store, host: Host, vms: list[Vm], directory: Path) -> str:
    cluster = store.clusters.find(host.cluster_id)
    disk = shutil.disk_usage(directory)
    reserved_cpu = int(text_of(host.template, "RESERVED_CPU") or 0)
    reserved_memory = int(text_of(host.template, "RESERVED_MEM") or 0)
    known = host.state != 0
    return element(
        "HOST",
        element("ID", host.oid),
        plain("NAME", host.name),
        element("STATE", host.state),
        element("PREV_STATE", host.state),
        cdata("IM_MAD", host.im_mad),
        cdata("VM_MAD", host.vm_mad),
        element("CLUSTER_ID", host.cluster_id),
        plain("CLUSTER", cluster.name if cluster else ""),
        element(
            "HOST_SHARE",
            element("MEM_USAGE", sum(vm_memory_kb(vm) for vm in vms)),
            element("CPU_USAGE", sum(vm_cpu_percent(vm) for vm in vms)),
            element("TOTAL_MEM", host.memory),
            element("TOTAL_CPU", host.cpu),
            element("MAX_MEM", host.memory - reserved_memory if known else 0),
            element("MAX_CPU", host.cpu - reserved_cpu if known else 0),
            element("RUNNING_VMS", len(vms)),
            element("VMS_THREAD", 1),
            element(
                "DATASTORES",
                cdata("DISK_USAGE", 0),
                cdata("FREE_DISK", disk.free >> 20 if known else 0),
                cdata("MAX_DISK", disk.total >> 20 if known else 0),
                cdata("USED_DISK", disk.used >> 20 if known else 0),
            ),
            "<PCI_DEVICES></PCI_DEVICES><NUMA_NODES></NUMA_NODES>",
        ),
        ids("VMS", (vm.oid for vm in vms)),
        template_xml("TEMPLATE", host.template),
        sample_xml(host, host.samples[-1]) if host.samples else "<MONITORING/>",
    )


def vm_cpu_percent(vm: Vm) -> int:
    return round(float(text_of(vm.template, "CPU", "0")) * 100)


def vm_memory_kb(vm: Vm) -> int:
    return int(text_of(vm.template, "MEMORY", "0")) * 1024
