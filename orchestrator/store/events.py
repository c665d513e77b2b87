"""The event log: append-only, numbered. Every change of state writes its event in its own transaction."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.store.engine import Database
from orchestrator.store.schema import EVENTS
from orchestrator.store.views import EventRow, Lease, event_view


class EventKind(StrEnum):
    """Names that others may rely on."""

    TASK_SUBMITTED = "task.submitted"
    TASK_RELEASED = "task.released"
    TASK_CLAIMED = "task.claimed"
    TASK_STAGE = "task.stage"
    TASK_REQUEUED = "task.requeued"
    TASK_CANCEL_REQUESTED = "task.cancel_requested"
    TASK_FINISHED = "task.finished"
    TASK_FAILED = "task.failed"
    TASK_CANCELED = "task.canceled"
    VM_REQUESTED = "vm.requested"
    VM_KNOWN = "vm.known"
    VM_MOVED = "vm.moved"
    RUNNER_JOINED = "runner.joined"
    RUNNER_LEFT = "runner.left"
    NOTE = "note"


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
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return tuple(event_view(row) for row in rows)
