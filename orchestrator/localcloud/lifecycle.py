"""The life of a VM: OpenNebula's STATE/LCM_STATE pairs, and what moves a VM from one to the next.

Every step reads the VM under the cloud's lock, does its slow part on a driver thread, and takes the result in only if
the VM is still where the step left it: an administrator's `recover`, or a second action, may have moved it on.

    PENDING ─ deploy ─► LCM_INIT ─► PROLOG ─► BOOT ─► RUNNING
    RUNNING ─ terminate ─► SHUTDOWN ─► EPILOG ─► DONE
    RUNNING ─ poweroff ─► SHUTDOWN_POWEROFF ─► POWEROFF ─ resume ─► BOOT_POWEROFF ─► RUNNING
    RUNNING ─ undeploy ─► SHUTDOWN_UNDEPLOY ─► EPILOG_UNDEPLOY ─► UNDEPLOYED ─ resume ─► PENDING
    PENDING, was UNDEPLOYED ─ deploy ─► LCM_INIT ─► PROLOG_UNDEPLOY ─► BOOT_UNDEPLOY ─► RUNNING
    any *_FAILURE ─ terminate ─► CLEANUP_DELETE ─► DONE
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.localcloud import clones, history, security_groups
from orchestrator.localcloud.cloud import Cloud, log, now
from orchestrator.localcloud.graveyard import Graveyard
from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, Power
from orchestrator.localcloud.machine_locks import MachineLocks
from orchestrator.localcloud.machines import machine_spec, make_volatile_disks
from orchestrator.localcloud.model import Host, Image, ImageState, Lcm, Vm, VmState
from orchestrator.localcloud.reach import is_reachable, require_reachable
from orchestrator.localcloud.steps import BOOT_AFTER, FAILURE_OF, PROLOGS
from orchestrator.localcloud.template import text_of, vectors
from orchestrator.localcloud.vm_make import fill_disk, release_everything

_NO_PORT = (Lcm.EPILOG, Lcm.EPILOG_UNDEPLOY, Lcm.CLEANUP_DELETE, Lcm.CLEANUP_RESUBMIT)
"""From here on a VM has no port for its console."""
_ENDS_HARD = (Lcm.SHUTDOWN, Lcm.SHUTDOWN_POWEROFF, Lcm.SHUTDOWN_UNDEPLOY)
"""Steps of which nobody hears again when the host is unreachable, if they are to end the machine the hard way."""


class Lifecycle:
    """Moves VMs. Methods named `begin_…` are called under the cloud's lock."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.machines = MachineLocks()
        self.graveyard = Graveyard(cloud)
        cloud.life = self

    # -- moving
    # ---------------------------------------------------------------------------------------------------------

    def move(self, vm: Vm, state: VmState, lcm: Lcm = Lcm.LCM_INIT) -> None:
        """Under the lock: one transition, saved."""
        if lcm in _NO_PORT or state == VmState.DONE:
            for graphics in vectors(vm.template, "GRAPHICS"):
                graphics.pop("PORT", None)
        vm.state, vm.lcm_state = int(state), int(lcm)
        vm.pending.pop("stuck", None)
        self.cloud.store.vms.save(vm)
        self.cloud.announce(vm)
        log.info("vm %s is %s", vm.oid, vm.state_name)

    def stick(self, vm: Vm) -> None:
        """Under the lock: the VM stays where it is, whatever is asked, until an administrator's `recover`."""
        vm.pending["stuck"] = 1
        self.cloud.store.vms.save(vm)
        log.warning("vm %s is stuck in %s", vm.oid, vm.state_name)

    def still(self, vm_id: int, lcm: Lcm) -> Vm | None:
        """Under the lock: the VM if it is in that step yet."""
        vm = self.cloud.store.vms.find(vm_id)
        return vm if vm is not None and vm.state == VmState.ACTIVE and vm.lcm_state == lcm else None

    def fail(self, vm_id: int, lcm: Lcm, error: str) -> None:
        """The step failed. Texts go to USER_TEMPLATE/ERROR, which nothing clears."""
        with self.cloud.lock:
            if (vm := self.still(vm_id, lcm)) is None:
                return
            state, back = FAILURE_OF[lcm]
            if error and back != Lcm.RUNNING:
                vm.user_template["ERROR"] = [f"{time.ctime()}: {shortened(error)}"]
            log.warning("vm %s failed in %s: %s", vm_id, lcm.name, error)
            self.move(vm, state, back)

    def step(self, vm_id: int, lcm: Lcm, work: Callable[[MachineSpec], str | None]) -> str | None:
        """Do the slow part of a step: its result ("" for none), or None when the VM had moved on or it failed."""
        with self.machines.of(vm_id):
            try:
                with self.cloud.lock:
                    if (vm := self.still(vm_id, lcm)) is None:
                        return None
                    require_reachable(self.cloud, vm)
                    spec = machine_spec(self.cloud, vm)
                return work(spec) or ""
            except (HypervisorError, OSError) as error:
                self.fail(vm_id, lcm, str(error))
                return None
            except Exception as error:
                # A driver that breaks must not leave the VM where nobody can end it.
                log.exception("vm %s: the driver broke in %s", vm_id, lcm.name)
                self.fail(vm_id, lcm, f"{type(error).__name__}: {error}")
                return None

    # -- starting
    # -------------------------------------------------------------------------------------------------------

    def begin_deploy(self, vm: Vm, host: Host, datastore_id: int, *, by_scheduler: bool) -> None:
        """Give the VM a host; what it does there depends on whether it had been there before."""
        came_from = vm.pending.get("undeployed", 0)
        stopped = vm.pending.get("stopped", 0)
        vm.history.append(history.opened(vm, host, datastore_id, by_scheduler=by_scheduler))
        vm.template["TM_MAD_SYSTEM"] = ["qcow2"]
        for graphics in vectors(vm.template, "GRAPHICS"):
            graphics.setdefault("PORT", str(5900 + vm.oid % 59000))
        vm.user_template.pop("SCHED_MESSAGE", None)
        prolog = PROLOGS["UNDEPLOYED" if came_from else "STOPPED" if stopped else ""]
        self.move(vm, VmState.ACTIVE)
        self.cloud.after(
            self.cloud.settings.passing_time, lambda: self.cloud.in_background(lambda: self.run_prolog(vm.oid, prolog))
        )

    def run_prolog(self, vm_id: int, prolog: Lcm) -> None:
        with self.cloud.lock:
            if (vm := self.still(vm_id, Lcm.LCM_INIT)) is None:
                return
            vm.history[-1].pstime = now()
            vm.pending.clear()
            self.move(vm, VmState.ACTIVE, prolog)
        self.do_prolog(vm_id, prolog)

    def do_prolog(self, vm_id: int, prolog: Lcm) -> None:
        def work(spec: MachineSpec) -> None:
            if prolog == Lcm.PROLOG:  # the disks of a VM that was here before are still there
                spec.directory.mkdir(parents=True, exist_ok=True)
                make_volatile_disks(spec)
                self.cloud.hypervisor.prolog(spec)
                clones.prepare_more_like(self.cloud, spec)
            else:
                self.cloud.closing.wait(self.cloud.settings.passing_time)

        if self.step(vm_id, prolog, work) is None:
            return
        boot = BOOT_AFTER[prolog]
        with self.cloud.lock:
            if (vm := self.still(vm_id, prolog)) is None:
                return
            vm.history[-1].petime = vm.history[-1].rstime = now()
            self.move(vm, VmState.ACTIVE, boot)
        self.do_boot(vm_id, boot)

    def do_boot(self, vm_id: int, boot: Lcm) -> None:
        """From a BOOT state to RUNNING, which means only that the machine's process runs."""
        deploy_id = self.step(vm_id, boot, self.cloud.hypervisor.boot)
        if deploy_id is None:
            with self.cloud.lock:
                vm = self.cloud.store.vms.find(vm_id)
                if vm is not None and vm.history and vm.lcm_state == Lcm.BOOT_FAILURE:
                    vm.history[-1].retime = now()
                    self.cloud.store.vms.save(vm)
            return
        with self.cloud.lock:
            if (vm := self.still(vm_id, boot)) is not None:
                vm.deploy_id = deploy_id
                security_groups.booted(self.cloud, vm)
                self.move(vm, VmState.ACTIVE, Lcm.RUNNING)

    def begin_boot(self, vm: Vm, boot: Lcm) -> None:
        """Start a machine whose disks are there."""
        self.move(vm, VmState.ACTIVE, boot)
        self.cloud.in_background(lambda: self.do_boot(vm.oid, boot))

    # -- stopping
    # -------------------------------------------------------------------------------------------------------

    def begin_shutdown(self, vm: Vm, lcm: Lcm, *, hard: bool) -> None:
        """Into a SHUTDOWN (or SAVE) state, and on from there when the machine is off."""
        self.move(vm, VmState.ACTIVE, lcm)
        self.cloud.in_background(lambda: self.end_machine(vm.oid, lcm) if hard else self.press_button(vm.oid, lcm))

    def end_machine(self, vm_id: int, lcm: Lcm) -> None:
        """The hard way. A machine that cannot be ended is RUNNING again, without an error."""

        def work(spec: MachineSpec) -> str:
            self.cloud.hypervisor.destroy(spec.vm_id)
            return str(self.cloud.hypervisor.power(spec.vm_id))

        with self.cloud.lock:
            vm = self.still(vm_id, lcm)
            if vm is not None and lcm in _ENDS_HARD and not is_reachable(self.cloud, vm):
                self.stick(vm)
                return
        match self.step(vm_id, lcm, work):
            case None:
                return
            case Power.OFF:
                self.is_off(vm_id, lcm)
            case _:
                self.fail(vm_id, lcm, "the machine did not end")

    def press_button(self, vm_id: int, lcm: Lcm) -> None:
        """The soft way: ask the guest, look again and again, and give up at a deadline."""
        if self.step(vm_id, lcm, lambda spec: self.cloud.hypervisor.shutdown(spec.vm_id)) is not None:
            self._look_whether_off(vm_id, lcm, time.monotonic() + self.cloud.settings.shutdown_timeout)

    def _look_whether_off(self, vm_id: int, lcm: Lcm, deadline: float) -> None:
        with self.cloud.lock:
            if self.still(vm_id, lcm) is None:
                return
        if self.cloud.hypervisor.power(vm_id) == Power.OFF:
            self.cloud.in_background(lambda: self.is_off(vm_id, lcm))
        elif time.monotonic() > deadline:
            self.fail(vm_id, lcm, "the guest did not power itself off in time")
        else:
            self.cloud.after(self.cloud.settings.shutdown_poll, lambda: self._look_whether_off(vm_id, lcm, deadline))

    def is_off(self, vm_id: int, lcm: Lcm) -> None:
        """The machine is off: where that leads from this state."""
        with self.cloud.lock:
            if (vm := self.still(vm_id, lcm)) is None:
                return
            vm.history[-1].retime = now()
            match lcm:
                case Lcm.SHUTDOWN_POWEROFF:
                    self.move(vm, VmState.POWEROFF)
                    return
                case Lcm.SAVE_SUSPEND:
                    self.move(vm, VmState.SUSPENDED)
                    return
                case Lcm.SHUTDOWN:
                    self.move(vm, VmState.ACTIVE, Lcm.EPILOG)
                case Lcm.SHUTDOWN_UNDEPLOY:
                    self.move(vm, VmState.ACTIVE, Lcm.EPILOG_UNDEPLOY)
                case Lcm.SAVE_STOP:
                    self.move(vm, VmState.ACTIVE, Lcm.EPILOG_STOP)
                case _:
                    return
            vm.history[-1].estime = now()
            following = Lcm(vm.lcm_state)
        self.do_epilog(vm_id, following)

    def begin_epilog(self, vm: Vm, lcm: Lcm) -> None:
        """Of a VM whose machine is off."""
        if vm.history:
            vm.history[-1].estime = now()
        self.move(vm, VmState.ACTIVE, lcm)
        self.cloud.in_background(lambda: self.do_epilog(vm.oid, lcm))

    def do_epilog(self, vm_id: int, lcm: Lcm) -> None:
        """EPILOG deletes the machine's files; the epilogs of stop and undeploy keep them."""
        if lcm != Lcm.EPILOG:
            self.cloud.closing.wait(self.cloud.settings.passing_time)
        elif self._cleaned(vm_id, lcm) is None:
            return
        with self.cloud.lock:
            if (vm := self.still(vm_id, lcm)) is None:
                return
            if vm.history:
                vm.history[-1].eetime = vm.history[-1].etime = now()
            match lcm:
                case Lcm.EPILOG_STOP:
                    self.move(vm, VmState.STOPPED)
                case Lcm.EPILOG_UNDEPLOY:
                    self.move(vm, VmState.UNDEPLOYED)
                case _:
                    self.done(vm)

    def _cleaned(self, vm_id: int, lcm: Lcm) -> str | None:
        with self.machines.of(vm_id):
            try:
                self._require_reachable(vm_id)
                self.cloud.hypervisor.epilog(vm_id, self.cloud.vm_directory(vm_id))
            except (HypervisorError, OSError) as error:
                self.fail(vm_id, lcm, str(error))
                return None
        return ""

    def begin_cleanup(self, vm: Vm, *, recreate: bool = False) -> None:
        """From whatever state: end the machine, delete its files, then DONE (or PENDING again)."""
        if vm.history:
            record = vm.history[-1]
            record.etime = now()
            record.retime = record.retime or now()
        lcm = Lcm.CLEANUP_RESUBMIT if recreate else Lcm.CLEANUP_DELETE
        self.move(vm, VmState.ACTIVE, lcm)
        self.cloud.in_background(lambda: self.do_cleanup(vm.oid, lcm))

    def do_cleanup(self, vm_id: int, lcm: Lcm) -> None:
        """What cannot be cleaned is left behind: the VM is DONE all the same, as in the original."""
        with self.machines.of(vm_id):
            try:
                self._require_reachable(vm_id)
                self.cloud.hypervisor.destroy(vm_id)
                self.cloud.hypervisor.epilog(vm_id, self.cloud.vm_directory(vm_id))
            except (HypervisorError, OSError) as error:
                log.warning("vm %s left something behind: %s", vm_id, error)
        with self.cloud.lock:
            if (vm := self.still(vm_id, lcm)) is None:
                return
            if lcm == Lcm.CLEANUP_RESUBMIT:
                self.move(vm, VmState.PENDING)
            else:
                self.done(vm)

    def _require_reachable(self, vm_id: int) -> None:
        with self.cloud.lock:
            if (vm := self.cloud.store.vms.find(vm_id)) is not None:
                require_reachable(self.cloud, vm)

    def done(self, vm: Vm) -> None:
        """Under the lock. The VM keeps showing addresses and images that others may have by now."""
        release_everything(self.cloud, vm)
        vm.etime = now()
        vm.pending.clear()
        self.move(vm, VmState.DONE)
        self.machines.forget(vm.oid)
        self.cloud.in_background(lambda: self.graveyard.bury(vm.oid))

    # -- waiting for images
    # ---------------------------------------------------------------------------------------------

    def image_settled(self, image: Image) -> None:
        """Under the lock: VMs in CLONING that waited for this image go on, or to CLONING_FAILURE."""
        for vm_id in list(image.vms):
            vm = self.cloud.store.vms.find(vm_id)
            if vm is None or vm.state not in (VmState.CLONING, VmState.CLONING_FAILURE):
                continue
            if image.state == ImageState.ERROR:
                self.move(vm, VmState.CLONING_FAILURE)
                continue
            waiting = False
            for number, disk in enumerate(vectors(vm.template, "DISK")):
                used = self.cloud.store.images.find(int(disk.get("IMAGE_ID", "-1")))
                if used is not None:
                    fill_disk(self.cloud, disk, used, number)
                    waiting = waiting or not used.source
            if not waiting:
                hold = text_of(vm.template, "SUBMIT_ON_HOLD") == "YES"
                self.move(vm, VmState.HOLD if hold else VmState.PENDING)

    def with_host(self, vm: Vm) -> Host | None:
        """Where the VM is, or was last."""
        return self.cloud.store.hosts.find(vm.history[-1].hid) if vm.history else None


def shortened(error: str) -> str:
    """Reasons are cut off, as the original does; the whole text is in the log."""
    first = " ".join(error.split())
    return first if len(first) <= 120 else f"{first[:120]}... see more details in VM log"
