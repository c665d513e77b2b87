"""What can be asked of a VM (`one.vm.action`): from which states, and what it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.localcloud import history
from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.hypervisors import HypervisorError, Power
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.machines import machine_spec
from orchestrator.localcloud.model import Lcm, Vm, VmState
from orchestrator.localcloud.reach import require_reachable
from orchestrator.localcloud.refusals import Code, Refused, wrong_state

# Legal states, by name: of ACTIVE VMs the LCM state. From OpenNebula's dispatch manager (DispatchManagerActions.cc).
_ALIVE = ("RUNNING", "UNKNOWN")
_OFF = ("SUSPENDED", "POWEROFF", "STOPPED", "UNDEPLOYED")
_NOT_YET = ("INIT", "PENDING", "HOLD", "CLONING", "CLONING_FAILURE")
_FAILED = tuple(lcm.name for lcm in Lcm if lcm.name.endswith("_FAILURE"))
LEGAL: dict[str, tuple[str, ...]] = {
    "terminate": (*_ALIVE, *_OFF, *_NOT_YET, *_FAILED, "DONE"),
    "terminate-hard": (*_ALIVE, *_OFF, *_NOT_YET, *_FAILED, "DONE", "SHUTDOWN"),
    "poweroff": _ALIVE,
    "poweroff-hard": (*_ALIVE, "SHUTDOWN_POWEROFF"),
    "undeploy": (*_ALIVE, "POWEROFF"),
    "undeploy-hard": (*_ALIVE, "POWEROFF", "SHUTDOWN_UNDEPLOY"),
    "suspend": ("RUNNING",),
    "stop": ("RUNNING", "SUSPENDED"),
    "resume": (*_OFF, "UNKNOWN"),
    "reboot": ("RUNNING",),
    "reboot-hard": ("RUNNING",),
    "hold": ("PENDING",),
    "release": ("HOLD",),
    "resched": (*_ALIVE, "POWEROFF"),
    "unresched": (*_ALIVE, "POWEROFF"),
}
_PASSING = {
    "terminate": Lcm.SHUTDOWN,
    "poweroff": Lcm.SHUTDOWN_POWEROFF,
    "undeploy": Lcm.SHUTDOWN_UNDEPLOY,
    "suspend": Lcm.SAVE_SUSPEND,
    "stop": Lcm.SAVE_STOP,
    "resume": Lcm.BOOT_POWEROFF,
}
"""The state in which an action is seen while it lasts."""
_ADMIN_ONLY = ("resched", "unresched")
_NEEDS_SAVED_MEMORY = ("suspend", "stop")
"""A hypervisor keeps a machine's memory only if it says so (`saves_memory`): without, a "suspended" machine would
come back freshly booted, so these are refused."""


def check(cloud: Cloud, caller: Caller, vm: Vm, action: str) -> None:
    """Raises Refused: 2048 for an unknown action or a wrong state, 512 without the right."""
    if action not in LEGAL:
        raise wrong_state(f'Action "{action}" is not supported')
    caller.require(("ADMIN" if action in _ADMIN_ONLY else "MANAGE", vm))
    performing = f'Error performing action "{action}": '
    if vm.state_name not in LEGAL[action] or "stuck" in vm.pending:
        if action.startswith("terminate"):
            raise wrong_state(f"{performing}Could not terminate VM {vm.oid}, wrong state {vm.state_name}.")
        raise wrong_state(f"{performing}This action is not available for state {vm.state_name}")
    if action in _NEEDS_SAVED_MEMORY and not getattr(cloud.hypervisor, "saves_memory", False):
        raise wrong_state(f"{performing}Saving memory is not supported by driver {cloud.hypervisor.name}")


@dataclass(frozen=True, slots=True)
class Actions:
    """Begins actions that `check` allowed."""

    cloud: Cloud
    lifecycle: Lifecycle

    def accept(self, caller: Caller, vm: Vm, action: str) -> None:
        """Under the lock. What only changes the database happens now; what needs a driver begins a moment later, and
        comes to nothing if the VM is in another state by then."""
        immediate: dict[str, Callable[[], None]] = {
            "hold": lambda: self.lifecycle.move(vm, VmState.HOLD),
            "release": lambda: self.lifecycle.move(vm, VmState.PENDING),
            "resched": lambda: self._resched(vm, True),
            "unresched": lambda: self._resched(vm, False),
        }
        if action in immediate:
            immediate[action]()
        elif action.startswith("terminate") and vm.state_name in _NOT_YET:
            self.lifecycle.done(vm)
        elif vm.state == VmState.DONE:
            return
        elif action == "resume" and vm.state in (VmState.STOPPED, VmState.UNDEPLOYED):
            vm.pending = {"stopped" if vm.state == VmState.STOPPED else "undeployed": 1}
            self.lifecycle.move(vm, VmState.PENDING)
        elif action.startswith("reboot"):
            self.cloud.rebooting.add(vm.oid)
            self.cloud.in_background(lambda: self._reboot(vm.oid, hard=action == "reboot-hard"))
        else:
            seen = vm.state_name
            self.cloud.soon(lambda: self._begin(caller, vm.oid, action, seen))

    def _resched(self, vm: Vm, wanted: bool) -> None:
        vm.resched = wanted
        self.cloud.store.vms.save(vm)

    def _begin(self, caller: Caller, vm_id: int, action: str, seen: str) -> None:
        with self.cloud.lock:
            vm = self.cloud.store.vms.find(vm_id)
            if vm is None or vm.state == VmState.DONE or vm.state_name not in LEGAL[action]:
                log.info("vm %s: %s was accepted in %s and comes too late", vm_id, action, seen)
                return
            if self.cloud.faults.take("fall_back", action) is not None:
                self._fall_back(vm, action)
                return
            if self.cloud.faults.take("stick", action) is not None:
                self._stick(vm, action)
                return
            self._go(caller, vm, action)

    def _go(self, caller: Caller, vm: Vm, action: str) -> None:
        life, state = self.lifecycle, vm.state_name
        hard = action.endswith("-hard")
        if action == "resume":
            history.reopened(vm, caller)
            life.begin_boot(vm, Lcm.BOOT_SUSPENDED if state == "SUSPENDED" else Lcm.BOOT_POWEROFF)
            return
        if action.startswith("terminate") and state in _FAILED:
            history.mark(vm, "delete", caller)
            life.begin_cleanup(vm)
            return
        history.mark(vm, action, caller)
        match action.removesuffix("-hard"):
            case "terminate" if state in _OFF:
                life.begin_epilog(vm, Lcm.EPILOG)
            case "terminate":
                life.begin_shutdown(vm, Lcm.SHUTDOWN, hard=hard)
            case "poweroff":
                life.begin_shutdown(vm, Lcm.SHUTDOWN_POWEROFF, hard=hard)
            case "undeploy" if state == "POWEROFF":
                life.begin_epilog(vm, Lcm.EPILOG_UNDEPLOY)
            case "undeploy":
                life.begin_shutdown(vm, Lcm.SHUTDOWN_UNDEPLOY, hard=hard)
            case "suspend":
                life.begin_shutdown(vm, Lcm.SAVE_SUSPEND, hard=True)
            case "stop" if state == "SUSPENDED":
                life.begin_epilog(vm, Lcm.EPILOG_STOP)
            case "stop":
                life.begin_shutdown(vm, Lcm.SAVE_STOP, hard=True)

    def _fall_back(self, vm: Vm, action: str) -> None:
        """As when a driver failed: the state of the action is seen for a moment, then the old one again."""
        state, lcm = VmState(vm.state), Lcm(vm.lcm_state)
        passing = _PASSING[action.removesuffix("-hard")]
        self.lifecycle.move(vm, VmState.ACTIVE, passing)

        def back() -> None:
            with self.cloud.lock:
                if (now := self.lifecycle.still(vm.oid, passing)) is not None:
                    self.lifecycle.move(now, state, lcm)

        self.cloud.soon(back)

    def _stick(self, vm: Vm, action: str) -> None:
        """As when the driver did it and its answer was lost: the machine is off, and the VM never gets further."""
        self.lifecycle.move(vm, VmState.ACTIVE, _PASSING[action.removesuffix("-hard")])
        self.lifecycle.stick(vm)
        if action != "resume":
            self.cloud.in_background(lambda: self.cloud.hypervisor.destroy(vm.oid))

    def _reboot(self, vm_id: int, *, hard: bool) -> None:
        """The interface of hypervisors has no reset: the machine ends and starts again on its disks, RUNNING all the
        while. A guest that does not power itself off in time goes on as it was."""
        try:
            with self.lifecycle.machines.of(vm_id):
                with self.cloud.lock:
                    if (vm := self.lifecycle.still(vm_id, Lcm.RUNNING)) is None:
                        return
                    require_reachable(self.cloud, vm)
                    spec = machine_spec(self.cloud, vm)
                if hard:
                    self.cloud.hypervisor.destroy(vm_id)
                elif not self._powered_off(vm_id):
                    return
                self.cloud.hypervisor.boot(spec)
        except (HypervisorError, OSError) as error:
            log.warning("vm %s did not reboot: %s", vm_id, error)  # monitoring finds it dead
        finally:
            self.cloud.rebooting.discard(vm_id)

    def _powered_off(self, vm_id: int) -> bool:
        settings = self.cloud.settings
        self.cloud.hypervisor.shutdown(vm_id)
        for _ in range(max(1, int(settings.shutdown_timeout / settings.shutdown_poll))):
            if self.cloud.hypervisor.power(vm_id) == Power.OFF:
                return True
            if self.cloud.closing.wait(settings.shutdown_poll):
                return False
        return False


def require_recoverable(vm: Vm, operation: int) -> None:
    """Raises Refused: 4096 for an unknown operation, 2048 for one that makes no sense in the VM's state."""
    if operation not in (0, 1, 2, 3, 4):
        raise Refused(Code.API, "Wrong recovery operation code")
    if operation in (0, 1) and vm.state not in (VmState.ACTIVE, VmState.CLONING_FAILURE):
        raise wrong_state(f"Could not perform a recover operation on VM {vm.oid}, wrong state {vm.state_name}.")
    if operation == 2 and vm.state != VmState.ACTIVE:
        raise wrong_state(f"Could not perform a retry on VM {vm.oid}, wrong state {vm.state_name}.")
    if operation == 4 and vm.state in (VmState.POWEROFF, VmState.SUSPENDED):
        word = "powered off" if vm.state == VmState.POWEROFF else "suspended"
        raise wrong_state(f"Cannot delete-recreate a {word} VM. Resume it first")
    if operation == 4 and vm.state == VmState.DONE:
        raise wrong_state("Cannot delete-recreate a VM already in DONE state")
