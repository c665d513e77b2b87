"""After a restart: machines are found again, and what was under way is done again or left as it is."""

from __future__ import annotations

from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.hypervisors import Power
from orchestrator.localcloud.images import bring_again
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.model import ImageState, Lcm, Vm, VmState
from orchestrator.localcloud.steps import BOOT_AFTER, PROLOGS
from orchestrator.localcloud.template import vectors

_BOOTS = (*BOOT_AFTER.values(), Lcm.BOOT_POWEROFF, Lcm.BOOT_SUSPENDED)
_SHUTDOWNS = (Lcm.SHUTDOWN, Lcm.SHUTDOWN_POWEROFF, Lcm.SHUTDOWN_UNDEPLOY, Lcm.SAVE_SUSPEND, Lcm.SAVE_STOP)
_EPILOGS = (Lcm.EPILOG, Lcm.EPILOG_STOP, Lcm.EPILOG_UNDEPLOY)
_CLEANUPS = (Lcm.CLEANUP_DELETE, Lcm.CLEANUP_RESUBMIT)


def resume_in_flight(cloud: Cloud) -> None:
    """Called once, before the first request. A RUNNING VM whose machine died meanwhile is left to monitoring, which
    shows it
    as POWEROFF after its delay. With `resume_in_flight` off, VMs in passing states stay there, as in the original."""
    with cloud.lock:
        for image in cloud.store.images:
            if image.state in (ImageState.LOCKED, ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS):
                bring_again(cloud, image)
        for vm in cloud.store.vms:
            if vm.state == VmState.ACTIVE and cloud.settings.resume_in_flight and "stuck" not in vm.pending:
                _resume(cloud, cloud.life, vm)


def _resume(cloud: Cloud, life: Lifecycle, vm: Vm) -> None:
    lcm, vm_id = Lcm(vm.lcm_state), vm.oid
    if lcm == Lcm.LCM_INIT:
        prolog = PROLOGS[
            "UNDEPLOYED" if vm.pending.get("undeployed") else "STOPPED" if vm.pending.get("stopped") else ""
        ]
        cloud.in_background(lambda: life.run_prolog(vm_id, prolog))
    elif lcm in PROLOGS.values():
        cloud.in_background(lambda: life.do_prolog(vm_id, lcm))
    elif lcm in _BOOTS:
        cloud.in_background(lambda: _boot_unless_running(cloud, vm_id, lcm))
    elif lcm in _SHUTDOWNS:
        # Whoever waited for the guest is gone with the old process: end it the hard way.
        cloud.in_background(lambda: life.end_machine(vm_id, lcm))
    elif lcm in _EPILOGS:
        cloud.in_background(lambda: life.do_epilog(vm_id, lcm))
    elif lcm in _CLEANUPS:
        cloud.in_background(lambda: life.do_cleanup(vm_id, lcm))
    elif lcm.name.startswith("HOTPLUG"):
        _leave_hotplug(life, vm, lcm)
    else:
        return
    log.info("vm %s goes on from %s", vm_id, lcm.name)


def _boot_unless_running(cloud: Cloud, vm_id: int, lcm: Lcm) -> None:
    """The old process may have started the machine and not lived to say so."""
    if cloud.hypervisor.power(vm_id) == Power.OFF:
        cloud.life.do_boot(vm_id, lcm)
        return
    with cloud.lock:
        if (vm := cloud.life.still(vm_id, lcm)) is not None:
            cloud.life.move(vm, VmState.ACTIVE, Lcm.RUNNING)


def _leave_hotplug(life: Lifecycle, vm: Vm, lcm: Lcm) -> None:
    """What was being plugged or saved was not finished; the VM itself is as it was."""
    for vector in (*vectors(vm.template, "NIC"), *vectors(vm.template, "DISK")):
        for key in ("ATTACH", "HOTPLUG_SAVE_AS_ACTIVE", "HOTPLUG_SAVE_AS_SNAPSHOT_ID"):
            vector.pop(key, None)
    if lcm.name.endswith("_POWEROFF"):
        life.move(vm, VmState.POWEROFF)
    else:
        life.move(vm, VmState.ACTIVE, Lcm.RUNNING)
