"""VMs: the calls that make a machine do something."""

from __future__ import annotations

from orchestrator.localcloud import capacity, history, references
from orchestrator.localcloud.actions import Actions, check, require_recoverable
from orchestrator.localcloud.bodies import vm_cpu_percent, vm_memory_kb
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.model import Lcm, Vm, VmState
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.refusals import internal, wrong_state
from orchestrator.localcloud.scheduler import SYSTEM_DS, system_datastore
from orchestrator.localcloud.steps import BOOT_AFTER, FAILURE_OF, PROLOGS, RETRY_OF
from orchestrator.localcloud.template import Template, text_of

calls = Calls()


@calls.add("one.vm.action", "si")
def action(cloud: Cloud, caller: Caller, name: str, vm_id: int) -> int:
    """(action, id): the reverse of every other call. True means accepted, not done."""
    vm = cloud.store.vms.get(vm_id)
    check(cloud, caller, vm, name)
    Actions(cloud, cloud.life).accept(caller, vm, name)
    return vm_id


@calls.add("one.vm.deploy", "ii|bis")
def deploy(
    cloud: Cloud,
    caller: Caller,
    vm_id: int,
    host_id: int,
    enforce: bool = False,
    datastore_id: int = -1,
    _extra: str = "",
) -> int:
    """Past the scheduler, for administrators. `enforce`: only where there is room."""
    vm = cloud.store.vms.get(vm_id)
    caller.require(("ADMIN", vm))
    host = cloud.store.hosts.get(host_id)
    if vm.state not in (VmState.PENDING, VmState.HOLD):
        raise wrong_state(f"Could not deploy VM {vm_id}, wrong state {vm.state_name}.")
    if datastore_id >= 0:
        datastore = cloud.store.datastores.get(datastore_id)
        if datastore.type != SYSTEM_DS:
            raise internal(f"Trying to deploy VM [{vm_id}] in a datastore [{datastore_id}] that is not a system one.")
    if enforce:
        cpu, memory = capacity.free(cloud.store, host)
        if vm_cpu_percent(vm) > cpu or vm_memory_kb(vm) > memory:
            raise wrong_state(f"Not enough capacity in host {host_id} for VM {vm_id}.")
    chosen = datastore_id if datastore_id >= 0 else system_datastore(cloud, host)
    seen = vm.state

    def go() -> None:
        with cloud.lock:
            if vm.state == seen:
                cloud.life.begin_deploy(vm, host, chosen, by_scheduler=False)

    cloud.soon(go)
    return vm_id


@calls.add("one.vm.recover", "ii|i")
def recover(cloud: Cloud, caller: Caller, vm_id: int, operation: int, _plan: int = -1) -> int:
    """0 failure, 1 success, 2 retry, 3 delete, 4 delete and recreate: the way out of a stuck state, for
    administrators."""
    vm = cloud.store.vms.get(vm_id)
    caller.require(("ADMIN", vm))
    require_recoverable(vm, operation)
    match operation:
        case 0:
            _settle(cloud, vm, success=False)
        case 1:
            _settle(cloud, vm, success=True)
        case 2:
            _retry(cloud, vm)
        case 3:
            _delete(cloud, caller, vm)
        case _:
            _recreate(cloud, caller, vm)
    return vm_id


def _settle(cloud: Cloud, vm: Vm, *, success: bool) -> None:
    """What the driver never said, said by the administrator."""
    life = cloud.life
    if vm.state == VmState.CLONING_FAILURE:
        life.move(vm, VmState.PENDING if success else VmState.CLONING_FAILURE)
        return
    lcm = Lcm(vm.lcm_state)
    if not success:
        if lcm in FAILURE_OF:  # in RUNNING and UNKNOWN there is no step that could fail
            life.fail(vm.oid, lcm, "")
        return
    lcm = RETRY_OF.get(lcm, lcm)
    if lcm in BOOT_AFTER.values() or lcm in (Lcm.BOOT_POWEROFF, Lcm.BOOT_SUSPENDED):
        life.move(vm, VmState.ACTIVE, Lcm.RUNNING)
    elif lcm in BOOT_AFTER:
        life.begin_boot(vm, BOOT_AFTER[lcm])
    elif lcm == Lcm.EPILOG or lcm in (Lcm.CLEANUP_DELETE,):
        life.done(vm)
    elif lcm == Lcm.CLEANUP_RESUBMIT:
        life.move(vm, VmState.PENDING)
    elif lcm in (Lcm.EPILOG_STOP, Lcm.EPILOG_UNDEPLOY):
        life.move(vm, VmState.ACTIVE, lcm)
        cloud.in_background(lambda: life.do_epilog(vm.oid, lcm))
    elif lcm != Lcm.RUNNING:
        cloud.in_background(lambda: life.is_off(vm.oid, lcm))


def _retry(cloud: Cloud, vm: Vm) -> None:
    """Do the failed step again. In a state that is no failure nothing happens, as in the original."""
    lcm = RETRY_OF.get(Lcm(vm.lcm_state))
    life = cloud.life
    if lcm is None:
        return
    if lcm in PROLOGS.values():
        life.move(vm, VmState.ACTIVE, lcm)
        cloud.in_background(lambda: life.do_prolog(vm.oid, lcm))
    elif lcm in BOOT_AFTER.values():
        life.begin_boot(vm, lcm)
    else:
        life.begin_epilog(vm, lcm)


def _delete(cloud: Cloud, caller: Caller, vm: Vm) -> None:
    if vm.state == VmState.DONE:
        return
    history.mark(vm, "delete", caller)
    if vm.history:
        cloud.life.begin_cleanup(vm)
    else:
        cloud.life.done(vm)


def _recreate(cloud: Cloud, caller: Caller, vm: Vm) -> None:
    if vm.state in (VmState.PENDING, VmState.CLONING, VmState.CLONING_FAILURE, VmState.INIT):
        return
    history.mark(vm, "delete-recreate", caller)
    vm.pending.clear()
    if vm.history:
        cloud.life.begin_cleanup(vm, recreate=True)
    else:
        cloud.life.move(vm, VmState.PENDING)


_RESIZABLE = (VmState.PENDING, VmState.HOLD, VmState.POWEROFF, VmState.UNDEPLOYED)


@calls.add("one.vm.resize", "isb")
def resize(cloud: Cloud, caller: Caller, vm_id: int, text: str, enforce: bool) -> int:
    """CPU, VCPU and MEMORY of a VM that does not run."""
    vm = cloud.store.vms.get(vm_id)
    given = parsed(text)
    caller.require(("MANAGE", vm))
    if vm.state == VmState.ACTIVE and vm.lcm_state == Lcm.RUNNING:
        raise wrong_state(f"Hotplug resize not supported by driver {cloud.hypervisor.name}")
    if vm.state not in _RESIZABLE:
        raise wrong_state(f"Resize is not available for state {vm.state_name}")
    wanted: Template = {key: [text_of(given, key)] for key in ("CPU", "VCPU", "MEMORY") if text_of(given, key)}
    changed = {**vm.template, **wanted}
    references.requires_capacity(changed)
    before = vm.template
    vm.template = changed
    host = cloud.life.with_host(vm)
    if enforce and vm.state == VmState.POWEROFF and host is not None and min(capacity.free(cloud.store, host)) < 0:
        vm.template = before
        raise wrong_state(f"VM {vm_id} does not fit in host {host.oid} after resize.")
    cloud.store.vms.save(vm)
    return vm_id


def _unsupported(name: str, signature: str, what: str, right: str = "MANAGE") -> None:
    """A call that no hypervisor here backs: refused with 2048, after the checks that the original makes first."""

    def function(cloud: Cloud, caller: Caller, vm_id: int, *_: object) -> int:
        caller.require((right, cloud.store.vms.get(vm_id)))
        raise wrong_state(f"{what} not supported by driver {cloud.hypervisor.name}")

    calls.add(name, signature)(function)


for _name, _signature, _what in (
    ("one.vm.snapshotcreate", "is", "Snapshots"),
    ("one.vm.snapshotrevert", "ii", "Snapshots"),
    ("one.vm.snapshotdelete", "ii", "Snapshots"),
    ("one.vm.disksnapshotcreate", "iis", "Disk snapshots"),
    ("one.vm.disksnapshotrevert", "iii", "Disk snapshots"),
    ("one.vm.disksnapshotdelete", "iii", "Disk snapshots"),
    ("one.vm.attach", "is", "Disk attach"),
    ("one.vm.detach", "ii", "Disk detach"),
    ("one.vm.diskresize", "iis", "Disk resize"),
):
    _unsupported(_name, _signature, _what)
_unsupported("one.vm.migrate", "ii|bbii", "Migration", "ADMIN")
