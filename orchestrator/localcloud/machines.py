"""From a VM to what a hypervisor needs to know about its machine."""

from __future__ import annotations

import math
from pathlib import Path

from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.hypervisors import DiskSpec, HypervisorError, MachineSpec, NicSpec
from orchestrator.localcloud.model import Vm
from orchestrator.localcloud.references import group_ids
from orchestrator.localcloud.template import Vector, text_of, vector_of, vectors


def machine_spec(cloud: Cloud, vm: Vm) -> MachineSpec:
    """Read under the cloud's lock. Raises HypervisorError when an image it was made of is gone."""
    system = vector_of(vm.template, "OS")
    vcpu = text_of(vm.template, "VCPU")
    context = vector_of(vm.template, "CONTEXT")
    return MachineSpec(
        vm_id=vm.oid,
        name=vm.name,
        uuid=system.get("UUID", ""),
        directory=cloud.vm_directory(vm.oid),
        cpus=int(vcpu) if vcpu.isdigit() else max(1, math.ceil(float(text_of(vm.template, "CPU", "1")))),
        memory_mb=int(text_of(vm.template, "MEMORY")),
        disks=tuple(_disk(cloud, vm, disk) for disk in vectors(vm.template, "DISK")),
        nics=tuple(nic_spec(cloud, nic) for nic in vectors(vm.template, "NIC")),
        context=dict(context),
        kernel=_file(cloud, system, "KERNEL"),
        initrd=_file(cloud, system, "INITRD"),
        kernel_cmdline=system.get("KERNEL_CMD", ""),
    )


def _disk(cloud: Cloud, vm: Vm, disk: Vector) -> DiskSpec:
    number, size = int(disk["DISK_ID"]), int(disk["SIZE"])
    if "IMAGE_ID" not in disk:
        # A volatile disk: empty, the VM's own, gone with it.
        return DiskSpec(number, volatile_path(cloud, vm, number), format="raw", persistent=True, size_mb=size)
    image = cloud.store.images.find(int(disk["IMAGE_ID"]))
    if image is None or not image.source:
        raise HypervisorError(f"Error executing image transfer script: no file for image {disk['IMAGE_ID']}")
    grown = size if size > int(disk["ORIGINAL_SIZE"]) else 0
    return DiskSpec(number, Path(image.source), format=image.format, persistent=image.persistent, size_mb=grown)


def volatile_path(cloud: Cloud, vm: Vm, number: int) -> Path:
    return cloud.vm_directory(vm.oid) / f"volatile.{number}"


def make_volatile_disks(spec: MachineSpec) -> None:
    """Create the empty files of volatile disks, sparse; those that are there stay."""
    for disk in spec.disks:
        if disk.backing.parent == spec.directory and not disk.backing.exists():
            spec.directory.mkdir(parents=True, exist_ok=True)
            with disk.backing.open("wb") as file:
                file.truncate(disk.size_mb << 20)


def nic_spec(cloud: Cloud, nic: Vector) -> NicSpec:
    """`outbound` is true when any security group of the NIC has an outbound rule."""
    groups = (cloud.store.security_groups.find(ident) for ident in group_ids(nic.get("SECURITY_GROUPS", "")))
    outbound = any(
        rule.get("RULE_TYPE", "").upper() == "OUTBOUND"
        for group in groups
        if group is not None
        for rule in vectors(group.template, "RULE")
    )
    return NicSpec(
        nic_id=int(nic["NIC_ID"]),
        address=nic.get("IP", ""),
        mac=nic["MAC"],
        host_port=cloud.settings.guest_ssh_port,
        outbound=outbound,
    )


def _file(cloud: Cloud, system: Vector, key: str) -> Path | None:
    """OS/KERNEL is a path; OS/KERNEL_DS an image of the files datastore, found by id at each start."""
    if ident := system.get(f"{key}_DS_ID"):
        image = cloud.store.images.find(int(ident))
        if image is None or not image.source:
            raise HypervisorError(f"Error executing image transfer script: no file for image {ident}")
        return Path(image.source)
    return Path(system[key]) if system.get(key) else None
