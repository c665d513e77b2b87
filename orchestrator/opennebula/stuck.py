"""VMs that do not get on by themselves, and what an administrator can do about each. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import assert_never

from orchestrator.opennebula.objects import CloudVm
from orchestrator.opennebula.states import Phase


@dataclass(frozen=True, slots=True)
class StuckVm:
    """A VM with the state in which it stays, what that means, and the command of OpenNebula's that helps."""

    vm_id: int
    state: str
    why: str
    command: str


def suspects(vms: Iterable[CloudVm], failed_hosts: Collection[str]) -> list[StuckVm]:
    """Those that may be stuck: seen so once, a VM may just be passing. failed_hosts: names of hosts that do not
    report."""
    return [stuck for vm in vms if (stuck := _suspect(vm, failed_hosts))]


def _suspect(vm: CloudVm, failed_hosts: Collection[str]) -> StuckVm | None:
    delete = f"onevm recover --delete {vm.id}"
    host = vm.host or "its host"
    match vm.phase:
        case Phase.STOPPING:
            return StuckVm(vm.id, vm.state_name, "it does not get to its end", delete)
        case Phase.STARTING | Phase.BUSY:
            return StuckVm(vm.id, vm.state_name, "the driver does not say how it went", delete)
        case Phase.UNKNOWN:
            return StuckVm(vm.id, vm.state_name, f"{host} does not report", delete)
        case Phase.RUNNING if vm.host in failed_hosts:
            return StuckVm(vm.id, vm.state_name, f"{host} does not report, the VM may be gone", delete)
        case Phase.RUNNING | Phase.WAITING | Phase.OFF | Phase.FAILED | Phase.DONE:
            return None
        case _:
            assert_never(vm.phase)
