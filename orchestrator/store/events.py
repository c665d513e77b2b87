"""The event log: append-only, numbered. Every change of state writes its event in its own transaction, as its last
write: on PostgreSQL a writer may wait there for a reader, and must not then be waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import Reason
from orchestrator.store.engine import Database
from orchestrator.store.schema import EVENTS
from orchestrator.store.views import EventRow, Lease, event_view

_ORDER_LOCK = 5577006791947779410
"""As in the trigger of migration 0002."""


LEASE_EVENT = """
INSERT INTO events (at, kind, task_id, attempt, runner_id, data)
SELECT v.at, v.kind, v.task_id, v.attempt, v.runner_id, v.data FROM v JOIN t ON t.task_id = v.task_id ORDER BY v.place
"""
"""In a `Chain`: what happened to the attempts that it changed."""


class EventKind(StrEnum):
    """Names that others may rely on."""

    TASK_SUBMITTED = "task.submitted"
    TASK_RELEASED = "task.released"
    TASK_ADMITTED = "task.admitted"
    TASK_CLAIMED = "task.claimed"
    TASK_ADOPTED = "task.adopted"
    TASK_LET_GO = "task.let_go"
    TASK_STAGE = "task.stage"
    TASK_REQUEUED = "task.requeued"
    TASK_CANCEL_REQUESTED = "task.cancel_requested"
    TASK_FINISHED = "task.finished"
    TASK_FAILED = "task.failed"
    TASK_CANCELED = "task.canceled"
    TASK_LAYER = "task.layer"
    TASK_RESULTS_RELEASED = "task.results_released"
    TASK_RESULTS_REJECTED = "task.results_rejected"
    LAYER_READY = "layer.ready"
    LAYER_REFUSED = "layer.refused"
    VM_REQUESTED = "vm.requested"
    VM_KNOWN = "vm.known"
    VM_MOVED = "vm.moved"
    RUNNER_JOINED = "runner.joined"
    RUNNER_DRAINING = "runner.draining"
    RUNNER_LEFT = "runner.left"
    QUEUE_PAUSED = "queue.paused"
    QUEUE_DRAINED = "queue.drained"
    QUEUE_RESUMED = "queue.resumed"
    QUEUE_ROTATED = "queue.rotated"
    QUEUE_DELETED = "queue.deleted"
    NOTE = "note"


def vm_event(kind: EventKind) -> str:
    """In a `Chain`: what happened to the VMs that it changed."""
    return f"""
    INSERT INTO events (at, kind, task_id, attempt, vm_id, runner_id, data)
    SELECT v.at, '{kind}', t.task_id, t.attempt, t.vm_id, t.runner_id, {{VM_DATA}}
    FROM v JOIN t ON t.vm_id = v.vm_id ORDER BY v.place
    """  # noqa: S608  made of our own words alone


async def write_event(
    connection: AsyncConnection,
    kind: EventKind,
    *,
    now: datetime,
    task_id: str | None = None,
    attempt: int | None = None,
    vm_id: str | None = None,
    runner_id: str | None = None,
    data: dict[str, Any] | None = None,
) -> int:
    """Append to the log in the transaction of `connection`; the number of the event."""
    values = {"at": now, "kind": kind.value, "task_id": task_id, "attempt": attempt, "vm_id": vm_id}
    written = insert(EVENTS).values(**values, runner_id=runner_id, data=data or {}).returning(EVENTS.c.number)
    number: int = (await connection.execute(written)).scalar_one()
    return number


async def write_events(
    connection: AsyncConnection, kind: EventKind, rows: Sequence[Mapping[str, Any]], *, now: datetime
) -> None:
    """As `write_event`, of many at once: a row gives `task_id`, and what else applies."""
    empty: dict[str, Any] = {"attempt": None, "vm_id": None, "runner_id": None, "data": {}, "task_id": None}
    if rows:
        await connection.execute(insert(EVENTS), [{**empty, "at": now, "kind": kind.value, **row} for row in rows])


async def write_lease_event(
    connection: AsyncConnection, kind: EventKind, lease: Lease, *, now: datetime, data: dict[str, Any] | None = None
) -> None:
    """As `write_event`, for what happened to an attempt."""
    await write_event(
        connection,
        kind,
        now=now,
        task_id=lease.task_id,
        attempt=lease.attempt,
        runner_id=lease.runner_id,
        data=data,
    )


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self,
        message: str,
        *,
        now: datetime,
        task_id: str | None = None,
        attempt: int | None = None,
        vm_id: str | None = None,
        runner_id: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> int:
        """Write a note that no change of state carries; its number. `data` must be JSON."""
        async with self._database.writing() as connection:
            return await write_event(
                connection,
                EventKind.NOTE,
                now=now,
                task_id=task_id,
                attempt=attempt,
                vm_id=vm_id,
                runner_id=runner_id,
                data={**(data or {}), "message": message},
            )

    async def list(self, *, after: int = 0, task_id: str | None = None, limit: int = 1000) -> tuple[EventRow, ...]:
        """Events with a number above `after`, oldest first; of one task, when it is named."""
        query = select(EVENTS).where(EVENTS.c.number > after).order_by(EVENTS.c.number).limit(limit)
        if task_id is not None:
            query = query.where(EVENTS.c.task_id == task_id)
        elif self._database.is_postgresql:
            query = query.where(EVENTS.c.number <= await self._last())
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return tuple(event_view(row) for row in rows)

    async def _last(self) -> int:
        """The highest number below which no other will ever appear. Writers hold the lock from before a number is
        given until it is committed, so whoever has it alone sees all that were given."""
        async with self._database.writing() as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(_ORDER_LOCK)))
            last: int | None = (await connection.execute(select(func.max(EVENTS.c.number)))).scalar_one()
            return last or 0

    async def requeue_reasons(self, task_id: str) -> tuple[Reason, ...]:
        """Why the task went back to its queue, each time, oldest first."""
        back = select(EVENTS.c.data).where(EVENTS.c.task_id == task_id, EVENTS.c.kind == EventKind.TASK_REQUEUED.value)
        async with self._database.reading() as connection:
            rows = await connection.execute(back.order_by(EVENTS.c.number))
            return tuple(Reason(data["reason"]) for (data,) in rows)
