"""Faults of simulated machines and of the drivers before them, as documents.

{"kind": "drop_connections", "vm": 12}             every connection to the guest is reset; `"vm": "all"`: to all guests
{"kind": "power_off", "vm": 12}                    the machine goes off behind the cloud's back
{"kind": "freeze_guest", "vm": 12, "frozen": true} its network is silent, its process goes on
{"kind": "pause", "vm": 12, "because": "io-error"} the machine stands still, as the hypervisor says; "" ends it
{"kind": "slow_guest", "vm": 12, "seconds": 2}     each of its answers to a request comes so much later
{"kind": "fail_step", "step": "boot", "text": "no", "times": 1}   the next calls of a driver's step fail
{"kind": "hold", "step": "boot"}                   that step does not come back, until …
{"kind": "let_go", "step": "boot"}
{"kind": "takes", "step": "boot", "seconds": 1}    how long the step takes
{"kind": "zombies", "on": true}                    machines that are to end do not, and drivers report success
{"kind": "ignores_power_button", "on": true}       guests do
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from orchestrator.localcloud.hypervisors import MachineSpec
    from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor

KINDS = frozenset(
    {"drop_connections", "power_off", "freeze_guest", "slow_guest", "fail_step", "hold", "let_go", "takes", "zombies"}
    | {"ignores_power_button", "pause"}
)
STEPS = ("prolog", "boot", "shutdown", "destroy", "epilog", "attach_nic", "detach_nic", "update_nic", "save_disk")
_TIMED = ("prolog", "boot", "shutdown", "destroy", "epilog", "save", "plug")


@runtime_checkable
class Reachable(Protocol):
    """A guest with a network in which things can go wrong."""

    def drop_connections(self) -> None: ...
    def freeze(self, frozen: bool = True) -> None: ...
    def answer_after(self, seconds: float) -> None: ...
    def rewire(self, spec: MachineSpec) -> None: ...


def inject(hypervisor: SimulatedHypervisor, order: dict[str, Any]) -> None:
    """Raises ValueError for what is no fault of a machine, or of one that does not run."""
    match order:
        case {"kind": "drop_connections", "vm": vm}:
            for guest in _guests(hypervisor, vm):
                guest.drop_connections()
        case {"kind": "power_off", "vm": vm}:
            for vm_id in _machines(hypervisor, vm):
                hypervisor.power_off(vm_id)
        case {"kind": "freeze_guest", "vm": vm}:
            for guest in _guests(hypervisor, vm):
                guest.freeze(bool(order.get("frozen", True)))
        case {"kind": "pause", "vm": vm, "because": str(because)}:
            for vm_id in _machines(hypervisor, vm):
                hypervisor.pause(vm_id, because)
        case {"kind": "slow_guest", "vm": vm, "seconds": int() | float() as seconds}:
            for guest in _guests(hypervisor, vm):
                guest.answer_after(seconds)
        case {"kind": "fail_step", "step": str(step)} if step in STEPS:
            hypervisor.fail_next(step, str(order.get("text", "simulated failure")), int(order.get("times", 1)))
        case {"kind": "hold", "step": str(step)} if step in STEPS:
            hypervisor.hold(step)
        case {"kind": "let_go", "step": str(step)} if step in STEPS:
            hypervisor.let_go(step)
        case {"kind": "takes", "step": str(step), "seconds": int() | float() as seconds} if step in _TIMED:
            setattr(hypervisor, f"{step}_takes", float(seconds))
        case {"kind": "zombies", "on": bool(on)}:
            hypervisor.zombies = on
        case {"kind": "ignores_power_button", "on": bool(on)}:
            hypervisor.ignores_power_button = on
        case _:
            raise ValueError(f"not a fault of a machine: {order}")


def _machines(hypervisor: SimulatedHypervisor, vm: object) -> list[int]:
    running = hypervisor.machines()
    if vm == "all":
        return list(running)
    if not isinstance(vm, int) or vm not in running:
        raise ValueError(f"no machine {vm} runs")
    return [vm]


def _guests(hypervisor: SimulatedHypervisor, vm: object) -> list[Reachable]:
    of = hypervisor.guests()
    found: list[Reachable] = []
    for vm_id in _machines(hypervisor, vm):
        if isinstance(guest := of.get(vm_id), Reachable):
            found.append(guest)
    if not found and vm != "all":
        raise ValueError(f"machine {vm} has no guest that can be reached")
    return found
