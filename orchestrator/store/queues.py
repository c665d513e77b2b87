"""Queues: each pool is one. People pause and delete them; runners say why nothing of them can be placed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Update, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import CANCELED_EXIT, Reason
from orchestrator.domain.task import TaskState
from orchestrator.store.bell import Bell
from orchestrator.store.conditions import IS_HELD
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event, write_events
from orchestrator.store.guards import add_queues
from orchestrator.store.schema import QUEUES, TASKS
from orchestrator.store.views import QueueRow

_WAITS = (TaskState.NEW, TaskState.QUEUED)
_DELETED = "its queue was deleted"


class Queues:
    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def list(self, *, counts: bool = True) -> tuple[QueueRow, ...]:
        """Those that have or had a task, or of which something was said; by name. counts: whether its tasks are
        counted, which costs time for each that waits."""
        waiting = select(TASKS.c.pool, func.count()).where(TASKS.c.state == TaskState.QUEUED).group_by(TASKS.c.pool)
        held = select(TASKS.c.pool, func.count()).where(IS_HELD).group_by(TASKS.c.pool)
        async with self._database.reading() as connection:
            waits = {row[0]: row[1] for row in await connection.execute(waiting)} if counts else {}
            runs = {row[0]: row[1] for row in await connection.execute(held)} if counts else {}
            return tuple(
                QueueRow(
                    pool=row.pool,
                    paused_at=row.paused_at,
                    paused_because=row.paused_because,
                    blocked_reason=None if row.blocked_reason is None else Reason(row.blocked_reason),
                    blocked_message=row.blocked_message,
                    blocked_at=row.blocked_at,
                    waiting=waits.get(row.pool, 0),
                    held=runs.get(row.pool, 0),
                    drained_at=row.drained_at,
                    drained_because=row.drained_because,
                    rotated_at=row.rotated_at,
                )
                for row in await connection.execute(select(QUEUES).order_by(QUEUES.c.pool))
            )

    async def pause(self, pool: str, because: str, *, now: datetime) -> bool:
        """Nothing more of it is claimed; what runs goes on. False: it was paused already."""
        paused = update(QUEUES).where(QUEUES.c.pool == pool, QUEUES.c.paused_at.is_(None))
        data = {"pool": pool, "because": because}
        async with self._database.writing() as connection:
            await add_queues(connection, (pool,))
            return await _changed(
                connection,
                paused.values(paused_at=now, paused_because=because),
                EventKind.QUEUE_PAUSED,
                data,
                now=now,
            )

    async def drain(self, pool: str, because: str, *, now: datetime) -> bool:
        """It is to have no machines but those in use, and nothing more of it is claimed. False: it was drained already.
        One that was paused stays so since then, and for the reason that was given then."""
        drained = update(QUEUES).where(QUEUES.c.pool == pool, QUEUES.c.drained_at.is_(None))
        runs = QUEUES.c.paused_at.is_(None)
        values = {
            "drained_at": now,
            "drained_because": because,
            "paused_at": func.coalesce(QUEUES.c.paused_at, now),
            "paused_because": case((runs, because), else_=QUEUES.c.paused_because),
        }
        data = {"pool": pool, "because": because}
        async with self._database.writing() as connection:
            await add_queues(connection, (pool,))
            return await _changed(connection, drained.values(values), EventKind.QUEUE_DRAINED, data, now=now)

    async def resume(self, pool: str, *, now: datetime) -> bool:
        """It is neither paused nor drained any more. False: it was neither."""
        resumed = update(QUEUES).where(QUEUES.c.pool == pool, QUEUES.c.paused_at.is_not(None))
        values = {"paused_at": None, "paused_because": "", "drained_at": None, "drained_because": ""}
        data = {"pool": pool}
        async with self._database.writing() as connection:
            done = await _changed(connection, resumed.values(values), EventKind.QUEUE_RESUMED, data, now=now)
        if done:
            self._bell.ring()
        return done

    async def rotate(self, pool: str, *, now: datetime) -> None:
        """Its ready machines that were made before now of an older image version are to be replaced."""
        rotated = update(QUEUES).where(QUEUES.c.pool == pool).values(rotated_at=now)
        async with self._database.writing() as connection:
            await add_queues(connection, (pool,))
            await _changed(connection, rotated, EventKind.QUEUE_ROTATED, {"pool": pool}, now=now)

    async def delete(self, pool: str, *, now: datetime) -> int:
        """Cancel all that is in it: what no runner holds at once, what one holds by its next heartbeat. How many."""
        wanted = TASKS.c.cancel_requested_at.is_(None)
        canceled = (
            update(TASKS)
            .where(TASKS.c.pool == pool, TASKS.c.state.in_(_WAITS))
            .values(
                state=TaskState.CANCELED,
                reason=Reason.CANCELED,
                message=_DELETED,
                exit_code=CANCELED_EXIT,
                cancel_requested_at=now,
                finished_at=now,
                deadline_at=None,
                admitted_at=None,
            )
            .returning(TASKS.c.id, TASKS.c.attempt)
        )
        asked = (
            update(TASKS)
            .where(TASKS.c.pool == pool, IS_HELD, wanted)
            .values(cancel_requested_at=now)
            .returning(TASKS.c.id, TASKS.c.attempt)
        )
        data = {"reason": Reason.CANCELED, "message": _DELETED}
        async with self._database.writing() as connection:
            # Claimers take turns at this row: what is claimed now is seen as held.
            await connection.execute(select(QUEUES.c.pool).where(QUEUES.c.pool == pool).with_for_update())
            ended = (await connection.execute(canceled)).all()
            flagged = (await connection.execute(asked)).all()
            told = ((EventKind.TASK_CANCELED, ended), (EventKind.TASK_CANCEL_REQUESTED, flagged))
            for kind, rows in told:
                each = [{"task_id": row.id, "attempt": row.attempt or None, "data": data} for row in rows]
                await write_events(connection, kind, each, now=now)
            count = len(ended) + len(flagged)
            await write_event(connection, EventKind.QUEUE_DELETED, now=now, data={"pool": pool, "tasks": count})
            return count

    async def block(self, pool: str, reason: Reason, message: str, *, now: datetime) -> bool:
        """Say why nothing of the pool can be placed now. False: that is what was said last."""
        news = or_(
            QUEUES.c.blocked_reason.is_(None),
            QUEUES.c.blocked_reason != reason.value,
            QUEUES.c.blocked_message != message,
        )
        blocked = update(QUEUES).where(QUEUES.c.pool == pool, news)
        values = {"blocked_reason": reason.value, "blocked_message": message, "blocked_at": now}
        async with self._database.writing() as connection:
            await add_queues(connection, (pool,))
            return (await connection.execute(blocked.values(values))).rowcount == 1

    async def unblock(self, pool: str) -> bool:
        """It can be placed again. False: nobody had said otherwise."""
        unblocked = update(QUEUES).where(QUEUES.c.pool == pool, QUEUES.c.blocked_reason.is_not(None))
        values = {"blocked_reason": None, "blocked_message": "", "blocked_at": None}
        async with self._database.writing() as connection:
            return (await connection.execute(unblocked.values(values))).rowcount == 1


async def _changed(
    connection: AsyncConnection, guarded: Update, kind: EventKind, data: dict[str, str], *, now: datetime
) -> bool:
    if (await connection.execute(guarded)).rowcount != 1:
        return False
    await write_event(connection, kind, now=now, data=data)
    return True
