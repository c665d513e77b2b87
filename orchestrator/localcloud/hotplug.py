"""VMs: the calls that change a machine while it runs: NICs in and out, a disk saved as an image."""

from __future__ import annotations

from orchestrator.localcloud import history, images, names, references, vm_make
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.contexts import fill_context
from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.lifecycle import shortened
from orchestrator.localcloud.machines import nic_spec
from orchestrator.localcloud.model import ImageType, Lcm, Vm, VmState
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.refusals import Code, Refused, internal, wrong_state
from orchestrator.localcloud.template import Vector, vector_of, vectors
from orchestrator.localcloud.templates import check_restricted

calls = Calls()


def _hot(vm: Vm, running: Lcm, off: Lcm) -> Lcm | None:
    """The hot-plug state to go to; None in a state where it cannot be done."""
    if vm.state == VmState.ACTIVE and vm.lcm_state == Lcm.RUNNING:
        return running
    return off if vm.state == VmState.POWEROFF else None


def _back(cloud: Cloud, vm_id: int, hot: Lcm, off: Lcm) -> Vm | None:
    """Under the lock: out of a hot-plug state, to where the VM came from. Not saved when the VM had moved on."""
    vm = cloud.life.still(vm_id, hot)
    if vm is not None:
        if hot == off:
            cloud.life.move(vm, VmState.POWEROFF)
        else:
            cloud.life.move(vm, VmState.ACTIVE, Lcm.RUNNING)
    return vm


@calls.add("one.vm.attachnic", "is")
def attachnic(cloud: Cloud, caller: Caller, vm_id: int, text: str) -> int:
    vm = cloud.store.vms.get(vm_id)
    template = parsed(text)
    given = vectors(template, "NIC")
    if not given:
        raise internal("There is no NIC attribute in the template.")
    check_restricted(caller, {"NIC": [given[0]]})
    caller.require(("MANAGE", vm), *references.needed_rights(cloud.store, caller, {"NIC": [given[0]]}))
    hot = _hot(vm, Lcm.HOTPLUG_NIC, Lcm.HOTPLUG_NIC_POWEROFF)
    if hot is None:
        raise wrong_state(f"Could not add a new NIC to VM {vm_id}, wrong state {vm.state_name}.")
    nic: Vector = {key: value for key, value in given[0].items() if key != "AR_ID"}
    number = max((int(item["NIC_ID"]) for item in vectors(vm.template, "NIC")), default=-1) + 1
    vm_make.take_nic(cloud, caller, vm, nic, number)
    nic["ATTACH"] = "YES"
    vm.template.setdefault("NIC", []).append(nic)
    vm_make.refresh_security_rules(cloud, vm)
    history.close_and_copy(vm, "nic-attach", caller)
    cloud.life.move(vm, VmState.ACTIVE, hot)
    spec = nic_spec(cloud, nic)

    def work() -> None:
        error = ""
        if hot == Lcm.HOTPLUG_NIC:
            with cloud.life.machines.of(vm_id):
                try:
                    cloud.hypervisor.attach_nic(vm_id, spec)
                except (HypervisorError, OSError) as problem:
                    error = str(problem)
        with cloud.lock:
            if (now := cloud.life.still(vm_id, hot)) is None:
                return
            _settle_nic(cloud, caller, now, number, error)
            _back(cloud, vm_id, hot, Lcm.HOTPLUG_NIC_POWEROFF)

    cloud.in_background(work)
    return vm_id


def _settle_nic(cloud: Cloud, caller: Caller, vm: Vm, number: int, error: str) -> None:
    nic = next(item for item in vectors(vm.template, "NIC") if item["NIC_ID"] == str(number))
    nic.pop("ATTACH", None)
    if error:
        _drop_nic(cloud, vm, nic)
        vm.user_template["ERROR"] = [f"Error attaching new VM NIC: {shortened(error)}"]
    else:
        fill_context(cloud.store, cloud.store.users.find(vm.uid) or caller.user, vm)


def _drop_nic(cloud: Cloud, vm: Vm, nic: Vector) -> None:
    vm_make.release_nic(cloud, vm, nic)
    vm.template["NIC"].remove(nic)
    if not vm.template["NIC"]:
        del vm.template["NIC"]
    vm_make.refresh_security_rules(cloud, vm)
    context = vector_of(vm.template, "CONTEXT")
    for key in [key for key in context if key.startswith(f"ETH{nic['NIC_ID']}_")]:
        del context[key]


@calls.add("one.vm.detachnic", "ii")
def detachnic(cloud: Cloud, caller: Caller, vm_id: int, nic_id: int) -> int:
    vm = cloud.store.vms.get(vm_id)
    caller.require(("MANAGE", vm))
    hot = _hot(vm, Lcm.HOTPLUG_NIC, Lcm.HOTPLUG_NIC_POWEROFF)
    if hot is None:
        raise wrong_state(f"Could not detach NIC from VM {vm_id}, wrong state {vm.state_name}.")
    nic = next((item for item in vectors(vm.template, "NIC") if item["NIC_ID"] == str(nic_id)), None)
    if nic is None:
        raise wrong_state(f"Could not detach NIC with NIC_ID {nic_id}, it does not exist.")
    nic["ATTACH"] = "YES"
    history.close_and_copy(vm, "nic-detach", caller)
    cloud.life.move(vm, VmState.ACTIVE, hot)

    def work() -> None:
        error = ""
        if hot == Lcm.HOTPLUG_NIC:
            with cloud.life.machines.of(vm_id):
                try:
                    cloud.hypervisor.detach_nic(vm_id, nic_id)
                except (HypervisorError, OSError) as problem:
                    error = str(problem)
        with cloud.lock:
            if (now := cloud.life.still(vm_id, hot)) is None:
                return
            gone = next(item for item in vectors(now.template, "NIC") if item["NIC_ID"] == str(nic_id))
            gone.pop("ATTACH", None)
            if error:
                now.user_template["ERROR"] = [f"Error detaching VM NIC: {shortened(error)}"]
            else:
                _drop_nic(cloud, now, gone)
            _back(cloud, vm_id, hot, Lcm.HOTPLUG_NIC_POWEROFF)

    cloud.in_background(work)
    return vm_id


@calls.add("one.vm.disksaveas", "iis|si")
def disksaveas(
    cloud: Cloud, caller: Caller, vm_id: int, disk_id: int, name: str, kind: str = "", snapshot_id: int = -1
) -> int:
    """The id of the new image, LOCKED until the disk is written to it; the VM is in HOTPLUG_SAVEAS meanwhile."""
    vm = cloud.store.vms.get(vm_id)
    caller.require(("MANAGE", vm))
    caller.require_create("IMAGE")
    disk = next((item for item in vectors(vm.template, "DISK") if item["DISK_ID"] == str(disk_id)), None)
    if disk is None:
        raise Refused(Code.INTERNAL, "Cannot use DISK. DISK does not exist.", 0)
    if snapshot_id != -1:
        raise internal("Cannot use SNAPSHOT. SNAPSHOT does not exist.")
    if "DATASTORE_ID" not in disk:
        raise internal("Cannot save a volatile disk")
    word = kind.upper() or "OS"
    if word not in ("OS", "DATABLOCK", "CDROM"):
        raise internal(f"Cannot save a disk as an image of type {kind}")
    hot = _hot(vm, Lcm.HOTPLUG_SAVEAS, Lcm.HOTPLUG_SAVEAS_POWEROFF)
    if hot is None:
        raise wrong_state(f"Could not save as disk of VM {vm_id}, wrong state {vm.state_name}.")
    names.check(name)
    names.check_free(
        name, cloud.store.images, owner=caller.user.oid, word="IMAGE", prefix="Error allocating a new image. "
    )
    datastore_id = int(disk["DATASTORE_ID"])
    image = images.new_image(cloud, caller, name, ImageType[word], datastore_id, int(disk["SIZE"]))
    image.template = {"DEV_PREFIX": [disk.get("DEV_PREFIX", "vd")], "SAVED_VM_ID": [str(vm_id)]}
    image.template |= {"SAVED_DISK_ID": [str(disk_id)], "SAVED_IMAGE_ID": [disk["IMAGE_ID"]]}
    cloud.store.images.save(image)
    disk.update({"HOTPLUG_SAVE_AS_ACTIVE": "YES", "HOTPLUG_SAVE_AS_SNAPSHOT_ID": "-1"})
    cloud.life.move(vm, VmState.ACTIVE, hot)
    cloud.in_background(lambda: _save(cloud, vm_id, disk_id, image.oid, hot))
    return image.oid


def _save(cloud: Cloud, vm_id: int, disk_id: int, image_id: int, hot: Lcm) -> None:
    with cloud.lock:
        image = cloud.store.images.find(image_id)
        target = images.new_source(cloud, image) if image else None
    error, found_format = "", "qcow2"
    if target is not None:
        with cloud.life.machines.of(vm_id):
            try:
                cloud.hypervisor.save_disk(vm_id, disk_id, target)
                found_format = images.file_format(target)[0]
            except (HypervisorError, OSError) as problem:
                error = str(problem)
        images.finish(cloud, image_id, target, found_format, error)
    with cloud.lock:
        if (vm := cloud.life.still(vm_id, hot)) is None:
            return
        for disk in vectors(vm.template, "DISK"):
            disk.pop("HOTPLUG_SAVE_AS_ACTIVE", None)
            disk.pop("HOTPLUG_SAVE_AS_SNAPSHOT_ID", None)
        _back(cloud, vm_id, hot, Lcm.HOTPLUG_SAVEAS_POWEROFF)
