"""Whatever runners, frontends, operators and upkeep do, in whatever order and however late: the store does what a plain
model of it does, and its event log tells the same story."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, assert_never

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

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
from orchestrator.domain.task import LEGAL_MOVES, Delivery, Stage, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import Finished, Lease, Requeued, StageEntered, Store, VmMoved, VmRequest
from tests.conformance.life_model import HELD, Model, Story, Task, Vm

T0 = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_SECONDS = 30.0
QUEUE, ATTEMPT = timedelta(seconds=400), timedelta(seconds=200)
POOLS = {"a": 2, "b": 3}
FRONTENDS = ("x", "y")
GOOD = Verdict(TaskState.FINISHED, None, "exited with 0", 0)
T = TypeVar("T")

pools = st.sampled_from(sorted(POOLS))
frontends = st.sampled_from(FRONTENDS)
runners = st.integers(0, 1)
ASKED = ("release", "depend", "cancel")
WORKED = ("enter", "beat", "let go", "let go", "record")
rooms = st.just(dict.fromkeys(POOLS, 2)) | st.dictionaries(pools, st.integers(0, 2))
WORKING = (Stage.PROVISIONING, Stage.EXECUTING, Stage.STAGING_OUT, Stage.DESTROYING)


@dataclass(frozen=True)
class Draft:
    """What a frontend is about to submit. later: seconds until it may start. room: how many may wait in the pool."""

    pool: str
    frontend: str
    priority: int
    later: int | None
    key: str | None
    hold: bool
    delivery: Delivery
    room: int | None


drafts = st.builds(
    Draft,
    pool=pools,
    frontend=frontends,
    priority=st.sampled_from([0, 0, 0, 5]),
    later=st.sampled_from([None, None, None, -1, 20, 60]),
    key=st.sampled_from([None, None, None, "k"]),
    hold=st.sampled_from([False, False, False, False, True]),
    delivery=st.sampled_from(Delivery),
    room=st.sampled_from([None, None, 3]),
)


class LifeCycles(RuleBasedStateMachine):
    tasks = Bundle("tasks")
    leases = Bundle("leases")
    vms = Bundle("vms")

    def __init__(self, database: Callable[[], Coroutine[Any, Any, Store]]) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.store: Store = self.run(database())
        self.now = T0
        self.model = Model(POOLS)
        self.story = Story()
        self.clouds = 0
        self.machines: dict[int, SeenVm] = {}
        self.suspects: frozenset[str] = frozenset()
        register = self.store.runners.register
        self.runners = [
            self.run(register(name=f"runner-{n}", host="h", pid=n, pools=list(POOLS), now=T0)).id for n in range(2)
        ]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()

    # what frontends do

    @initialize(target=tasks, drafts=st.lists(drafts, min_size=4, max_size=8))
    def begin(self, drafts: list[Draft]) -> Any:
        return self.submit(drafts, None)

    @rule(target=tasks, drafts=st.lists(drafts, min_size=1, max_size=3), on=st.none() | st.none() | tasks)
    def submit(self, drafts: list[Draft], on: str | None) -> Any:
        made = [self.submitted(draft, on) for draft in drafts]
        return multiple(*(task for task in made if task is not None))

    def submitted(self, draft: Draft, on: str | None) -> str | None:
        pool, frontend, key, room, hold = draft.pool, draft.frontend, draft.key, draft.room, draft.hold
        terms = Terms(
            priority=draft.priority,
            not_before=None if draft.later is None else self.now + timedelta(seconds=draft.later),
            depends_on=() if on is None else (on,),
            delivery=draft.delivery,
        )
        spec, deadline = TaskSpec(pool, ("x",), terms=terms), self.now + QUEUE
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

    @rule(task=tasks, other=tasks, verb=st.sampled_from(ASKED))
    def ask(self, task: str, other: str, verb: str) -> None:
        match verb:
            case "release":
                self.release(task)
            case "depend":
                self.depend(task, other)
            case "cancel":
                self.cancel(task)

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

    @rule(pool=pools, verb=st.sampled_from(["resume", "resume", "resume", "pause", "delete"]))
    def operate(self, pool: str, verb: str) -> None:
        match verb:
            case "pause":
                self.pause(pool)
            case "resume":
                self.resume(pool)
            case "delete":
                self.delete(pool)

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

    # what time does

    @rule(seconds=st.sampled_from([1, 20, 40, 40]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(verb=st.sampled_from(["admit", "admit", "overdue", "jump"]))
    def time_is_heeded(self, verb: str) -> None:
        match verb:
            case "admit":
                self.admit()
            case "overdue":
                self.end_what_is_overdue()
            case "jump":
                self.the_clock_jumps_back()

    def the_clock_jumps_back(self) -> None:
        self.now -= timedelta(seconds=100)
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
        self.run(self.store.tasks.admit(now=self.now))
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

    @rule(target=leases, runner=runners, room=rooms, up_to=st.integers(1, 3))
    def claim(self, runner: int, room: dict[str, int], up_to: int) -> Any:
        """Pools are drawn from as the store likes; each of them gives its tasks in the order that is agreed."""
        return multiple(*self.claimed(runner, room, up_to, None))

    @rule(target=leases, runner=runners, task=tasks)
    def claim_only(self, runner: int, task: str) -> Any:
        return multiple(*self.claimed(runner, dict.fromkeys(POOLS, 1), 1, task))

    def claimed(self, runner: int, room: dict[str, int], up_to: int, only: str | None) -> list[Lease]:
        deadline = self.now + ATTEMPT
        claims = self.run(
            self.store.tasks.claim(
                self.runners[runner],
                room,
                max_vms=POOLS,
                lease_seconds=LEASE_SECONDS,
                now=self.now,
                up_to=up_to,
                only=only,
                deadline=lambda spec: deadline,
            )
        )
        left = dict(room)
        for claim in claims:
            task = self.model.tasks[claim.task.id]
            pool = task.spec.pool
            assert left[pool] > 0
            if only is None:
                assert task is self.model.next_in(pool)
            else:
                assert task.id == only and task in self.model.ready(pool)
            left[pool] -= 1
            assert claim.lease == Lease(task.id, task.attempt + 1, self.runners[runner])
            self.model.claim(task, claim.lease, self.now + timedelta(seconds=LEASE_SECONDS), deadline)
        if len(claims) < up_to:
            rest = [task.id for pool, count in left.items() if count > 0 for task in self.model.ready(pool)]
            assert rest == [] if only is None else only not in rest
        return [claim.lease for claim in claims]

    @rule(target=leases, runner=runners, pools=st.lists(pools, unique=True), up_to=st.integers(1, 2))
    def adopt(self, runner: int, pools: list[str], up_to: int) -> Any:
        return multiple(*self.adopted(runner, pools, up_to))

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
            self.model.adopt(task, claim.lease, self.now + timedelta(seconds=LEASE_SECONDS))
        return [claim.lease for claim in claims]

    @rule(
        lease=leases,
        verb=st.sampled_from(WORKED),
        stage=st.sampled_from(WORKING),
    )
    def work(self, lease: Lease, verb: str, stage: Stage) -> None:
        match verb:
            case "enter":
                self.enter(lease, stage)
            case "beat":
                self.heartbeat(lease)
            case "let go":
                self.let_go(lease)
            case "record":
                self.record(lease)

    @rule(target=vms, lease=leases, told=st.sampled_from([True, True, True, False]), last=st.sampled_from(WORKING))
    def work_on(self, lease: Lease, told: bool, last: Stage) -> Any:
        vm = self.worked_on(lease, told, last)
        return multiple() if vm is None else vm

    def worked_on(self, lease: Lease, told: bool, last: Stage) -> str | None:
        """A runner brings its attempt some way, or tries to."""
        self.enter(lease, Stage.PROVISIONING)
        vm = self.request(lease)
        if vm is None:
            return None
        self.make(vm, told)
        if last is not Stage.PROVISIONING:
            self.boot(vm)
            for stage in WORKING[1 : WORKING.index(last) + 1]:
                self.enter(lease, stage)
        return vm

    def enter(self, lease: Lease, stage: Stage) -> None:
        task = self.model.holds(lease)
        moves = task is not None and task.forward(stage)
        assert self.run(self.store.tasks.enter_stage(StageEntered(lease, stage), now=self.now)) == moves
        if task is not None and moves:
            task.stage = stage
            task.started |= stage is Stage.EXECUTING

    def heartbeat(self, lease: Lease) -> None:
        task = self.model.holds(lease)
        beat = self.run(self.store.tasks.heartbeat(lease, lease_seconds=LEASE_SECONDS, now=self.now))
        assert (beat is None) == (task is None)
        if beat is not None and task is not None:
            assert beat.cancel_requested == task.cancel
            task.expires = self.now + timedelta(seconds=LEASE_SECONDS)

    @rule(runner=runners, named=st.sets(leases, max_size=4))
    def beat(self, runner: int, named: set[Lease]) -> None:
        """One beat for all leases of a runner; those that it lost are not in the answer."""
        mine = [lease for lease in named if lease.runner_id == self.runners[runner]]
        beats = self.run(self.store.tasks.beat(self.runners[runner], mine, lease_seconds=LEASE_SECONDS, now=self.now))
        still = {lease: task for lease in mine if (task := self.model.holds(lease)) is not None}
        assert beats.keys() == still.keys()
        for lease, task in still.items():
            assert beats[lease].cancel_requested == task.cancel
            task.expires = self.now + timedelta(seconds=LEASE_SECONDS)

    def let_go(self, lease: Lease) -> None:
        task = self.model.holds(lease)
        alive = task is not None and task.expires is not None and task.expires > self.now
        assert self.run(self.store.tasks.let_go(lease, now=self.now)) == alive
        if task is not None and alive:
            task.expires = self.now

    def record(self, lease: Lease) -> None:
        task = self.model.holds(lease)
        assert self.run(self.store.attempts.record_outcome(lease, Exited(0))) == (task is not None)
        assert self.run(self.store.attempts.record_verdict(lease, GOOD)) == (task is not None)
        if task is not None:
            task.verdict = GOOD

    @rule(lease=leases, state=st.sampled_from(TaskState).filter(lambda state: state.over), if_expired=st.booleans())
    def finish(self, lease: Lease, state: TaskState, if_expired: bool) -> None:
        self.finished(Finished(lease, state), if_expired)

    def finished(self, finished: Finished, if_expired: bool) -> bool:
        task = self.may_end(finished.lease, if_expired)
        if task is not None and finished.state not in LEGAL_MOVES[task.state]:
            task = None
        did = self.run(self.store.tasks.finish(finished, now=self.now, if_expired=if_expired))
        assert did == (task is not None)
        if task is not None:
            task.go(finished.state)
        return did

    @rule(lease=leases, if_expired=st.booleans(), later=st.sampled_from([0, 30]))
    def requeue(self, lease: Lease, if_expired: bool, later: int) -> None:
        self.requeued(lease, if_expired, self.now + timedelta(seconds=later))

    def requeued(self, lease: Lease, if_expired: bool, not_before: datetime) -> bool:
        task = self.may_end(lease, if_expired)
        deadline = self.now + QUEUE
        named = Requeued(lease, Reason.RUNNER_LOST, "again", not_before=not_before, deadline_at=deadline)
        went = self.run(self.store.tasks.requeue(named, now=self.now, if_expired=if_expired))
        expected = None if task is None else TaskState.CANCELED if task.cancel else TaskState.QUEUED
        assert went is expected
        if task is not None and went is not None:
            task.go(went)
            task.not_before, task.deadline, task.admitted = not_before, deadline, not_before <= self.now
        return went is not None

    def may_end(self, lease: Lease, if_expired: bool) -> Task | None:
        task = self.model.holds(lease)
        late = task is not None and task.expires is not None and task.expires <= self.now
        return task if late or not if_expired else None

    # what becomes of machines

    def request(self, lease: Lease) -> str | None:
        task = self.model.holds(lease)
        wanted = None if task is None or self.model.vm_of(task) is not None else task
        pool = self.model.tasks[lease.task_id].spec.pool
        row = self.run(
            self.store.vms.request(
                VmRequest(pool, "v1", lease.runner_id, self.now + timedelta(seconds=50), lease=lease), now=self.now
            )
        )
        assert (row is None) == (wanted is None)
        if row is None:
            return None
        self.model.vms[row.id] = Vm(row.id, lease.task_id, lease.attempt, lease.runner_id)
        return row.id

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

    @rule(vm=vms, state=st.sampled_from(list(VmState)), writer=st.sampled_from([0, 1, None]))
    def move(self, vm: str, state: VmState, writer: int | None) -> None:
        self.moved(vm, state, None if writer is None else self.runners[writer])

    def boot(self, vm: str) -> None:
        """All the way to IN_USE, by its own runner."""
        for state in (VmState.BOOTING, VmState.READY, VmState.IN_USE):
            self.moved(vm, state, self.model.vms[vm].runner_id)

    def moved(self, vm: str, state: VmState, runner_id: str | None) -> bool:
        mine = self.model.vms[vm]
        may = mine.may(state, runner_id)
        gone = state is VmState.DESTROYED
        named = VmMoved(
            vm,
            state,
            runner_id,
            deadline_at=None if gone else self.now + timedelta(seconds=100),
            close_proof="seen" if gone else None,
        )
        assert self.run(self.store.vms.move(named, now=self.now)) == may
        if may:
            mine.state = state
        return may

    # what upkeep does

    @rule(stubborn=st.booleans())
    def upkeep(self, stubborn: bool) -> None:
        """A round of reaping, carried out. What was carried out is not asked for again."""
        decided = reap(self.facts(), self.suspects, self.now)
        self.suspects = decided.suspects
        for plan in decided.plans:
            for step in plan:
                if not self.carried_out(step, stubborn):
                    break
        again = reap(self.facts(), decided.suspects, self.now)
        repeated = [step for step in again.decisions if step in decided.decisions]
        # a machine that will not end is asked again in every round, once it is late
        assert [step for step in repeated if not (stubborn and isinstance(step, Destroy))] == []

    def facts(self) -> Facts:
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
        rows = [OpenVm(vm.id, vm.cloud_id, vm.state, vm.deadline_at or T0, vm.task_id, vm.attempt) for vm in vms]
        return Facts(held, rows, list(self.machines.values()))

    def carried_out(self, step: Decision, stubborn: bool) -> bool:
        match step:
            case Expire(task, failure):
                lease = Lease(task.task_id, task.attempt, task.runner_id)
                spec = self.model.tasks[task.task_id].spec
                answer = retry.after(
                    failure, terms=spec.terms, pool=Pool(spec.pool, "image"), attempt=task.attempt, rand=random.random()
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
            case Destroy(vm_id, cloud_id):
                self.unheld(vm_id)
                self.moved(vm_id, VmState.DESTROYING, None)
                return not stubborn and self.ended(cloud_id) and self.moved(vm_id, VmState.DESTROYED, None)
            case DestroyOrphan(cloud_id):
                self.unheld(self.machines[cloud_id].vm_id)
                return self.ended(cloud_id)
            case Close(vm_id):
                self.moved(vm_id, VmState.DESTROYING, None)
                return self.moved(vm_id, VmState.DESTROYED, None)
            case _:
                assert_never(step)

    def ended(self, cloud_id: int) -> bool:
        seen = self.machines[cloud_id]
        self.machines[cloud_id] = SeenVm(cloud_id, seen.vm_id, True)
        return True

    def unheld(self, vm_id: str) -> None:
        """No lease that is alive holds this machine."""
        vm = self.model.vms[vm_id]
        if vm.state is VmState.DESTROYED:
            return
        task = self.model.tasks[vm.task_id]
        if task.state in HELD and task.attempt == vm.attempt:
            assert task.expires is not None and task.expires <= self.now

    # a long life, in which more comes together than in the short ones that Hypothesis tries

    def live(self, chance: random.Random, steps: int) -> None:
        """So many steps, each drawn by chance; recent leases and machines more often than old ones."""
        leases: list[Lease] = []
        vms: list[str] = []
        for step in range(steps):
            leases = leases[-12:]
            lease = leases[-1 - min(int(chance.expovariate(0.3)), len(leases) - 1)] if leases else None
            task = chance.choice(list(self.model.tasks)) if self.model.tasks else None
            stage, runner, up_to = chance.choice(WORKING), chance.randrange(2), chance.randint(1, 3)
            verbs = {"submit": 12, "claim": 14, "adopt": 10, "time": 10, "heeded": 8, "upkeep": 10, "operate": 3}
            verbs |= {"work_on": 20, "work": 12, "beat": 6, "requeue": 3, "finish": 3} if lease else {}
            verbs |= {"ask": 5, "claim_only": 2} if task else {}
            verbs |= {"move": 4} if vms else {}
            match chance.choices(list(verbs), list(verbs.values()))[0]:
                case "submit":
                    self.submitted(self.draft(chance), chance.choice([None, None, None, task]))
                case "claim":
                    leases += self.claimed(runner, dict.fromkeys(POOLS, 2), up_to, None)
                case "claim_only":
                    leases += self.claimed(runner, dict.fromkeys(POOLS, 1), 1, str(task))
                case "adopt":
                    leases += self.adopted(runner, list(POOLS), up_to)
                case "time":
                    self.time_passes(chance.choice([1, 5, 20, 40]))
                case "heeded":
                    self.time_is_heeded(chance.choices(["admit", "overdue", "jump"], [6, 2, 1])[0])
                case "upkeep":
                    self.upkeep(chance.random() < 0.2)
                case "operate":
                    self.operate(
                        chance.choice(list(POOLS)), chance.choices(["resume", "pause", "delete"], [6, 2, 1])[0]
                    )
                case "ask":
                    self.ask(str(task), chance.choice(list(self.model.tasks)), chance.choice(ASKED))
                case "work_on" if lease:
                    vms += [vm for vm in [self.worked_on(lease, chance.random() < 0.8, stage)] if vm is not None]
                case "work" if lease:
                    self.work(lease, chance.choice(WORKED), stage)
                case "beat":
                    self.beat(runner, set(leases))
                case "requeue" if lease:
                    self.requeue(lease, chance.random() < 0.5, chance.choice([0, 30]))
                case "finish" if lease:
                    ends = [TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED]
                    self.finish(lease, chance.choice(ends), chance.random() < 0.5)
                case "move":
                    self.move(chance.choice(vms[-6:]), chance.choice(list(VmState)), chance.choice([0, 1, None]))
            if step % 3 == 0:
                self.all_holds()

    def draft(self, chance: random.Random) -> Draft:
        return Draft(
            pool=chance.choice(list(POOLS)),
            frontend=chance.choice(FRONTENDS),
            priority=chance.choice([0, 0, 0, 5]),
            later=chance.choice([None, None, None, -1, 20, 60]),
            key=chance.choice([*[None] * 8, *"kl"]),
            hold=chance.random() < 0.15,
            delivery=chance.choice(list(Delivery)),
            room=chance.choice([None, None, 3]),
        )

    def all_holds(self) -> None:
        self.rows_are_as_they_should_be()
        self.machines_are_as_they_should_be()
        self.there_is_never_more_than_the_pool_may_have()
        self.the_event_log_tells_the_same_story()

    # what holds at any time

    @invariant()
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
            if not row.state.over:
                assert row.deadline_at == task.deadline, "no wait is without an end"
        expired = {row.id for row in self.run(self.store.tasks.expired(now=self.now))}
        assert expired == self.model.expired(self.now)

    @invariant()
    def machines_are_as_they_should_be(self) -> None:
        rows = self.run(self.store.vms.list(limit=1000))
        assert {row.id: (row.state, row.cloud_id, row.runner_id) for row in rows} == {
            vm.id: (vm.state, vm.cloud_id, vm.runner_id) for vm in self.model.vms.values()
        }
        for row in rows:
            assert (row.deadline_at is None) == (row.state is VmState.DESTROYED), "no wait is without an end"

    @invariant()
    def there_is_never_more_than_the_pool_may_have(self) -> None:
        for pool, most in POOLS.items():
            assert sum(1 for _ in self.model.held(pool)) <= most

    @invariant()
    def the_event_log_tells_the_same_story(self) -> None:
        for event in self.run(self.store.events.list(after=self.story.number, limit=10_000)):
            self.story.tell(event)
        tasks = self.model.tasks.values()
        assert self.story.states == {task.id: task.state for task in tasks}
        assert self.story.leases == {task.id: task.lease for task in tasks if task.lease is not None}
        assert self.story.vms == {vm.id: vm.state for vm in self.model.vms.values()}


EMPTIED = "tasks, attempts, vms, events, runners, dependencies, queues, shares, leaders, schedules"


@pytest.fixture
def database(store_url: str, tmp_path: Path) -> Callable[[], Coroutine[Any, Any, Store]]:
    """Opens an empty database, each time: one that was made once is copied, or emptied."""
    if store_url.startswith("sqlite"):
        made = tmp_path / "made.db"
        asyncio.run(_make(f"sqlite:///{made}"))
        numbers = itertools.count()

        def copied() -> Coroutine[Any, Any, Store]:
            path = tmp_path / f"{next(numbers)}.db"
            shutil.copyfile(made, path)
            return Store.open(f"sqlite:///{path}")

        return copied
    asyncio.run(_make(store_url))

    def emptied() -> Coroutine[Any, Any, Store]:
        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {EMPTIED}")
        return Store.open(store_url)

    return emptied


async def _make(url: str) -> None:
    async with await Store.open(url):
        pass


def test_life_cycles(database: Callable[[], Coroutine[Any, Any, Store]]) -> None:
    run_state_machine_as_test(
        lambda: LifeCycles(database),
        settings=settings(max_examples=10, stateful_step_count=30, deadline=None, derandomize=True, database=None),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_life(database: Callable[[], Coroutine[Any, Any, Store]], seed: int) -> None:
    cycles = LifeCycles(database)
    try:
        cycles.live(random.Random(seed), 200)
        cycles.all_holds()
    finally:
        cycles.teardown()
