"""Whatever is asked of the store, in whatever order, by whomever: no illegal move ever succeeds."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from orchestrator.domain.outcome import Exited, Reason
from orchestrator.domain.task import LEGAL_MOVES, Stage, TaskSpec, TaskState
from orchestrator.store import Finished, Lease, StageEntered, Store
from tests.conformance.queueing import register, retried, submit, take_one

T0 = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_SECONDS = 30.0
HELD = (TaskState.RUNNING, TaskState.WAITING)
MOVES_OF_EVENTS = {
    "task.released": TaskState.QUEUED,
    "task.claimed": TaskState.RUNNING,
    "task.requeued": TaskState.QUEUED,
    "task.finished": TaskState.FINISHED,
    "task.failed": TaskState.FAILED,
    "task.canceled": TaskState.CANCELED,
}
T = TypeVar("T")


@dataclass
class Model:
    """What a task should be."""

    state: TaskState
    attempt: int = 0
    lease: Lease | None = None
    expires: datetime = T0
    stage: Stage | None = None
    cancel: bool = False
    began: TaskState = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.state

    def go(self, state: TaskState) -> None:
        self.state = state
        if state not in HELD:
            self.lease = self.stage = None


class Moves(RuleBasedStateMachine):
    tasks = Bundle("tasks")
    leases = Bundle("leases")

    @initialize(target=leases)
    def open(self) -> Any:
        self.loop = asyncio.Runner()
        self.home = tempfile.mkdtemp()
        self.store = self.run(Store.open(f"sqlite:///{self.home}/mayfly.db"))
        self.now = T0
        self.model: dict[str, Model] = {}
        self.runners = [self.run(register(self.store, host="h", pid=n, pools=["p"], now=T0)).id for n in range(2)]
        return multiple()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
            self.loop.close()
            shutil.rmtree(self.home)

    def holds(self, lease: Lease) -> Model | None:
        model = self.model[lease.task_id]
        return model if model.lease == lease else None

    @rule(target=tasks, hold=st.booleans())
    def submit(self, hold: bool) -> str:
        task = self.run(submit(self.store, TaskSpec("p", ("x",)), now=self.now, hold=hold))
        self.model[task.id] = Model(TaskState.NEW if hold else TaskState.QUEUED)
        return task.id

    @rule(seconds=st.sampled_from([1, 20, 40]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(task=tasks)
    def release(self, task: str) -> None:
        did = self.run(self.store.tasks.release(task, now=self.now))
        assert did == (self.model[task].state is TaskState.NEW)
        if did:
            self.model[task].go(TaskState.QUEUED)

    @rule(task=tasks)
    def reject(self, task: str) -> None:
        did = self.run(self.store.tasks.reject(task, Reason.INTERNAL, "no", now=self.now))
        assert did == (self.model[task].state is TaskState.QUEUED)
        if did:
            self.model[task].go(TaskState.FAILED)

    @rule(target=leases, runner=st.integers(0, 1), only=st.none() | tasks)
    def claim(self, runner: int, only: str | None) -> Any:
        queued = sorted(task for task, model in self.model.items() if model.state is TaskState.QUEUED)
        expected = next((task for task in queued if only in (None, task)), None)
        claim = self.run(
            take_one(self.store, self.runners[runner], ["p"], lease_seconds=LEASE_SECONDS, now=self.now, only=only)
        )
        assert (None if claim is None else claim.task.id) == expected
        if claim is None:
            return multiple()
        model = self.model[claim.task.id]
        model.go(TaskState.RUNNING)
        model.attempt += 1
        model.lease, model.expires = claim.lease, self.now + timedelta(seconds=LEASE_SECONDS)
        assert claim.lease == Lease(claim.task.id, model.attempt, self.runners[runner])
        return claim.lease

    @rule(lease=leases, stage=st.sampled_from(Stage))
    def enter(self, lease: Lease, stage: Stage) -> None:
        model = self.holds(lease)
        order = list(Stage)
        forward = model is not None and (model.stage is None or order.index(stage) > order.index(model.stage))
        assert self.run(self.store.tasks.enter_stage(StageEntered(lease, stage), now=self.now)) == forward
        if model is not None and forward:
            model.stage = stage

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        model = self.holds(lease)
        beat = self.run(self.store.tasks.heartbeat(lease, lease_seconds=LEASE_SECONDS, now=self.now))
        assert (beat is None) == (model is None)
        if beat is not None and model is not None:
            assert beat.cancel_requested == model.cancel
            model.expires = self.now + timedelta(seconds=LEASE_SECONDS)

    @rule(lease=leases)
    def record(self, lease: Lease) -> None:
        assert self.run(self.store.attempts.record_outcome(lease, Exited(0))) == (self.holds(lease) is not None)

    def may_end(self, lease: Lease, if_expired: bool) -> Model | None:
        model = self.holds(lease)
        return None if model is None or (if_expired and model.expires > self.now) else model

    @rule(lease=leases, state=st.sampled_from(TaskState).filter(lambda state: state.over), if_expired=st.booleans())
    def finish(self, lease: Lease, state: TaskState, if_expired: bool) -> None:
        model = self.may_end(lease, if_expired)
        if model is not None and state not in LEGAL_MOVES[model.state]:
            model = None
        did = self.run(self.store.tasks.finish(Finished(lease, state), now=self.now, if_expired=if_expired))
        assert did == (model is not None)
        if model is not None:
            model.go(state)

    @rule(lease=leases, if_expired=st.booleans())
    def requeue(self, lease: Lease, if_expired: bool) -> None:
        model = self.may_end(lease, if_expired)
        went = self.run(
            self.store.tasks.requeue(retried(lease, Reason.RUNNER_LOST), now=self.now, if_expired=if_expired)
        )
        expected = None if model is None else TaskState.CANCELED if model.cancel else TaskState.QUEUED
        assert went == expected
        if model is not None and went is not None:
            model.go(went)

    @rule(task=tasks)
    def cancel(self, task: str) -> None:
        model = self.model[task]
        if model.state in (TaskState.NEW, TaskState.QUEUED):
            model.go(TaskState.CANCELED)
        elif model.state in HELD:
            model.cancel = True
        assert self.run(self.store.tasks.request_cancel(task, now=self.now)).state is model.state

    @invariant()
    def rows_are_as_they_should_be(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = self.run(self.store.tasks.list(limit=1000))
        assert {row.id: (row.state, row.attempt, row.lease, row.stage) for row in rows} == {
            task: (model.state, model.attempt, model.lease, model.stage) for task, model in self.model.items()
        }
        expired = {task for task, m in self.model.items() if m.state in HELD and m.expires <= self.now}
        assert {row.id for row in self.run(self.store.tasks.expired(now=self.now))} == expired

    @invariant()
    def the_event_log_tells_a_legal_story(self) -> None:
        if not hasattr(self, "store"):
            return
        told = {task: model.began for task, model in self.model.items()}
        for event in self.run(self.store.events.list(limit=10_000)):
            if event.kind in MOVES_OF_EVENTS and event.task_id is not None:
                target = MOVES_OF_EVENTS[event.kind]
                assert target in LEGAL_MOVES[told[event.task_id]], (told[event.task_id], target)
                told[event.task_id] = target
        assert told == {task: model.state for task, model in self.model.items()}


TestMoves = Moves.TestCase
TestMoves.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
