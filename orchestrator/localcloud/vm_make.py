"""A new VM from a template: what goes where, which images and addresses it takes, what its guest is told."""

from __future__ import annotations

import uuid

from orchestrator.localcloud import leases, names, quotas, references
from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.cloud import Cloud, now
from orchestrator.localcloud.contexts import fill_context
from orchestrator.localcloud.images import used_state
from orchestrator.localcloud.model import Image, ImageState, Network, Vm, VmState
from orchestrator.localcloud.refusals import Refused, internal
from orchestrator.localcloud.template import Template, Vector, text_of, vector_of, vectors

# What a VM's TEMPLATE takes; everything else that was given goes into USER_TEMPLATE.
_MACHINE_KEYS = frozenset(
    """
    BACKUP_CONFIG CONTEXT CPU CPU_COST CPU_MODEL DISK DISK_COST EMULATOR FEATURES GRAPHICS HYPERV_OPTIONS INPUT MEMORY
    MEMORY_COST MEMORY_ENCRYPTION MEMORY_MAX MEMORY_RESIZE_MODE MEMORY_SLOTS NIC NIC_ALIAS NIC_DEFAULT NUMA_NODE OS PCI
    RAW SPICE_OPTIONS SUBMIT_ON_HOLD TEMPLATE_ID TOPOLOGY TPM VCPU VCPU_MAX VIDEO VMGROUP
    """.split()  # noqa: SIM905 - many words, easier read so
)


def wanted_of(cloud: Cloud, caller: Caller, template: Template) -> quotas.Wanted:
    """What a VM of this template would use of the caller's quotas. Raises Refused 8192."""
    cpu, memory = references.requires_capacity(template)
    wanted = quotas.Wanted(vm={"CPU": cpu, "MEMORY": float(memory), "VMS": 1.0, "SYSTEM_DISK_SIZE": 0.0})
    for nic in vectors(template, "NIC"):
        ident = references.network_of(cloud.store, caller, nic).oid
        wanted.leases[ident] = wanted.leases.get(ident, 0) + 1
    for disk in vectors(template, "DISK"):
        if (image := _image(cloud, caller, disk, 0)) is not None:
            wanted.rvms[image.oid] = wanted.rvms.get(image.oid, 0) + 1
            wanted.vm["SYSTEM_DISK_SIZE"] += image.size
    return wanted


def create(cloud: Cloud, caller: Caller, template: Template, *, hold: bool) -> Vm:
    """Take images and addresses, save the VM in PENDING, HOLD or (while an image is LOCKED) CLONING.

    Raises Refused 8192; nothing stays taken then."""
    references.requires_capacity(template)
    name = text_of(template, "NAME")
    if name:
        names.check(name)
    oid = cloud.store.vms.next_id()
    vm = Vm(
        oid,
        name or f"one-{oid}",
        {key: [_copied(value) for value in values] for key, values in template.items() if key in _MACHINE_KEYS},
        uid=caller.user.oid,
        gid=caller.user.gid,
        uname=caller.user.name,
        gname=caller.gname,
        stime=now(),
    )
    vm.user_template = {
        key: list(values) for key, values in template.items() if key not in _MACHINE_KEYS and key != "NAME"
    }
    vm.template["VMID"] = [str(oid)]
    if hold:
        vm.template["SUBMIT_ON_HOLD"] = ["YES"]
    _fill_os(cloud, caller, vm)
    try:
        locked = _take_disks(cloud, caller, vm)
        for nic in vectors(vm.template, "NIC"):
            nic.pop("AR_ID", None)  # the mark of a lease that is held
        for number, nic in enumerate(vectors(vm.template, "NIC")):
            take_nic(cloud, caller, vm, nic, number)
        _fill_requirements(vm)
        refresh_security_rules(cloud, vm)
        fill_context(cloud.store, caller.user, vm)
    except Refused:
        release_everything(cloud, vm)
        raise
    waiting = VmState.HOLD if hold else VmState.PENDING
    vm.state = VmState.CLONING if locked else waiting
    cloud.store.vms.save(vm)
    cloud.announce(vm)
    return vm


def _copied(value: str | Vector) -> str | Vector:
    return dict(value) if isinstance(value, dict) else value


def _fill_os(cloud: Cloud, caller: Caller, vm: Vm) -> None:
    system = {"MACHINE": "q35", **vector_of(vm.template, "OS"), "UUID": str(uuid.uuid4())}
    for key in references.FILE_REFERENCES:
        if system.get(key):
            image = references.file_image(cloud.store, caller, system[key])
            system[f"{key}_ID"] = str(image.oid)
            system[f"{key}_SOURCE"] = image.source
    vm.template["OS"] = [system]


def _image(cloud: Cloud, caller: Caller, disk: Vector, number: int) -> Image | None:
    try:
        return references.image_of(cloud.store, caller, disk)
    except Refused as refused:
        raise internal(f"DISK {number}: {refused.text}") from None


def _take_disks(cloud: Cloud, caller: Caller, vm: Vm) -> bool:
    """Fill in each DISK and count the VM as a user of its images; whether one of them is still LOCKED."""
    letters: dict[str, int] = {}
    locked = False
    for number, disk in enumerate(vectors(vm.template, "DISK")):
        image = _image(cloud, caller, disk, number)
        if image is None:
            if not disk.get("SIZE", "").isdigit():
                raise internal(f"DISK {number}: SIZE attribute must be a positive integer value.")
            disk.update({"TYPE": disk.get("TYPE", "fs"), "DISK_ID": str(number), "SAVE": "NO", "FORMAT": "raw"})
            prefix = disk.setdefault("DEV_PREFIX", "vd")
        else:
            _acquire(image, disk, number)
            image.vms.append(vm.oid)
            locked = locked or image.state in (ImageState.LOCKED, ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS)
            if image.source:
                image.state = used_state(image)
            else:
                image.state = ImageState.LOCKED_USED_PERS if image.persistent else ImageState.LOCKED_USED
            cloud.store.images.save(image)
            fill_disk(cloud, disk, image, number)
            prefix = disk["DEV_PREFIX"]
        letters[prefix] = letters.get(prefix, -1) + 1
        disk["TARGET"] = f"{prefix}{chr(ord('a') + letters[prefix])}"
    return locked


def _acquire(image: Image, disk: Vector, number: int) -> None:
    size = disk.get("SIZE", "")
    if size and not size.isdigit():
        raise internal(f"DISK {number}: SIZE attribute must be a positive integer value.")
    if size and image.persistent and int(size) != image.size:
        raise internal(f"DISK {number}: SIZE attribute is not supported for persistent image [{image.oid}].")
    if size and int(size) < image.size:
        raise internal(f"DISK {number}: SIZE of {size}MB is less than the image [{image.oid}] size of {image.size}MB.")
    if image.type not in (0, 1, 2):
        raise internal(f"DISK {number}: Image {image.oid} is not a disk image")
    if image.state == ImageState.ERROR:
        raise internal(f"DISK {number}: Cannot acquire image {image.oid}, it is in an error state")
    if image.state == ImageState.DISABLED:
        raise internal(f"DISK {number}: Cannot acquire image {image.oid}, it is disabled")
    if image.persistent and image.vms:
        raise internal(f"DISK {number}: Cannot acquire image {image.oid}, it is persistent and already in use")


def fill_disk(cloud: Cloud, disk: Vector, image: Image, number: int) -> None:
    """What a DISK shows of its image. A SIZE above the image's makes the disk larger."""
    datastore = cloud.store.datastores.get(image.datastore_id)
    wanted = int(disk["SIZE"]) if disk.get("SIZE", "").isdigit() else 0
    disk.update(
        {
            "ALLOW_ORPHANS": "FORMAT",
            "CLONE": "NO" if image.persistent else "YES",
            "CLONE_TARGET": "SYSTEM",
            "CLUSTER_ID": ",".join(str(cluster) for cluster in datastore.clusters),
            "DATASTORE": datastore.name,
            "DATASTORE_ID": str(datastore.oid),
            "DEV_PREFIX": disk.get("DEV_PREFIX") or text_of(image.template, "DEV_PREFIX", "vd"),
            "DISK_ID": str(number),
            "DISK_SNAPSHOT_TOTAL_SIZE": "0",
            "DISK_TYPE": "FILE",
            "IMAGE": image.name,
            "IMAGE_ID": str(image.oid),
            "IMAGE_STATE": str(int(image.state)),
            "LN_TARGET": "NONE",
            "ORIGINAL_SIZE": str(image.size),
            "PERSISTENT_SNAPSHOTS": "YES",
            "READONLY": "NO",
            "SAVE": "YES" if image.persistent else "NO",
            "SIZE": str(max(wanted, image.size)),
            "SOURCE": image.source,
            "TM_MAD": datastore.tm_mad,
            "TYPE": "FILE",
        }
    )
    if image.persistent:
        disk["PERSISTENT"] = "YES"
    if image.source:
        disk.pop("CLONING", None)
        disk.update({"DRIVER": image.format, "FORMAT": image.format})
    else:
        disk["CLONING"] = "YES"


def take_nic(cloud: Cloud, caller: Caller, vm: Vm, nic: Vector, number: int) -> Network:
    """Lease an address and fill in the NIC. Raises Refused 8192."""
    for key, value in vector_of(vm.template, "NIC_DEFAULT").items():
        nic.setdefault(key, value)
    network = references.network_of(cloud.store, caller, nic)
    item, ip, mac = leases.take(cloud.store, network, vm.oid, nic.get("IP", ""), nic.get("MAC", ""))
    groups = {
        *references.group_ids(text_of(network.template, "SECURITY_GROUPS")),
        *references.group_ids(nic.get("SECURITY_GROUPS", "")),
    }
    nic.update(
        {
            "AR_ID": str(item.ar_id),
            "BRIDGE": network.bridge,
            "BRIDGE_TYPE": "linux",
            "CLUSTER_ID": ",".join(str(cluster) for cluster in network.clusters),
            "MAC": mac,
            "NAME": nic.get("NAME") or f"NIC{number}",
            "NETWORK": network.name,
            "NETWORK_ID": str(network.oid),
            "NIC_ID": str(number),
            "SECURITY_GROUPS": ",".join(str(group) for group in sorted(groups)),
            "TARGET": f"one-{vm.oid}-{number}",
            "VN_MAD": network.vn_mad,
        }
    )
    if ip:
        nic["IP"] = ip
    for key in ("DNS", "GATEWAY", "MTU", "METHOD", "METRIC"):
        if value := text_of(network.template, key):
            nic[key] = value
    return network


def _fill_requirements(vm: Vm) -> None:
    used = (*vectors(vm.template, "DISK"), *vectors(vm.template, "NIC"))
    clusters = {vector["CLUSTER_ID"] for vector in used if "CLUSTER_ID" in vector}
    where = ""
    if clusters:
        where = f"(CLUSTER_ID = {min(clusters)}) & "
        for what in ("DS", "NIC"):
            vm.template[f"AUTOMATIC_{what}_REQUIREMENTS"] = [f'("CLUSTERS/ID" @> {min(clusters)})']
    vm.template["AUTOMATIC_REQUIREMENTS"] = [f"{where}!(PIN_POLICY = PINNED)"]


def refresh_security_rules(cloud: Cloud, vm: Vm) -> None:
    """SECURITY_GROUP_RULE: every rule of every group of every NIC; a group that does not exist has none."""
    groups = {ident for nic in vectors(vm.template, "NIC") for ident in references.group_ids(nic["SECURITY_GROUPS"])}
    rules: list[str | Vector] = []
    for ident in sorted(groups):
        if (group := cloud.store.security_groups.find(ident)) is not None:
            named = {"SECURITY_GROUP_ID": str(ident), "SECURITY_GROUP_NAME": group.name}
            rules += [{**rule, **named} for rule in vectors(group.template, "RULE")]
    vm.template.pop("SECURITY_GROUP_RULE", None)
    if rules:
        vm.template["SECURITY_GROUP_RULE"] = rules


def release_everything(cloud: Cloud, vm: Vm) -> None:
    """Give back addresses and images. The VM keeps showing them, as a DONE VM does."""
    for nic in vectors(vm.template, "NIC"):
        release_nic(cloud, vm, nic)
    for image in cloud.store.images:
        if vm.oid in image.vms:
            image.vms = [user for user in image.vms if user != vm.oid]
            if image.state in (ImageState.USED, ImageState.USED_PERS):
                image.state = used_state(image)
            elif not image.vms and image.state in (ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS):
                image.state = ImageState.LOCKED
            cloud.store.images.save(image)


def release_nic(cloud: Cloud, vm: Vm, nic: Vector) -> None:
    if "AR_ID" in nic:
        leases.give_back(cloud.store, int(nic["NETWORK_ID"]), int(nic["AR_ID"]), vm.oid, nic["MAC"])
