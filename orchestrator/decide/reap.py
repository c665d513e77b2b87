"""What upkeep closes: leases that ran out, VMs that nobody answers for, machines that no row knows.

Facts from the database and the cloud go in, named decisions come out. What merely looks lost is acted on at its second
sighting only, because between the two readings it may have changed: a machine that is not listed, one that no row
knows, and also a lease or a spare's runner, for a clock that jumped makes all look old, and the living have beaten when
they are seen again. While a lease is alive, its task and machine are its runner's, and nobody else touches them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import assert_never

from orchestrator.decide.retry import Failure
from orchestrator.domain.outcome import Reason, Verdict, stopped
from orchestrator.domain.task import Stage
from orchestrator.domain.vm import VmState

ADOPT_SECONDS = 30.0
"""How long a canceled task whose process may run is left to be adopted: a runner ends it better, with its outputs."""


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that a runner holds. deadline_at: the attempt's.

    started: a process may have started (the attempt came to EXECUTING, wherever it is now). verdict: what its runner
    wrote down to say once the machine is gone. Both matter only when the lease has run out.
    """

    task_id: str
    attempt: int
    runner_id: str
    lease_expires_at: datetime
    deadline_at: datetime
    stage: Stage | None = None
    started: bool = True
    cancel_requested: bool = False
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class OpenVm:
    """A row that is not DESTROYED. cloud_id: None while OpenNebula's answer is not known. task_id, attempt: whose it
    is; None: nobody's yet, a spare, which runner_id keeps."""

    vm_id: str
    cloud_id: int | None
    state: VmState
    deadline_at: datetime
    task_id: str | None
    attempt: int | None
    runner_id: str | None = None


@dataclass(frozen=True, slots=True)
class SeenVm:
    """A machine of our installation, as OpenNebula lists it. vm_id: our id, from its tags. done: in state DONE. off: it
    is there, but has stopped running (it crashed, say); not one of which OpenNebula knows nothing for now."""

    cloud_id: int
    vm_id: str
    done: bool
    off: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All of each. To be read in the order `seen`, `vms`, `held`, `alive`: what is made meanwhile is then never missed.
    alive: ids of the runners that are."""

    held: Collection[HeldTask] = ()
    vms: Collection[OpenVm] = ()
    seen: Collection[SeenVm] = ()
    alive: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Expire:
    """End the attempt whose runner has let its lease run out; `decide.retry` says whether there is another."""

    task: HeldTask
    failure: Failure


@dataclass(frozen=True, slots=True)
class Conclude:
    """Say of a task what its runner would have said."""

    task: HeldTask
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Adopt:
    """OpenNebula made the machine, and its answer was lost: write down its id."""

    vm_id: str
    cloud_id: int


@dataclass(frozen=True, slots=True)
class Destroy:
    """Ask OpenNebula to end a machine that has a row (again, if it was asked before), and close the row on DONE. spare:
    only while it is for no task."""

    vm_id: str
    cloud_id: int
    because: str
    spare: bool = False


@dataclass(frozen=True, slots=True)
class DestroyOrphan:
    """Ask OpenNebula to end a machine that carries our tag and has no open row."""

    cloud_id: int
    because: str


@dataclass(frozen=True, slots=True)
class Close:
    """Write down that a VM is gone, unless OpenNebula, asked for `cloud_id` alone, shows that it is there. because:
    what was seen. spare: only while it is for no task."""

    vm_id: str
    because: str
    cloud_id: int | None = None
    spare: bool = False


Decision = Expire | Conclude | Adopt | Destroy | DestroyOrphan | Close
Plan = tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """What to do now, and whom to suspect in the next round.

    A plan's steps are done in order, and one that fails or comes too late ends it. Plans have nothing to do with each
    other.
    """

    plans: tuple[Plan, ...]
    suspects: frozenset[str] = field(default=frozenset())

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All steps of all plans."""
        return tuple(step for plan in self.plans for step in plan)


def reap(facts: Facts, suspects: Collection[str], now: datetime) -> Round:
    """One round. `suspects`: those of the round before; with none, nothing is acted on that needs two sightings.

    Rounds should lie further apart than a runner's heartbeats, so that a living one's lease has moved in between.
    """
    look = _Look(facts, suspects, now)
    plans = [plan for task in facts.held if look.ran_out(task) for plan in _end(task, look)]
    plans += [plan for vm in facts.vms for plan in _alone(vm, look)]
    plans += look.orphans()
    return Round(tuple(plans), frozenset(look.suspected))


class _Look:
    """The facts, put together, and what is seen in them for the second time."""

    def __init__(self, facts: Facts, suspects: Collection[str], now: datetime) -> None:
        self.now = now
        self.suspected: set[str] = set()
        self._before = frozenset(suspects)
        self._facts = facts
        self._alive = frozenset(facts.alive)
        self._holders = {(task.task_id, task.attempt): task for task in facts.held}
        self._gone = {key for key, task in self._holders.items() if task.lease_expires_at <= now}
        self._gone = {key for key in self._gone if self._twice(_lease(self._holders[key]))}
        self._vms_of: dict[tuple[str | None, int | None], list[OpenVm]] = defaultdict(list)
        for vm in facts.vms:
            self._vms_of[vm.task_id, vm.attempt].append(vm)
        by_id = {machine.cloud_id: machine for machine in facts.seen}
        known = {vm.cloud_id for vm in facts.vms}
        by_tag = _by_tag([machine for machine in facts.seen if machine.cloud_id not in known])
        self.machine = {
            vm.vm_id: by_tag.get(vm.vm_id) if vm.cloud_id is None else by_id.get(vm.cloud_id) for vm in facts.vms
        }
        self._missed = {vm.vm_id for vm in facts.vms if self._is_missed(vm)}
        stopped = [machine for machine in self.machine.values() if machine is not None and machine.off]
        self._off = {machine.cloud_id for machine in stopped if self._twice(f"off {machine.cloud_id}")}

    def ran_out(self, task: HeldTask) -> bool:
        """Its lease, seen so twice."""
        return (task.task_id, task.attempt) in self._gone

    def holder(self, vm: OpenVm) -> HeldTask | None:
        """The task that it is for, if that is held in the same attempt."""
        return None if vm.task_id is None or vm.attempt is None else self._holders.get((vm.task_id, vm.attempt))

    def vms_of(self, task: HeldTask) -> list[OpenVm]:
        return self._vms_of[task.task_id, task.attempt]

    def deserted(self, vm: OpenVm) -> bool:
        """Of a spare: its runner is not alive, seen so twice."""
        return vm.runner_id not in self._alive and self._twice(f"spare {vm.vm_id}")

    def may_run(self, vm: OpenVm) -> bool:
        """Its machine is there, and was not seen twice to have stopped."""
        machine = self.machine[vm.vm_id]
        return machine is not None and not machine.done and machine.cloud_id not in self._off

    def close(self, vm: OpenVm) -> Close | None:
        """If there is proof that the machine is gone."""
        machine, spare = self.machine[vm.vm_id], vm.task_id is None
        if machine is not None and machine.done:
            return Close(vm.vm_id, f"OpenNebula says DONE of VM {machine.cloud_id}", machine.cloud_id, spare)
        return Close(vm.vm_id, _not_listed(vm), vm.cloud_id, spare) if vm.vm_id in self._missed else None

    def destroy(self, vm: OpenVm, because: str) -> Plan:
        """The steps that end its machine; none while it is ending, or OpenNebula does not list it."""
        machine = self.machine[vm.vm_id]
        if machine is None or machine.done:
            return ()
        if vm.state is VmState.DESTROYING:
            if vm.deadline_at > self.now:
                return ()
            because = "it was asked to end, and has not by its deadline"
        known = (Adopt(vm.vm_id, machine.cloud_id),) if vm.cloud_id is None else ()
        return *known, Destroy(vm.vm_id, machine.cloud_id, because, spare=vm.task_id is None)

    def orphans(self) -> Iterator[Plan]:
        """A request that was sent twice may have made two machines with one tag: the second is an orphan, too. But
        while a runner is about to hear which of them it has, neither is."""
        answered_for = {machine.cloud_id for machine in self.machine.values() if machine is not None}
        awaited = {vm.vm_id for vm in self._facts.vms if vm.cloud_id is None and self._is_held(vm)}
        for machine in self._facts.seen:
            if machine.done or machine.cloud_id in answered_for:
                continue
            if self._twice(f"orphan {machine.cloud_id}") and machine.vm_id not in awaited:
                yield (DestroyOrphan(machine.cloud_id, f"no open VM of ours is this {machine.vm_id!r}"),)

    def _is_held(self, vm: OpenVm) -> bool:
        holder = self.holder(vm)
        return holder is not None and not self.ran_out(holder)

    def _is_missed(self, vm: OpenVm) -> bool:
        """Not listed, seen twice. OpenNebula may still be making what it was asked for, until the deadline; and a
        runner that holds it sees for itself."""
        if self.machine[vm.vm_id] is not None or (vm.cloud_id is None and vm.deadline_at > self.now):
            return False
        return self._twice(f"missing {vm.vm_id}") and not self._is_held(vm)

    def _twice(self, suspect: str) -> bool:
        self.suspected.add(suspect)
        return suspect in self._before


def _by_tag(seen: Collection[SeenVm]) -> dict[str, SeenVm]:
    """Of several machines with one tag, a living one, the oldest."""
    found: dict[str, SeenVm] = {}
    for machine in sorted(seen, key=lambda machine: (machine.done, machine.cloud_id)):
        found.setdefault(machine.vm_id, machine)
    return found


def _end(task: HeldTask, look: _Look) -> Iterator[Plan]:
    """What follows when nobody answers for a task any more. Its machine goes before the task ends, so that what we say
    of a task is never said while its process may run; only an attempt that never started one, or that is beyond its
    deadline anyway, ends at once."""
    overdue = task.deadline_at <= look.now
    adoptable = not overdue and _adoptable(task, look)
    if task.verdict is not None:
        yield from _ended(task, Conclude(task, task.verdict), "its attempt is over", look, at_once=overdue)
    elif task.cancel_requested:
        if not adoptable or look.now >= task.lease_expires_at + timedelta(seconds=ADOPT_SECONDS):
            verdict = replace(stopped(None), message="canceled, when its runner had stopped answering")
            yield from _ended(task, Conclude(task, verdict), "its task is canceled", look, at_once=overdue)
    elif overdue:
        late = f"it was at {_where(task)} beyond the attempt's deadline, and its runner had stopped answering"
        failure = Failure(Reason.DEADLINE_PASSED, late, task.started, final=True)
        yield from _ended(task, Expire(task, failure), "its attempt is over", look, at_once=True)
    elif not adoptable:
        message = f"runner {task.runner_id} stopped answering at {_where(task)}: its lease ran out"
        if task.started:
            message += ", and the machine is gone"
        failure = Failure(Reason.RUNNER_LOST, message, task.started)
        yield from _ended(task, Expire(task, failure), "its runner is lost", look, at_once=not task.started)


def _ended(task: HeldTask, end: Expire | Conclude, because: str, look: _Look, *, at_once: bool) -> Iterator[Plan]:
    """One plan: `end`, and what is to be done with the machine; nothing while the machine is ending."""
    closes: Plan = ()
    destroys: Plan = ()
    still_there = False
    for vm in look.vms_of(task):
        if close := look.close(vm):
            closes += (close,)
        elif steps := look.destroy(vm, because):
            destroys += steps
        else:
            still_there = True
    if at_once:
        yield (*closes, end, *destroys)
    elif not still_there:
        yield (*closes, *destroys, end)
    elif closes or destroys:
        yield (*closes, *destroys)


def _adoptable(task: HeldTask, look: _Look) -> bool:
    """Another runner may go on with it: its process may run, or has ended, in a machine that is there."""
    if task.stage not in (Stage.EXECUTING, Stage.STAGING_OUT):
        return False
    return any(look.may_run(vm) for vm in look.vms_of(task) if vm.state is VmState.IN_USE)


def _alone(vm: OpenVm, look: _Look) -> Iterator[Plan]:
    """What is to be done with a machine for its own sake."""
    holder = look.holder(vm)
    if holder is not None and look.ran_out(holder):
        return  # see `_end`
    if close := look.close(vm):
        yield (close,)
    elif holder is None and (because := _why_destroy(vm, look)) and (steps := look.destroy(vm, because)):
        yield steps


def _why_destroy(vm: OpenVm, look: _Look) -> str:
    """Of a machine that no lease holds."""
    match vm.state:
        case VmState.DESTROYING:
            return "it was asked to end, and has not by its deadline"
        case VmState.REQUESTED | VmState.BOOTING | VmState.READY | VmState.IN_USE:
            if vm.task_id is not None:
                return "its attempt is over"
            if look.deserted(vm):
                return "its runner is lost"
            return f"it was {vm.state} beyond its deadline" if vm.deadline_at <= look.now else ""
        case VmState.DESTROYED:
            return ""
        case _:
            assert_never(vm.state)


def _not_listed(vm: OpenVm) -> str:
    if vm.cloud_id is None:
        return f"OpenNebula never made it: twice it listed no VM tagged {vm.vm_id}"
    return f"OpenNebula does not list VM {vm.cloud_id} any more, seen twice"


def _where(task: HeldTask) -> str:
    return task.stage or "its very beginning"


def _lease(task: HeldTask) -> str:
    """A lease as it stands: the next heartbeat makes it another."""
    return f"lease {task.task_id} {task.attempt} {task.runner_id} {task.lease_expires_at.isoformat()}"
