"""Tasks, machines and queues as they should be: a plain Python model of what the store promises."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import LEGAL_MOVES, Stage, TaskSpec, TaskState
from orchestrator.domain.vm import LEGAL_MOVES as VM_MOVES
from orchestrator.domain.vm import VmState
from orchestrator.store import EventRow, Lease

HELD = (TaskState.RUNNING, TaskState.WAITING)
STAGES = tuple(Stage)


@dataclass
class Task:
    """admitted is taken over from the row, where it may be later than it might: see `Model.may_be_admitted`."""

    id: str
    spec: TaskSpec
    frontend: str
    state: TaskState
    deadline: datetime
    not_before: datetime | None
    depends_on: set[str]
    attempt: int = 0
    lease: Lease | None = None
    expires: datetime | None = None
    stage: Stage | None = None
    cancel: bool = False
    admitted: bool = False
    verdict: Verdict | None = None
    started: bool = False
    layer: str | None = None

    def go(self, state: TaskState) -> None:
        assert state in LEGAL_MOVES[self.state], (self.state, state)
        self.state = state
        if state not in HELD:
            self.lease = self.stage = self.expires = None
            self.verdict, self.started = None, False

    def forward(self, stage: Stage) -> bool:
        return self.stage is None or STAGES.index(stage) > STAGES.index(self.stage)


@dataclass
class Vm:
    """Without a task: a spare one."""

    id: str
    pool: str
    runner_id: str
    task_id: str | None = None
    attempt: int | None = None
    state: VmState = VmState.REQUESTED
    cloud_id: int | None = None

    @property
    def spare(self) -> bool:
        return self.task_id is None

    def may(self, state: VmState, runner_id: str | None, *, if_spare: bool) -> bool:
        legal = state in VM_MOVES[self.state] and not (state is VmState.IN_USE and self.spare)
        return legal and runner_id in (None, self.runner_id) and (self.spare or not if_spare)

    def taken_by(self, task: Task) -> None:
        """Once, and for good."""
        assert self.spare and self.state is VmState.READY and self.pool == task.spec.pool
        self.state, self.task_id, self.attempt = VmState.IN_USE, task.id, task.attempt


@dataclass
class Layer:
    builder: str
    ready: bool = False


@dataclass
class Model:
    max_vms: dict[str, int]
    tasks: dict[str, Task] = field(default_factory=dict)
    vms: dict[str, Vm] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    served: dict[tuple[str, str], int] = field(default_factory=dict)
    """Pool and frontend: the turn in which it was served last."""
    turn: int = 0
    layers: dict[str, Layer] = field(default_factory=dict)

    def holds(self, lease: Lease) -> Task | None:
        """The task, if this lease is still the one that holds it."""
        task = self.tasks.get(lease.task_id)
        return task if task is not None and task.lease == lease else None

    def expired(self, now: datetime) -> set[str]:
        return {task.id for task in self.held() if task.expires is not None and task.expires <= now}

    def held(self, pool: str | None = None, frontend: str | None = None) -> Iterator[Task]:
        for task in self.tasks.values():
            if task.state in HELD and pool in (None, task.spec.pool) and frontend in (None, task.frontend):
                yield task

    def may_be_admitted(self, task: Task, now: datetime) -> bool:
        due = (task.not_before is None or task.not_before <= now) and self.laid(task)
        return due and all(self.tasks[other].state is TaskState.FINISHED for other in task.depends_on)

    def laid(self, task: Task) -> bool:
        """What its packages make is there, if it brings some."""
        return not task.spec.packages or (task.layer in self.layers and self.layers[task.layer].ready)

    def pending(self, layer: str | None) -> list[Task]:
        """Those that bring packages, are not let in yet, and have this layer (None: none yet)."""
        queued = (each for each in self.tasks.values() if each.state is TaskState.QUEUED and not each.admitted)
        return [task for task in queued if task.spec.packages and task.layer == layer]

    def hopeless(self, task: Task) -> bool:
        """Something that it depends on can never be FINISHED."""
        ends = (TaskState.FAILED, TaskState.CANCELED)
        return any(self.tasks[other].state in ends for other in task.depends_on)

    def would_cycle(self, task: Task, on: Collection[str]) -> bool:
        seen, todo = set(), list(on)
        while todo:
            other = todo.pop()
            if other == task.id:
                return True
            if other not in seen:
                seen.add(other)
                todo += self.tasks[other].depends_on
        return False

    def taken(self, pool: str) -> int:
        """Machines of the pool that there are or will be: one for each held task, and those that are spare or left
        over."""
        held = {(task.id, task.attempt) for task in self.held(pool)}
        open_ones = (vm for vm in self.vms.values() if vm.pool == pool and vm.state is not VmState.DESTROYED)
        return len(held) + sum((vm.task_id, vm.attempt) not in held for vm in open_ones)

    def usable(self, runner_id: str, pool: str, offered: Collection[str]) -> list[Vm]:
        """Those of the offered VMs that a task of the pool may take, in their order."""
        vms = [self.vms[each] for each in dict.fromkeys(offered) if each in self.vms]
        mine = [vm for vm in vms if vm.spare and vm.pool == pool and vm.runner_id == runner_id]
        return [vm for vm in mine if vm.state is VmState.READY]

    def ready(self, pool: str, *, warm: bool = False) -> list[Task]:
        """Tasks that may be claimed: in a VM that is ready (warm), or in a new one."""
        if pool in self.paused or (self.taken(pool) >= self.max_vms[pool] and not warm):
            return []
        return [
            task
            for task in self.tasks.values()
            if task.state is TaskState.QUEUED and task.admitted and task.spec.pool == pool
        ]

    def next_in(self, pool: str, *, warm: bool) -> Task | None:
        """Priority; then the frontend with the fewest held tasks, and of those the one that was served longest ago (by
        name, when neither ever was); of a frontend, first come, first served."""

        def order(task: Task) -> tuple[int, int, int, str, str]:
            held, served = len(list(self.held(pool, task.frontend))), self.served.get((pool, task.frontend), 0)
            return -task.spec.terms.priority, held, served, task.frontend, task.id

        return min(self.ready(pool, warm=warm), key=order, default=None)

    def claim(self, task: Task, lease: Lease, expires: datetime, deadline: datetime) -> None:
        task.go(TaskState.RUNNING)
        task.attempt += 1
        task.lease, task.expires, task.deadline = lease, expires, deadline
        self.turn += 1
        self.served[task.spec.pool, task.frontend] = self.turn

    def vm_of(self, task: Task) -> Vm | None:
        """That of the task's present attempt."""
        mine = (vm for vm in self.vms.values() if (vm.task_id, vm.attempt) == (task.id, task.attempt))
        return next(mine, None)

    def adoptable(self, now: datetime, runner_id: str, pools: Collection[str]) -> list[str]:
        """Attempts of others that this runner may take over, the longest left alone first. What upkeep ends is not
        among them: a verdict is recorded, or the deadline has passed."""
        found = []
        for task in self.held():
            vm = self.vm_of(task)
            if (
                task.lease is not None
                and task.expires is not None
                and task.lease.runner_id != runner_id
                and task.spec.pool in pools
                and task.expires < now < task.deadline
                and task.stage in (Stage.EXECUTING, Stage.STAGING_OUT)
                and task.verdict is None
                and vm is not None
                and vm.state is VmState.IN_USE
            ):
                found.append((task.expires, task.id))
        return [task_id for _, task_id in sorted(found)]

    def adopt(self, task: Task, lease: Lease, expires: datetime) -> None:
        vm = self.vm_of(task)
        assert vm is not None
        task.lease, task.expires = lease, expires
        vm.runner_id = lease.runner_id

    def ahead_of(self, task: Task) -> tuple[int, int, tuple[int, ...]]:
        """Ready tasks of higher priority, earlier ones of its own frontend, how many each other frontend has."""
        mine = task.spec.terms.priority
        queue = [
            other
            for other in self.tasks.values()
            if other.state is TaskState.QUEUED and other.admitted and other.spec.pool == task.spec.pool
        ]
        level = [other for other in queue if other.spec.terms.priority == mine]
        others: dict[str, int] = {}
        for other in level:
            if other.frontend != task.frontend:
                others[other.frontend] = others.get(other.frontend, 0) + 1
        return (
            sum(other.spec.terms.priority > mine for other in queue),
            sum(other.frontend == task.frontend and other.id < task.id for other in level),
            tuple(sorted(others.values())),
        )


@dataclass
class Story:
    """What the event log tells, replayed: it must be the same as the rows say. began: how each task was submitted."""

    number: int = 0
    began: dict[str, TaskState] = field(default_factory=dict)
    states: dict[str, TaskState] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    vms: dict[str, VmState] = field(default_factory=dict)
    users: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    """For which attempt each VM was made, or was taken."""

    def tell(self, event: EventRow) -> None:
        assert event.number > self.number, "numbers only grow"
        self.number = event.number
        if event.vm_id is not None:
            self._of_vm(event, event.vm_id)
        elif event.task_id is not None:
            self._of_task(event, event.task_id)

    def _of_vm(self, event: EventRow, vm_id: str) -> None:
        state = VmState(event.data["state"])
        if event.task_id is not None:
            attempt = event.task_id, event.attempt
            assert self.users.setdefault(vm_id, attempt) == attempt, "it is for one attempt, once and for all"
        else:
            assert vm_id not in self.users
        match event.kind:
            case "vm.requested":
                assert vm_id not in self.vms
                self.vms[vm_id] = state
            case "vm.moved":
                assert state in VM_MOVES[self.vms[vm_id]], (self.vms[vm_id], state)
                self.vms[vm_id] = state

    def _of_task(self, event: EventRow, task_id: str) -> None:
        match event.kind:
            case "task.submitted":
                assert task_id not in self.states
                self.states[task_id] = self.began[task_id]
            case "task.released" | "task.requeued":
                self._go(task_id, TaskState.QUEUED)
            case "task.claimed":
                self._go(task_id, TaskState.RUNNING)
                self.leases[task_id] = self._lease(event, task_id)
            case "task.adopted":
                before, after = self.leases[task_id], self._lease(event, task_id)
                assert after.attempt == before.attempt
                self.leases[task_id] = after
            case "task.finished":
                self._go(task_id, TaskState.FINISHED)
            case "task.failed":
                self._go(task_id, TaskState.FAILED)
            case "task.canceled":
                self._go(task_id, TaskState.CANCELED)
            case "task.stage" | "task.let_go":
                assert self.leases[task_id] == self._lease(event, task_id), "it is told of who holds the task"

    def _go(self, task_id: str, state: TaskState) -> None:
        assert state in LEGAL_MOVES[self.states[task_id]], (self.states[task_id], state)
        self.states[task_id] = state
        if state not in HELD:
            self.leases.pop(task_id, None)

    def _lease(self, event: EventRow, task_id: str) -> Lease:
        assert event.attempt is not None and event.runner_id is not None
        return Lease(task_id, event.attempt, event.runner_id)
