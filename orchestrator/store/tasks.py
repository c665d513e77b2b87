"""Tasks: what frontends submit, what runners claim. Each change of state is one guarded write."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Executable,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    null,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import CANCELED_EXIT, PLATFORM_EXIT, Reason
from orchestrator.domain.task import LEGAL_MOVES, Stage, TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.attempts import begin_attempt, end_attempt, note_stage
from orchestrator.store.encoding import spec_to_json
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event, write_lease_event
from orchestrator.store.ids import new_id
from orchestrator.store.schema import HELD, INSTALLATION, OVER, TASKS, VMS
from orchestrator.store.search import find_task
from orchestrator.store.transitions import Finished, Requeued, StageEntered
from orchestrator.store.views import Beat, Claim, Lease, TaskRow, task_view

_ENDS = {
    TaskState.FINISHED: EventKind.TASK_FINISHED,
    TaskState.FAILED: EventKind.TASK_FAILED,
    TaskState.CANCELED: EventKind.TASK_CANCELED,
}
_LET_GO = {"stage": None, "runner_id": None, "lease_expires_at": None}


def _before(state: TaskState) -> tuple[TaskState, ...]:
    """The states from which `state` may be entered."""
    return tuple(source for source in TaskState if state in LEGAL_MOVES[source])


def _held_by(lease: Lease) -> ColumnElement[bool]:
    """The guard of every write of a runner."""
    return and_(
        TASKS.c.id == lease.task_id,
        TASKS.c.state.in_(HELD),
        TASKS.c.attempt == lease.attempt,
        TASKS.c.runner_id == lease.runner_id,
    )


class Tasks:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def submit(self, spec: TaskSpec, *, now: datetime, hold: bool = False) -> TaskRow:
        """Write a new task: QUEUED, or NEW with `hold`, to be released later. The spec is taken as valid."""
        while True:
            task_id = new_id(now)
            row = {
                "id": task_id,
                "name": spec.name,
                "pool": spec.pool,
                "spec": spec_to_json(spec),
                "state": TaskState.NEW if hold else TaskState.QUEUED,
                "message": "",
                "attempt": 0,
                "submitted_at": now,
            }
            try:
                async with self._database.writing() as connection:
                    made = (await connection.execute(insert(TASKS).values(row).returning(TASKS))).mappings().one()
                    await write_event(connection, EventKind.TASK_SUBMITTED, now=now, task_id=task_id)
                    return task_view(made)
            except IntegrityError:
                if await self._exists(task_id):  # one in 2**30 for two tasks of the same millisecond
                    continue
                raise

    async def _exists(self, task_id: str) -> bool:
        async with self._database.reading() as connection:
            found = await connection.execute(select(TASKS.c.id).where(TASKS.c.id == task_id))
            return found.first() is not None

    async def get(self, reference: str) -> TaskRow:
        """The task with this id, or the only one whose id begins or ends so (four characters at least).

        Raises NotFound, with the near misses.
        """
        async with self._database.reading() as connection:
            return task_view(await find_task(connection, reference))

    async def list(
        self,
        *,
        states: Collection[TaskState] | None = None,
        pool: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> tuple[TaskRow, ...]:
        """Tasks, newest first. `before`: only those with a smaller id, that is, the page after that task."""
        query = select(TASKS).order_by(TASKS.c.id.desc()).limit(limit)
        if states is not None:
            query = query.where(TASKS.c.state.in_(tuple(states)))
        if pool is not None:
            query = query.where(TASKS.c.pool == pool)
        if before is not None:
            query = query.where(TASKS.c.id < before)
        return await self._read(query)

    async def expired(self, *, now: datetime) -> tuple[TaskRow, ...]:
        """Tasks whose runner has let its lease run out, oldest first."""
        query = select(TASKS).where(TASKS.c.state.in_(HELD), TASKS.c.lease_expires_at <= now).order_by(TASKS.c.id)
        return await self._read(query)

    async def counts(self) -> dict[tuple[str, TaskState], int]:
        """How many tasks each pool has in each state; none is not counted."""
        query = select(TASKS.c.pool, TASKS.c.state, func.count()).group_by(TASKS.c.pool, TASKS.c.state)
        async with self._database.reading() as connection:
            return {(pool, TaskState(state)): count for pool, state, count in await connection.execute(query)}

    async def _read(self, query: Executable) -> tuple[TaskRow, ...]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return tuple(task_view(row) for row in rows)

    async def release(self, task_id: str, *, now: datetime) -> bool:
        """NEW → QUEUED. False: it is not NEW."""
        async with self._database.writing() as connection:
            guarded = update(TASKS).where(TASKS.c.id == task_id, TASKS.c.state == TaskState.NEW)
            if not await _applied(connection, guarded.values(state=TaskState.QUEUED)):
                return False
            await write_event(connection, EventKind.TASK_RELEASED, now=now, task_id=task_id)
            return True

    async def reject(self, task_id: str, reason: Reason, message: str, *, now: datetime) -> bool:
        """QUEUED → FAILED, before any attempt: it can never run. False: it is not QUEUED."""
        async with self._database.writing() as connection:
            guarded = update(TASKS).where(TASKS.c.id == task_id, TASKS.c.state == TaskState.QUEUED)
            values = {
                "state": TaskState.FAILED,
                "reason": reason,
                "message": message,
                "exit_code": PLATFORM_EXIT,
                "finished_at": now,
            }
            if not await _applied(connection, guarded.values(values)):
                return False
            data = {"reason": reason, "message": message}
            await write_event(connection, EventKind.TASK_FAILED, now=now, task_id=task_id, data=data)
            return True

    async def claim(
        self,
        runner_id: str,
        pools: Collection[str],
        *,
        lease_seconds: float,
        now: datetime,
        only: str | None = None,
        max_vms: Mapping[str, int] | None = None,
    ) -> Claim | None:
        """Take the oldest QUEUED task of these pools (or just the task `only`) and begin an attempt.

        One statement finds and takes it, so no two runners get the same. `max_vms`: how many VMs a pool may have, where
        it has a limit; a task that is held counts as one, whether its VM is there yet or not. None: nothing waits, or
        there is no room. The runner must be registered.
        """
        oldest = select(TASKS.c.id).where(TASKS.c.state == TaskState.QUEUED)
        if only is not None:
            oldest = oldest.where(TASKS.c.id == only)
        # SQLite has one writer at a time and leaves FOR UPDATE out; elsewhere claimers pass each other by.
        oldest = oldest.where(TASKS.c.pool.in_(bindparam("pools", expanding=True)))
        oldest = oldest.order_by(TASKS.c.id).limit(1).with_for_update(skip_locked=True)
        taken = (
            update(TASKS)
            .where(TASKS.c.id == oldest.scalar_subquery(), TASKS.c.state == TaskState.QUEUED)
            .values(
                state=TaskState.RUNNING,
                attempt=TASKS.c.attempt + 1,
                runner_id=runner_id,
                lease_expires_at=now + timedelta(seconds=lease_seconds),
                started_at=func.coalesce(TASKS.c.started_at, literal(now, TASKS.c.started_at.type)),
                reason=None,
                message="",
            )
            .returning(TASKS)
        )
        async with self._database.writing() as connection:
            with_room = await _with_room(connection, pools, max_vms or {})
            row = (await connection.execute(taken, {"pools": with_room})).mappings().first()
            if row is None:
                return None
            lease = Lease(row["id"], row["attempt"], runner_id)
            await begin_attempt(connection, lease, now=now)
            await write_lease_event(connection, EventKind.TASK_CLAIMED, lease, now=now)
            return Claim(task_view(row), lease)

    async def enter_stage(self, entered: StageEntered, *, now: datetime) -> bool:
        """Say where the attempt is. False: stale, or not forward."""
        stages = tuple(Stage)
        earlier = stages[: stages.index(entered.stage)]
        forward = TASKS.c.stage.is_(None) | TASKS.c.stage.in_(earlier)
        async with self._database.writing() as connection:
            guarded = update(TASKS).where(_held_by(entered.lease), forward)
            if not await _applied(connection, guarded.values(stage=entered.stage)):
                return False
            await note_stage(connection, entered.lease, entered.stage, now=now)
            data = {"stage": entered.stage}
            await write_lease_event(connection, EventKind.TASK_STAGE, entered.lease, now=now, data=data)
            return True

    async def heartbeat(self, lease: Lease, *, lease_seconds: float, now: datetime) -> Beat | None:
        """Extend the lease. None: stale, somebody else has the task or it is over; stop and clean up."""
        beat = (
            update(TASKS)
            .where(_held_by(lease))
            .values(lease_expires_at=now + timedelta(seconds=lease_seconds))
            .returning(TASKS.c.lease_expires_at, TASKS.c.cancel_requested_at)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(beat)).first()
            return None if row is None else Beat(row.lease_expires_at, row.cancel_requested_at is not None)

    async def finish(self, finished: Finished, *, now: datetime, if_expired: bool = False) -> bool:
        """The task is over. False: stale. `if_expired`: upkeep writes it for a runner that let its lease run out;
        False then too if the runner is back."""
        lease = finished.lease
        guard = and_(_held_by(lease), TASKS.c.state.in_(_before(finished.state)))
        values = {
            **_LET_GO,
            "state": finished.state,
            "reason": finished.reason,
            "message": finished.message,
            "exit_code": finished.exit_code,
            "finished_at": now,
        }
        if if_expired:
            guard = and_(guard, TASKS.c.lease_expires_at <= now)
        async with self._database.writing() as connection:
            if not await _applied(connection, update(TASKS).where(guard).values(values)):
                return False
            await end_attempt(connection, lease, now=now)
            data = {"reason": finished.reason, "message": finished.message, "exit_code": finished.exit_code}
            await write_lease_event(connection, _ENDS[finished.state], lease, now=now, data=data)
            return True

    async def requeue(self, requeued: Requeued, *, now: datetime, if_expired: bool = False) -> TaskState | None:
        """Back to QUEUED, or to CANCELED if that was asked for meanwhile: the state it went to. None: stale.
        `if_expired` as in `finish`."""
        lease = requeued.lease
        guard = _held_by(lease)
        if if_expired:
            guard = and_(guard, TASKS.c.lease_expires_at <= now)
        unwanted = TASKS.c.cancel_requested_at.is_not(None)
        went = (
            update(TASKS)
            .where(guard)
            .values(
                **_LET_GO,
                state=case((unwanted, TaskState.CANCELED.value), else_=TaskState.QUEUED.value),
                reason=case((unwanted, Reason.CANCELED.value), else_=requeued.reason.value),
                message=requeued.message,
                exit_code=case((unwanted, CANCELED_EXIT), else_=null()),
                finished_at=case((unwanted, literal(now, TASKS.c.finished_at.type)), else_=null()),
            )
            .returning(TASKS.c.state)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(went)).first()
            if row is None:
                return None
            state = TaskState(row.state)
            kind = EventKind.TASK_REQUEUED if state is TaskState.QUEUED else EventKind.TASK_CANCELED
            await end_attempt(connection, lease, now=now)
            data = {"reason": requeued.reason, "message": requeued.message}
            await write_lease_event(connection, kind, lease, now=now, data=data)
            return state

    async def request_cancel(self, task_id: str, *, now: datetime) -> TaskRow:
        """Ask for the end of a task. One that no runner holds is CANCELED at once; a runner sees the flag with its
        next heartbeat. Asking again, or too late, changes nothing. The task as it is then.

        Raises NotFound.
        """
        waits = TASKS.c.state.in_((TaskState.NEW, TaskState.QUEUED))
        asked = (
            update(TASKS)
            .where(TASKS.c.id == task_id, TASKS.c.state.not_in(OVER), TASKS.c.cancel_requested_at.is_(None))
            .values(
                cancel_requested_at=now,
                state=case((waits, TaskState.CANCELED.value), else_=TASKS.c.state),
                reason=case((waits, Reason.CANCELED.value), else_=TASKS.c.reason),
                message=case((waits, "canceled before it started"), else_=TASKS.c.message),
                exit_code=case((waits, CANCELED_EXIT), else_=null()),
                finished_at=case((waits, literal(now, TASKS.c.finished_at.type)), else_=null()),
            )
            .returning(TASKS)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(asked)).mappings().first()
            if row is None:
                return task_view(await find_task(connection, task_id))
            task = task_view(row)
            over = task.state is TaskState.CANCELED
            kind = EventKind.TASK_CANCELED if over else EventKind.TASK_CANCEL_REQUESTED
            await write_event(connection, kind, now=now, task_id=task_id, attempt=task.attempt or None)
            return task


async def _with_room(connection: AsyncConnection, pools: Collection[str], max_vms: Mapping[str, int]) -> list[str]:
    """Those of the pools that may have one more VM. Claimers take turns here, so that two never take the last room."""
    if not any(pool in max_vms for pool in pools):
        return list(pools)
    await connection.execute(select(INSTALLATION.c.id).with_for_update())
    held = select(TASKS.c.pool).where(TASKS.c.state.in_(HELD))
    its_task = select(TASKS.c.id).where(
        TASKS.c.id == VMS.c.task_id, TASKS.c.attempt == VMS.c.attempt, TASKS.c.state.in_(HELD)
    )
    left_over = select(VMS.c.pool).where(VMS.c.state != VmState.DESTROYED, ~its_task.exists())
    counted = union_all(held, left_over).subquery()
    query = select(counted.c.pool, func.count()).group_by(counted.c.pool)
    taken: dict[str, int] = {row[0]: row[1] for row in await connection.execute(query)}
    return [pool for pool in pools if pool not in max_vms or taken.get(pool, 0) < max_vms[pool]]


async def _applied(connection: AsyncConnection, guarded: Update) -> bool:
    result = await connection.execute(guarded)
    return result.rowcount == 1
