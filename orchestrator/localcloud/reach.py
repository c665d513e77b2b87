"""Hosts that nothing gets to: what becomes of them, and of the VMs there.

As an OpenNebula 7.2.0 with one of its hosts cut off: the host is in ERROR and its VMs are UNKNOWN after a time. A
driver's step fails, so that `poweroff` shows RUNNING again; but what is to end a machine the hard way never comes back,
not even when the host does: the VM stays in SHUTDOWN, and refuses everything, until an administrator's
`one.vm.recover`. When the host is back its machines are RUNNING again, or POWEROFF if they went off meanwhile.
"""

from __future__ import annotations

from orchestrator.localcloud import capacity
from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.model import Host, Vm, VmState

ERROR = 3


def is_reachable(cloud: Cloud, vm: Vm) -> bool:
    """Whether the VM's host is; true of a VM that has none."""
    host = cloud.store.hosts.find(vm.history[-1].hid) if vm.history else None
    return host is None or not host.unreachable


def require_reachable(cloud: Cloud, vm: Vm) -> None:
    """Under the lock. Raises HypervisorError, as a driver fails that cannot log in there."""
    if not is_reachable(cloud, vm):
        name = vm.history[-1].hostname
        raise HypervisorError(f"ssh: connect to host {name} port 22: No route to host")


def cut(cloud: Cloud, host_id: int, unreachable: bool) -> None:
    """Cut a host off, or bring it back: its guests are silent at once, the rest is noticed by monitoring. Raises
    ValueError for a host that there is not."""
    with cloud.lock:
        host = cloud.store.hosts.find(host_id)
        if host is None:
            raise ValueError(f"there is no host {host_id}")
        host.unreachable = unreachable
        cloud.store.hosts.save(host)
        vms = [vm.oid for vm in capacity.vms_on(cloud.store, host)]
        if not unreachable:
            done = [vm.oid for vm in cloud.store.vms if vm.state == VmState.DONE and _was_on(vm, host_id)]
            cloud.in_background(lambda: _end_zombies(cloud, done))
    if (play := getattr(cloud.hypervisor, "inject", None)) is None:
        return
    for vm_id in vms:
        try:
            play({"kind": "freeze_guest", "vm": vm_id, "frozen": unreachable})
        except (ValueError, HypervisorError) as error:
            log.debug("vm %s is not cut off: %s", vm_id, error)


def _was_on(vm: Vm, host_id: int) -> bool:
    return bool(vm.history) and vm.history[-1].hid == host_id


def _end_zombies(cloud: Cloud, vm_ids: list[int]) -> None:
    """Machines whose VMs were deleted while nobody reached them. The original only lists them; here, where no
    administrator looks, they are ended."""
    for vm_id in cloud.hypervisor.running(vm_ids) if vm_ids else ():
        try:
            cloud.hypervisor.destroy(vm_id)
            cloud.hypervisor.epilog(vm_id, cloud.vm_directory(vm_id))
            log.info("vm %s had left its machine behind", vm_id)
        except (HypervisorError, OSError) as error:
            log.warning("vm %s left its machine behind: %s", vm_id, error)


def notice(cloud: Cloud, host: Host, silent_seconds: float) -> None:
    """Under the lock: what monitoring makes of a host that has been silent for so long."""
    if silent_seconds >= cloud.settings.unknown_after and host.state == capacity.ENABLED:
        host.state = ERROR
        cloud.store.hosts.save(host)
        log.warning("host %s is in ERROR", host.oid)
    elif not host.unreachable and host.state == ERROR:
        host.state = capacity.ENABLED
        cloud.store.hosts.save(host)
        log.info("host %s is MONITORED", host.oid)
