"""What runners, frontends, operators and upkeep do: each done to the store and to its model, answers compared."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar, assert_never

import pytest

from orchestrator.decide import retry
from orchestrator.decide.reap import (
    Adopt,
    Close,
    Conclude,
    Decision,
    Destroy,
    DestroyOrphan,
    Expire,
    Facts,
    HeldTask,
    OpenVm,
    SeenVm,
    reap,
)
from orchestrator.domain.errors import InvalidTask, NotPossible
from orchestrator.domain.outcome import Exited, Reason, Verdict
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import LEGAL_MOVES, Delivery, Entrypoint, Packages, Stage, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import BUILDERS, Finished, Lease, Requeued, StageEntered, Store, VmCount, VmMoved, VmRequest
from tests.conformance.life_model import HELD, Layer, Model, Story, Task, Vm

T0 = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_SECONDS = 30.0
QUEUE, ATTEMPT = timedelta(seconds=400), timedelta(seconds=200)
POOLS = {"a": 3, "b": 4}
FRONTENDS = ("x", "y")
IN_VAIN = (TaskState.FAILED, TaskState.CANCELED)
GOOD = Verdict(TaskState.FINISHED, None, "exited with 0", 0)
WORKING = (Stage.PROVISIONING, Stage.EXECUTING, Stage.STAGING_OUT, Stage.DESTROYING)
SPARE_STATES = (VmState.REQUESTED, VmState.BOOTING, VmState.READY)
T = TypeVar("T")
Ask: TypeAlias = tuple[Coroutine[Any, Any, T], Callable[[T], None]]
"""A question to the store, and what compares its answer with the model's and then moves the model."""


@dataclass(frozen=True)
class Draft:
    """What a frontend is about to submit. later: seconds until it may start. room: how many may wait in the pool. on:
    which task it waits for, as in `Life.a_task`. packages: whether it brings some."""

    pool: str
    frontend: str
    priority: int
    later: int | None
    key: str | None
    hold: bool
    delivery: Delivery
    room: int | None
    on: int | None
    packages: bool


class Life:
    def __init__(self, database: Callable[[], Coroutine[Any, Any, Store]]) -> None:
        self.loop = asyncio.Runner()
        self.store: Store = self.run(database())
        self.now = T0
        self.model = Model(POOLS)
        self.story = Story()
        self.looked: datetime | None = None
        """When upkeep let tasks in; None: since then something was done that it looks for only now and then."""
        self.leases: list[Lease] = []
        """All that were ever given."""
        self.clouds = 0
        self.machines: dict[int, SeenVm] = {}
        self.suspects: frozenset[str] = frozenset()
        register = self.store.runners.register
        self.runners = [
            self.run(register(name=f"runner-{n}", host="h", pid=n, pools=list(POOLS), now=T0)).id for n in range(2)
        ]

    def a_moment_later(self) -> None:
        """New ids sort by their millisecond, and by chance within it: a life is the same each time it is lived."""
        self.now += timedelta(milliseconds=1)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    def close(self) -> None:
        self.run(self.store.close())
        self.loop.close()

    def one(self, ask: Ask[T]) -> T:
        work, see = ask
        answer = self.run(work)
        see(answer)
        return answer

    def together(self, asks: Sequence[Ask[Any]]) -> None:
        """All of them at the same time. They must not concern the same task."""

        async def all_asked() -> list[Any]:
            return await asyncio.gather(*(work for work, _ in asks))

        for (_, see), answer in zip(asks, self.run(all_asked()), strict=True):
            see(answer)

    # which of them: three of four are of those that can still do something, the latest first

    def a_lease(self, which: int) -> Lease:
        valid = [lease for lease in self.leases if self.model.holds(lease) is not None]
        return _chosen(valid, self.leases[-12:], which)

    def a_task(self, which: int) -> str:
        going = [task.id for task in self.model.tasks.values() if not task.state.over]
        return _chosen(going, list(self.model.tasks), which)

    def a_vm(self, which: int) -> str:
        there = [vm.id for vm in self.model.vms.values() if vm.state is not VmState.DESTROYED]
        return _chosen(there, list(self.model.vms), which)

    # what frontends do

    def submitted(self, draft: Draft) -> str | None:
        """None: it is refused, or there already."""
        self.a_moment_later()
        on = None if draft.on is None or not self.model.tasks else self.a_task(draft.on)
        pool, frontend, key, room, hold = draft.pool, draft.frontend, draft.key, draft.room, draft.hold
        terms = Terms(
            priority=draft.priority,
            not_before=None if draft.later is None else self.now + timedelta(seconds=draft.later),
            depends_on=() if on is None else (on,),
            delivery=draft.delivery,
        )
        packages = Packages("numpy") if draft.packages else Packages()
        spec, deadline = TaskSpec(pool, ("x",), packages=packages, terms=terms), self.now + QUEUE
        work = self.store.tasks.submit(
            spec,
            now=self.now,
            deadline_at=deadline,
            frontend=frontend,
            idempotency_key=key,
            hold=hold,
            max_waiting=room,
        )
        same = None if key is None else self.model.keys.get((frontend, key))
        if same is not None:
            if self.model.tasks[same].spec == spec:
                assert self.run(work).id == same
            else:
                self.refused(work, NotPossible, "idempotency_key")
            return None
        waiting = sum(task.state is TaskState.QUEUED and task.spec.pool == pool for task in self.model.tasks.values())
        if room is not None and waiting >= room:
            self.refused(work, NotPossible, "pool")
            return None
        other = None if on is None else self.model.tasks[on]
        if other is not None and other.frontend != frontend:
            self.refused(work, InvalidTask, "depends_on")
            return None
        if other is not None and other.state in (TaskState.FAILED, TaskState.CANCELED):
            self.refused(work, InvalidTask, "depends_on")
            return None
        row = self.run(work)
        state = TaskState.NEW if hold else TaskState.QUEUED
        task = Task(row.id, spec, frontend, state, deadline, terms.not_before, set(terms.depends_on))
        self.model.tasks[row.id] = task
        self.story.began[row.id] = state
        if key is not None:
            self.model.keys[frontend, key] = row.id
        task.admitted = row.admitted_at is not None
        assert task.admitted == (not hold and self.model.may_be_admitted(task, self.now))
        return row.id

    def refused(self, work: Coroutine[Any, Any, object], error: type[Exception], field: str) -> None:
        with pytest.raises(error) as told:
            self.run(work)
        assert told.value.field == field  # type: ignore[attr-defined]

    def depend(self, task: str, on: str) -> None:
        mine, other = self.model.tasks[task], self.model.tasks[on]
        work = self.store.tasks.depend(task, [on], now=self.now)
        over = other.state in (TaskState.FAILED, TaskState.CANCELED)
        if mine.state is not TaskState.NEW:
            with pytest.raises(NotPossible):
                self.run(work)
        elif other.frontend != mine.frontend or over or self.model.would_cycle(mine, [on]):
            self.refused(work, InvalidTask, "depends_on")
        else:
            self.run(work)
            mine.depends_on.add(on)

    def release(self, task: str) -> None:
        did = self.run(self.store.tasks.release(task, now=self.now))
        assert did == (self.model.tasks[task].state is TaskState.NEW)
        if did:
            self.model.tasks[task].go(TaskState.QUEUED)
            self.model.tasks[task].admitted = self.model.may_be_admitted(self.model.tasks[task], self.now)
            if self.model.hopeless(self.model.tasks[task]):
                self.looked = None

    def reject(self, task: str) -> None:
        """A runner finds that it can never run."""
        mine = self.model.tasks[task]
        waits = mine.state is TaskState.QUEUED
        assert self.run(self.store.tasks.reject(task, Reason.INTERNAL, "no", now=self.now)) == waits
        if waits:
            mine.go(TaskState.FAILED)

    def cancel(self, task: str) -> None:
        mine = self.model.tasks[task]
        self.cancel_in_model(mine)
        row = self.run(self.store.tasks.request_cancel(task, now=self.now))
        assert row.state is mine.state

    def cancel_in_model(self, task: Task) -> None:
        if task.state.over:
            return
        task.cancel = True
        if task.state not in HELD:
            task.go(TaskState.CANCELED)

    # what operators do

    def pause(self, pool: str) -> None:
        self.run(self.store.queues.pause(pool, "new image", now=self.now))
        self.model.paused.add(pool)

    def resume(self, pool: str) -> None:
        self.run(self.store.queues.resume(pool, now=self.now))
        self.model.paused.discard(pool)

    def delete(self, pool: str) -> None:
        inside = [task for task in self.model.tasks.values() if task.spec.pool == pool and not task.state.over]
        wanted = [task for task in inside if not task.cancel]
        assert self.run(self.store.queues.delete(pool, now=self.now)) == len(wanted)
        for task in inside:
            self.cancel_in_model(task)

    # what becomes of packages

    def order(self, key: str, pool: str, some: int) -> None:
        """For the newest so many tasks, whether they want a layer or not."""
        self.a_moment_later()
        named = list(self.model.tasks)[-some:]
        mine = [task for task in self.model.pending(None) if task.id in named]
        spec, deadline = TaskSpec(pool, (), entrypoint=Entrypoint.LAYER), self.now + QUEUE
        row = self.run(self.store.layers.order(key, "v1", spec, for_tasks=named, now=self.now, deadline_at=deadline))
        layer = self.model.layers.get(key)
        if layer is None or (not layer.ready and self.model.tasks[layer.builder].state in IN_VAIN):
            assert row.task_id not in self.model.tasks and row.ready_at is None
            builder = Task(row.task_id, spec, BUILDERS, TaskState.QUEUED, deadline, None, set(), admitted=True)
            self.model.tasks[builder.id] = builder
            self.story.began[builder.id] = TaskState.QUEUED
            layer = self.model.layers[key] = Layer(builder.id)
        assert (row.task_id, row.ready_at is not None) == (layer.builder, layer.ready)
        for task in mine:
            task.layer = key
            if not layer.ready:
                task.depends_on.add(layer.builder)
            task.admitted = self.model.may_be_admitted(task, self.now)

    def ready(self, key: str) -> None:
        layer = self.model.layers.get(key)
        wants = layer is not None and not layer.ready
        assert self.run(self.store.layers.ready(key, "blob", ["numpy==2"], now=self.now)) == wants
        if layer is not None and wants:
            layer.ready = True
            for task in self.model.pending(key):
                task.admitted = self.model.may_be_admitted(task, self.now)

    def refuse(self, key: str) -> None:
        layer = self.model.layers.get(key)
        built = layer is not None and self.model.tasks[layer.builder].state is TaskState.FINISHED
        mine = self.model.pending(key) if layer is not None and built and not layer.ready else []
        assert set(self.run(self.store.layers.refuse(key, "no", now=self.now))) == {task.id for task in mine}
        if layer is not None and built and not layer.ready:
            del self.model.layers[key]
        for task in mine:
            task.go(TaskState.FAILED)

    def layers_are_as_they_should_be(self) -> None:
        rows = self.run(self.store.layers.list())
        assert {row.key: Layer(row.task_id, row.ready_at is not None) for row in rows} == self.model.layers
        wanted = self.run(self.store.layers.wanted())
        assert [row.id for row in wanted] == sorted(task.id for task in self.model.pending(None))
        finished = {task.id for task in self.model.tasks.values() if task.state is TaskState.FINISHED}
        built = {key for key, layer in self.model.layers.items() if not layer.ready and layer.builder in finished}
        assert {row.key for row in self.run(self.store.layers.built())} == built

    # what time does

    def the_clock_jumps_back(self) -> None:
        self.now -= timedelta(seconds=100)
        self.looked = None
        far = self.now + timedelta(seconds=2 * LEASE_SECONDS)
        late = [task for task in self.model.held() if task.expires is not None and task.expires > far]
        longest = 2 * LEASE_SECONDS
        assert self.run(self.store.tasks.shorten_leases(now=self.now, longest_seconds=longest)) == len(late)
        for task in late:
            task.expires = far

    def admit(self) -> None:
        queued = [task for task in self.model.tasks.values() if task.state is TaskState.QUEUED and not task.admitted]
        lost = [task for task in queued if self.model.hopeless(task)]
        ready = [task for task in queued if task not in lost and self.model.may_be_admitted(task, self.now)]
        moved = self.run(self.store.tasks.admit(now=self.now, since=self.looked))
        self.looked = self.now
        assert set(moved) == {task.id for task in (*lost, *ready)}
        for task in lost:
            task.go(TaskState.FAILED)
        for task in ready:
            task.admitted = True

    def end_what_is_overdue(self) -> None:
        late = {task.id for task in self.model.tasks.values() if not task.state.over and task.deadline <= self.now}
        rows = self.run(self.store.tasks.overdue(now=self.now))
        assert {row.id for row in rows} == late
        for row in rows:
            assert self.run(self.store.tasks.end_overdue(row, "too late", now=self.now))
            assert not self.run(self.store.tasks.end_overdue(row, "too late", now=self.now)), "it is over"
            self.model.tasks[row.id].go(TaskState.CANCELED if row.state is TaskState.NEW else TaskState.FAILED)

    # what runners do

    def claimed(
        self,
        runner: int,
        room: dict[str, int],
        up_to: int,
        only: str | None,
        ready: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[Lease]:
        """ready: VMs that the runner believes to be ready, by pool."""
        deadline = self.now + ATTEMPT
        me = self.runners[runner]
        warm = {pool: self.model.usable(me, pool, ready.get(pool, ())) for pool in POOLS}
        claims = self.run(
            self.store.tasks.claim(
                self.runners[runner],
                room,
                max_vms=POOLS,
                lease_seconds=LEASE_SECONDS,
                now=self.now,
                up_to=up_to,
                only=only,
                ready=ready,
                deadline=lambda spec: deadline,
            )
        )
        left = {pool: room.get(pool, 0) for pool in POOLS}
        for claim in claims:
            task = self.model.tasks[claim.task.id]
            pool = task.spec.pool
            vm = warm[pool].pop(0) if warm[pool] else None
            assert claim.vm_id == (None if vm is None else vm.id)
            if only is None:
                assert task is self.model.next_in(pool, warm=vm is not None)
            else:
                assert task.id == only and task in self.model.ready(pool, warm=vm is not None)
            assert claim.lease == Lease(task.id, task.attempt + 1, me)
            self.model.claim(task, claim.lease, self.now + timedelta(seconds=LEASE_SECONDS), deadline)
            if vm is None:
                left[pool] -= 1
                assert left[pool] >= 0
            else:
                vm.taken_by(task)
        if len(claims) < up_to:
            able = [pool for pool in POOLS if warm[pool] or left[pool] > 0]
            rest = [task.id for pool in able for task in self.model.ready(pool, warm=bool(warm[pool]))]
            assert rest == [] if only is None else only not in rest
        return self.given([claim.lease for claim in claims])

    def given(self, leases: list[Lease]) -> list[Lease]:
        self.leases += leases
        return leases

    def adopted(self, runner: int, pools: list[str], up_to: int) -> list[Lease]:
        able = self.model.adoptable(self.now, self.runners[runner], pools)
        claims = self.run(
            self.store.tasks.adopt(self.runners[runner], pools, lease_seconds=LEASE_SECONDS, now=self.now, up_to=up_to)
        )
        assert [claim.task.id for claim in claims] == able[:up_to]
        for claim in claims:
            task = self.model.tasks[claim.task.id]
            assert claim.lease == Lease(task.id, task.attempt, self.runners[runner])
            assert claim.task.stage is task.stage
            vm = self.model.vm_of(task)
            assert vm is not None and claim.vm_id == vm.id
            self.model.adopt(task, claim.lease, self.now + timedelta(seconds=LEASE_SECONDS))
        return self.given([claim.lease for claim in claims])

    def worked_on(self, lease: Lease, told: bool, last: Stage) -> None:
        """A runner brings its attempt some way, or tries to."""
        self.enter(lease, Stage.PROVISIONING)
        self.request(lease, told)
        vm = self.model.vm_of(self.model.tasks[lease.task_id])
        if vm is not None and last is not Stage.PROVISIONING:
            self.boot(vm.id, lease.runner_id)
            for stage in WORKING[1 : WORKING.index(last) + 1]:
                self.enter(lease, stage)

    def enter(self, lease: Lease, stage: Stage) -> None:
        self.one(self.entering(lease, stage))

    def entering(self, lease: Lease, stage: Stage) -> Ask[bool]:
        task = self.model.holds(lease)
        moves = task is not None and task.forward(stage)

        def see(did: bool) -> None:
            assert did == moves
            if task is not None and moves:
                task.stage = stage
                task.started |= stage is Stage.EXECUTING

        return self.store.tasks.enter_stage(StageEntered(lease, stage), now=self.now), see

    def beat(self, runner: int, named: Collection[Lease]) -> None:
        """One beat for all leases of a runner; those that it lost are not in the answer."""
        mine = [lease for lease in named if lease.runner_id == self.runners[runner]]
        beats = self.run(self.store.tasks.beat(self.runners[runner], named, lease_seconds=LEASE_SECONDS, now=self.now))
        still = {lease: task for lease in mine if (task := self.model.holds(lease)) is not None}
        assert beats.keys() == still.keys()
        for lease, task in still.items():
            task.expires = self.now + timedelta(seconds=LEASE_SECONDS)
            assert (beats[lease].lease_expires_at, beats[lease].cancel_requested) == (task.expires, task.cancel)
        canceling = {task.lease for task in self.model.held() if task.cancel and task.lease is not None}
        seen = self.run(self.store.tasks.canceling(self.runners[runner]))
        assert seen == {lease for lease in canceling if lease.runner_id == self.runners[runner]}

    def let_go(self, lease: Lease) -> None:
        self.one(self.letting_go(lease))

    def letting_go(self, lease: Lease) -> Ask[bool]:
        task = self.model.holds(lease)
        alive = task is not None and task.expires is not None and task.expires > self.now

        def see(did: bool) -> None:
            assert did == alive
            if task is not None and alive:
                task.expires = self.now

        return self.store.tasks.let_go(lease, now=self.now), see

    def record(self, lease: Lease) -> None:
        task = self.model.holds(lease)
        assert self.run(self.store.attempts.record_outcome(lease, Exited(0))) == (task is not None)
        assert self.run(self.store.attempts.record_verdict(lease, GOOD)) == (task is not None)
        if task is not None:
            task.verdict = GOOD

    def finished(self, finished: Finished, if_expired: bool) -> bool:
        return self.one(self.finishing(finished, if_expired))

    def finishing(self, finished: Finished, if_expired: bool) -> Ask[bool]:
        task = self.may_end(finished.lease, if_expired)
        if task is not None and finished.state not in LEGAL_MOVES[task.state]:
            task = None

        def see(did: bool) -> None:
            assert did == (task is not None)
            if task is not None:
                task.go(finished.state)

        return self.store.tasks.finish(finished, now=self.now, if_expired=if_expired), see

    def requeued(self, lease: Lease, if_expired: bool, not_before: datetime) -> bool:
        return self.one(self.requeueing(lease, if_expired, not_before)) is not None

    def requeueing(self, lease: Lease, if_expired: bool, not_before: datetime) -> Ask[TaskState | None]:
        task = self.may_end(lease, if_expired)
        deadline = self.now + QUEUE
        named = Requeued(lease, Reason.RUNNER_LOST, "again", not_before=not_before, deadline_at=deadline)
        expected = None if task is None else TaskState.CANCELED if task.cancel else TaskState.QUEUED

        def see(went: TaskState | None) -> None:
            assert went is expected
            if task is not None and went is not None:
                task.go(went)
                task.not_before, task.deadline, task.admitted = not_before, deadline, not_before <= self.now

        return self.store.tasks.requeue(named, now=self.now, if_expired=if_expired), see

    def may_end(self, lease: Lease, if_expired: bool) -> Task | None:
        task = self.model.holds(lease)
        late = task is not None and task.expires is not None and task.expires <= self.now
        return task if late or not if_expired else None

    def ended(self, lease: Lease, end: TaskState | None) -> None:
        """A runner comes to the end of its attempt, or tries to: its machine goes, then the task (None: it goes back to
        its queue)."""
        vm = self.model.vm_of(self.model.tasks[lease.task_id])
        if vm is not None and vm.attempt == lease.attempt:
            mine = self.moved(vm.id, VmState.DESTROYING, lease.runner_id)
            if mine and vm.cloud_id is not None:
                self.destroyed(vm.cloud_id)
            if mine:
                self.moved(vm.id, VmState.DESTROYED, lease.runner_id)
        if end is None:
            self.requeued(lease, False, self.now)
        else:
            self.finished(Finished(lease, end), False)

    def all_at_once(self, many: Mapping[str, Lease], verbs: Sequence[str]) -> None:
        """What runners may ask of different tasks (many: by task) at the same time."""
        asks: list[Ask[Any]] = []
        for lease, verb in zip(many.values(), itertools.cycle(verbs)):
            vm = self.model.vm_of(self.model.tasks[lease.task_id])
            match verb:
                case "finish":
                    asks.append(self.finishing(Finished(lease, TaskState.FINISHED), False))
                case "requeue":
                    asks.append(self.requeueing(lease, False, self.now))
                case "enter":
                    asks.append(self.entering(lease, Stage.STAGING_OUT))
                case "let go":
                    asks.append(self.letting_go(lease))
                case "destroy" if vm is not None:
                    asks.append(self.moving(vm.id, VmState.DESTROYING, lease.runner_id))
        self.together(asks)

    def falls_silent(self, runner: int) -> None:
        """A runner beats no more. The other goes on, and its leases alone are alive when this one's have run out."""
        for _ in range(2):
            self.now += timedelta(seconds=LEASE_SECONDS - 10)
            self.beat(1 - runner, self.leases[-12:])

    # what becomes of machines

    def request(self, lease: Lease, told: bool) -> None:
        self.a_moment_later()
        task = self.model.holds(lease)
        wanted = None if task is None or self.model.vm_of(task) is not None else task
        pool = self.model.tasks[lease.task_id].spec.pool
        row = self.run(
            self.store.vms.request(
                VmRequest(pool, "v1", lease.runner_id, self.now + timedelta(seconds=50), lease=lease), now=self.now
            )
        )
        assert (row is None) == (wanted is None)
        if row is not None:
            self.model.vms[row.id] = Vm(row.id, pool, lease.runner_id, lease.task_id, lease.attempt)
            self.make(row.id, told)

    def spare(self, runner: int, pool: str, told: bool, last: VmState) -> None:
        """A runner has one made before anybody asks, and brings it some way."""
        self.a_moment_later()
        me, full = self.runners[runner], self.model.taken(pool) >= self.model.max_vms[pool]
        wanted = VmRequest(pool, "v1", me, self.now + timedelta(seconds=50))
        row = self.run(self.store.vms.request(wanted, now=self.now, max_vms=self.model.max_vms[pool]))
        assert (row is None) == full
        if row is not None:
            self.model.vms[row.id] = Vm(row.id, pool, me)
            self.make(row.id, told)
            for state in SPARE_STATES[1 : SPARE_STATES.index(last) + 1]:
                self.moved(row.id, state, me)

    def ended_spare(self, vm: str, runner_id: str | None) -> None:
        """One that waits too long, say; if it was taken, nothing becomes of it."""
        if self.moved(vm, VmState.DESTROYING, runner_id, if_spare=True):
            cloud_id = self.model.vms[vm].cloud_id
            if cloud_id is not None:
                self.destroyed(cloud_id)
            self.moved(vm, VmState.DESTROYED, runner_id, if_spare=True)

    def make(self, vm: str, told: bool) -> None:
        """OpenNebula makes the machine; its answer may be lost."""
        mine = self.model.vms[vm]
        if mine.cloud_id is not None or mine.state is not VmState.REQUESTED:
            return
        self.clouds += 1
        self.machines[self.clouds] = SeenVm(self.clouds, vm, False)
        if told:
            self.known(vm, self.clouds)

    def known(self, vm: str, cloud_id: int) -> bool:
        mine = self.model.vms[vm]
        may = mine.state is not VmState.DESTROYED and mine.cloud_id in (None, cloud_id)
        assert self.run(self.store.vms.set_cloud_id(vm, cloud_id, now=self.now)) == may
        if may:
            mine.cloud_id = cloud_id
        return may

    def boot(self, vm: str, runner_id: str) -> None:
        """All the way to IN_USE, or as far as this runner may bring it."""
        for state in (VmState.BOOTING, VmState.READY, VmState.IN_USE):
            self.moved(vm, state, runner_id)

    def moved(self, vm: str, state: VmState, runner_id: str | None, *, if_spare: bool = False) -> bool:
        return self.one(self.moving(vm, state, runner_id, if_spare=if_spare))

    def moving(self, vm: str, state: VmState, runner_id: str | None, *, if_spare: bool = False) -> Ask[bool]:
        mine = self.model.vms[vm]
        may = mine.may(state, runner_id, if_spare=if_spare)
        gone = state is VmState.DESTROYED
        named = VmMoved(
            vm,
            state,
            runner_id,
            deadline_at=None if gone else self.now + timedelta(seconds=100),
            close_proof="seen" if gone else None,
            if_spare=if_spare,
        )

        def see(did: bool) -> None:
            assert did == may
            if may:
                mine.state = state

        return self.store.vms.move(named, now=self.now), see

    # what upkeep does

    def upkeep(self, stubborn: bool, lost: Collection[str] = ()) -> None:
        """A round of reaping, carried out. What was carried out is not asked for again. lost: runners that are."""
        decided = reap(self.facts(lost), self.suspects, self.now)
        self.suspects = decided.suspects
        tried: list[Decision] = []
        for plan in decided.plans:
            for step in plan:
                tried.append(step)
                if not self.carried_out(step, stubborn):
                    break
        again = reap(self.facts(lost), decided.suspects, self.now)
        repeated = [step for step in again.decisions if step in tried]
        # a machine that will not end is asked again in every round, once it is late
        assert [step for step in repeated if not (stubborn and isinstance(step, Destroy))] == []

    def facts(self, lost: Collection[str]) -> Facts:
        """As upkeep loads them."""
        vms = self.run(self.store.vms.open())
        held = []
        for row in self.run(self.store.tasks.list(states=HELD, limit=1000)):
            assert row.lease is not None and row.lease_expires_at is not None and row.deadline_at is not None
            attempt = self.run(self.store.attempts.get(row.id, row.attempt))
            assert attempt is not None
            held.append(
                HeldTask(
                    row.id,
                    row.attempt,
                    row.lease.runner_id,
                    row.lease_expires_at,
                    row.deadline_at,
                    row.stage,
                    Stage.EXECUTING in attempt.timings,
                    row.cancel_requested_at is not None,
                    attempt.verdict,
                )
            )
        rows = [
            OpenVm(vm.id, vm.cloud_id, vm.state, vm.deadline_at or T0, vm.task_id, vm.attempt, vm.runner_id)
            for vm in vms
        ]
        return Facts(held, rows, list(self.machines.values()), alive=set(self.runners) - set(lost))

    def carried_out(self, step: Decision, stubborn: bool) -> bool:
        match step:
            case Expire(task, failure):
                lease = Lease(task.task_id, task.attempt, task.runner_id)
                spec = self.model.tasks[task.task_id].spec
                answer = retry.after(
                    failure, terms=spec.terms, pool=Pool(spec.pool, "image"), attempt=task.attempt, rand=0.5
                )
                if isinstance(answer, retry.GiveUp):
                    return self.finished(Finished.by(lease, answer.verdict), if_expired=True)
                assert not (task.started and spec.terms.delivery is Delivery.AT_MOST_ONCE), "a second process"
                return self.requeued(lease, True, self.now + timedelta(seconds=answer.after_seconds))
            case Conclude(task, verdict):
                lease = Lease(task.task_id, task.attempt, task.runner_id)
                return self.finished(Finished.by(lease, verdict), if_expired=True)
            case Adopt(vm_id, cloud_id):
                return self.known(vm_id, cloud_id)
            case Destroy(vm_id, cloud_id, _, spare):
                self.unheld(vm_id)
                self.moved(vm_id, VmState.DESTROYING, None, if_spare=spare)
                return not stubborn and self.destroyed(cloud_id) and self.moved(vm_id, VmState.DESTROYED, None)
            case DestroyOrphan(cloud_id):
                self.unheld(self.machines[cloud_id].vm_id)
                return self.destroyed(cloud_id)
            case Close(vm_id, _, _, spare):
                self.moved(vm_id, VmState.DESTROYING, None, if_spare=spare)
                return self.moved(vm_id, VmState.DESTROYED, None, if_spare=spare)
            case _:
                assert_never(step)

    def destroyed(self, cloud_id: int) -> bool:
        seen = self.machines[cloud_id]
        self.machines[cloud_id] = SeenVm(cloud_id, seen.vm_id, True)
        return True

    def unheld(self, vm_id: str) -> None:
        """No lease that is alive holds this machine."""
        vm = self.model.vms[vm_id]
        if vm.state is VmState.DESTROYED or vm.task_id is None:
            return
        task = self.model.tasks[vm.task_id]
        if task.state in HELD and task.attempt == vm.attempt:
            assert task.expires is not None and task.expires <= self.now

    # what holds at any time

    def rows_are_as_they_should_be(self) -> None:
        rows = self.run(self.store.tasks.list(limit=1000))
        for row in rows:
            task = self.model.tasks[row.id]
            if row.state is TaskState.QUEUED:
                assert (row.admitted_at is not None) == task.admitted
        assert {row.id: (row.state, row.attempt, row.lease, row.stage, row.lease_expires_at) for row in rows} == {
            task.id: (task.state, task.attempt, task.lease, task.stage, task.expires)
            for task in self.model.tasks.values()
        }
        for row in rows:
            task = self.model.tasks[row.id]
            assert (row.cancel_requested_at is not None) == task.cancel
            assert row.layer == task.layer
            if not row.state.over:
                assert row.deadline_at == task.deadline, "no wait is without an end"
        expired = {row.id for row in self.run(self.store.tasks.expired(now=self.now))}
        assert expired == self.model.expired(self.now)

    def machines_are_as_they_should_be(self) -> None:
        rows = self.run(self.store.vms.list(limit=1000))
        assert {row.id: (row.state, row.cloud_id, row.runner_id, row.task_id, row.attempt) for row in rows} == {
            vm.id: (vm.state, vm.cloud_id, vm.runner_id, vm.task_id, vm.attempt) for vm in self.model.vms.values()
        }
        open_ones = [vm for vm in self.model.vms.values() if vm.state is not VmState.DESTROYED]
        counted = Counter((vm.pool, vm.runner_id, vm.state, vm.spare) for vm in open_ones)
        told = {(each.pool, each.runner_id, each.state, each.spare): each.count for each in self.counts()}
        assert told == dict(counted)
        for row in rows:
            assert (row.deadline_at is None) == (row.state is VmState.DESTROYED), "no wait is without an end"

    def counts(self) -> tuple[VmCount, ...]:
        return self.run(self.store.vms.counts())

    def there_is_never_more_than_the_pool_may_have(self) -> None:
        for pool, most in POOLS.items():
            assert self.model.taken(pool) <= most

    def the_event_log_tells_the_same_story(self) -> None:
        for event in self.run(self.store.events.list(after=self.story.number, limit=10_000)):
            self.story.tell(event)
        tasks = self.model.tasks.values()
        assert self.story.states == {task.id: task.state for task in tasks}
        assert self.story.leases == {task.id: task.lease for task in tasks if task.lease is not None}
        assert self.story.vms == {vm.id: vm.state for vm in self.model.vms.values()}
        users = {vm.id: (vm.task_id, vm.attempt) for vm in self.model.vms.values() if not vm.spare}
        assert self.story.users == users

    def all_holds(self) -> None:
        self.rows_are_as_they_should_be()
        self.machines_are_as_they_should_be()
        self.layers_are_as_they_should_be()
        self.there_is_never_more_than_the_pool_may_have()
        self.the_event_log_tells_the_same_story()


def _chosen(good: Sequence[T], rest: Sequence[T], which: int) -> T:
    some = rest if which % 4 == 3 or not good else good
    return some[-1 - (which // 4 + which % 4) % len(some)]
