"""What upkeep closes: leases that ran out, VMs that nobody answers for, machines that no row knows.

Facts from the database and the cloud go in, named decisions come out. A machine or row that merely looks lost is acted
on at its second sighting only, because between the two readings one of them may have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from orchestrator.domain.outcome import Reason
from orchestrator.domain.vm import VmState


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that a runner holds."""

    task_id: str
    attempt: int
    runner_id: str
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True)
class OpenVm:
    """A row that is not DESTROYED. cloud_id: None while OpenNebula's answer is not known. wanted: its task goes on."""

    vm_id: str
    cloud_id: int | None
    state: VmState
    deadline_at: datetime
    wanted: bool


@dataclass(frozen=True, slots=True)
class SeenVm:
    """A machine of our installation, as OpenNebula lists it. vm_id: our id, from its tags. done: in state DONE."""

    cloud_id: int
    vm_id: str
    done: bool


@dataclass(frozen=True, slots=True)
class Facts:
    held: Collection[HeldTask] = ()
    vms: Collection[OpenVm] = ()
    seen: Collection[SeenVm] = ()


@dataclass(frozen=True, slots=True)
class Expire:
    """End the attempt whose runner has let its lease run out."""

    task: HeldTask
    reason: Reason = Reason.RUNNER_LOST


@dataclass(frozen=True, slots=True)
class Adopt:
    """OpenNebula made the machine, and its answer was lost: write down its id."""

    vm_id: str
    cloud_id: int


@dataclass(frozen=True, slots=True)
class Destroy:
    """Ask OpenNebula to end a machine that has a row (again, if it was asked before)."""

    vm_id: str
    cloud_id: int
    because: str


@dataclass(frozen=True, slots=True)
class DestroyOrphan:
    """Ask OpenNebula to end a machine that carries our tag and has no open row."""

    cloud_id: int
    because: str


@dataclass(frozen=True, slots=True)
class Close:
    """Write down that a VM is gone, and how we know."""

    vm_id: str
    proof: str


Decision = Expire | Adopt | Destroy | DestroyOrphan | Close


@dataclass(frozen=True, slots=True)
class Round:
    """What to do now, and whom to suspect in the next round."""

    decisions: tuple[Decision, ...]
    suspects: frozenset[str] = field(default=frozenset())


def reap(facts: Facts, suspects: Collection[str], now: datetime) -> Round:
    """One round. `suspects`: those of the round before; with none, nothing is acted on that needs two sightings."""
    suspected: set[str] = set()

    def twice(suspect: str) -> bool:
        suspected.add(suspect)
        return suspect in suspects

    decisions: list[Decision] = [Expire(task) for task in facts.held if task.lease_expires_at <= now]
    matched = {vm.vm_id: _match(vm, facts.seen) for vm in facts.vms}
    for vm in facts.vms:
        seen = matched[vm.vm_id]
        if seen is None:
            if _may_be_missed(vm, now) and twice(f"missing {vm.vm_id}"):
                decisions.append(Close(vm.vm_id, _not_listed(vm)))
        elif seen.done:
            decisions.append(Close(vm.vm_id, f"OpenNebula says DONE of VM {seen.cloud_id}"))
        else:
            decisions += _listed(vm, seen, now)
    answered_for = {seen.cloud_id for seen in matched.values() if seen is not None}
    for machine in facts.seen:
        # A request that was sent twice may have made two machines with one tag: the second is an orphan, too.
        if not machine.done and machine.cloud_id not in answered_for and twice(f"orphan {machine.cloud_id}"):
            decisions.append(DestroyOrphan(machine.cloud_id, f"no open VM of ours is this {machine.vm_id!r}"))
    return Round(tuple(decisions), frozenset(suspected))


def _match(vm: OpenVm, seen: Collection[SeenVm]) -> SeenVm | None:
    """The machine that a row is about; of several with its tag, a living one, the oldest."""
    if vm.cloud_id is not None:
        return next((machine for machine in seen if machine.cloud_id == vm.cloud_id), None)
    tagged = [machine for machine in seen if machine.vm_id == vm.vm_id]
    return min(tagged, key=lambda machine: (machine.done, machine.cloud_id), default=None)


def _listed(vm: OpenVm, seen: SeenVm, now: datetime) -> Iterator[Decision]:
    if vm.cloud_id is None:
        yield Adopt(vm.vm_id, seen.cloud_id)
    because = _why_destroy(vm, now)
    if because:
        yield Destroy(vm.vm_id, seen.cloud_id, because)


def _why_destroy(vm: OpenVm, now: datetime) -> str:
    late = vm.deadline_at <= now
    match vm.state:
        case VmState.DESTROYING:
            return "it was asked to end, and has not by its deadline" if late else ""
        case VmState.REQUESTED | VmState.BOOTING | VmState.READY | VmState.IN_USE:
            if not vm.wanted:
                return "its attempt is over"
            return f"it was {vm.state} beyond its deadline" if late else ""
        case VmState.DESTROYED:
            return ""
        case _:
            assert_never(vm.state)


def _may_be_missed(vm: OpenVm, now: datetime) -> bool:
    """OpenNebula may still be making what it was asked for; until the deadline it is not missed."""
    return vm.cloud_id is not None or vm.deadline_at <= now


def _not_listed(vm: OpenVm) -> str:
    if vm.cloud_id is None:
        return f"OpenNebula never made it: twice it listed no VM tagged {vm.vm_id}"
    return f"OpenNebula does not list VM {vm.cloud_id} any more, seen twice"
