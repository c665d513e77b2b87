"""What the writes to tasks have in common: their guards, and the rows that they leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Executable, Update, and_, exists, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_on_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_on_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import PLATFORM_EXIT, Reason
from orchestrator.domain.task import TaskState
from orchestrator.store.bell import Bell
from orchestrator.store.chain import Columns
from orchestrator.store.conditions import IS_HELD, LAID, PENDING, SQL_HELD
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_events
from orchestrator.store.schema import DEPENDENCIES, QUEUES, TASKS
from orchestrator.store.views import Lease, TaskRow, task_view

HELD_BY_V = f"tasks.id = v.task_id AND {SQL_HELD} AND tasks.attempt = v.attempt AND tasks.runner_id = v.runner_id"
"""The guard of every write of a runner, in a `Chain`."""
LEASE: Columns = {"task_id": str, "attempt": int, "runner_id": str}
IN_ORDER = ("tasks", "tasks.id = given.task_id", "tasks.id")
BUILDERS = "mayfly"
"""The frontend of the tasks that build layers. Nobody else's task may depend on one of its tasks, so that whoever does
waits for a layer."""
LET_GO = {"stage": None, "runner_id": None, "lease_expires_at": None}


class Room:
    """One room of `Tasks`: what it asks of the database."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def _read(self, query: Executable) -> tuple[TaskRow, ...]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return tuple(task_view(row) for row in rows)


def legal(moves: Mapping[Any, Collection[Any]]) -> str:
    """The right side of SQL's IN: each state with each that it may go to."""
    pairs = [f"('{state}', '{after}')" for state, all_after in moves.items() for after in sorted(all_after)]
    return f"(VALUES {', '.join(pairs)})"


def given_by(lease: Lease) -> dict[str, Any]:
    return {"task_id": lease.task_id, "attempt": lease.attempt, "runner_id": lease.runner_id}


def held_by(lease: Lease) -> ColumnElement[bool]:
    """The guard of every write of a runner."""
    return and_(
        TASKS.c.id == lease.task_id,
        IS_HELD,
        TASKS.c.attempt == lease.attempt,
        TASKS.c.runner_id == lease.runner_id,
    )


def unfinished() -> ColumnElement[bool]:
    """Of a task: there is one that it depends on and that has not FINISHED."""
    other = TASKS.alias("other")
    return exists(
        select(literal(1))
        .select_from(DEPENDENCIES.join(other, other.c.id == DEPENDENCIES.c.on_task_id))
        .where(DEPENDENCIES.c.task_id == TASKS.c.id, other.c.state != TaskState.FINISHED.value)
        .correlate(TASKS)
    )


def is_due(now: datetime) -> ColumnElement[bool]:
    """Of a task: its time has come, all that it depends on has FINISHED, and what its packages make is there."""
    return and_(or_(TASKS.c.not_before.is_(None), TASKS.c.not_before <= now), ~unfinished(), LAID)


async def give_up(
    connection: AsyncConnection, ids: Collection[str], reason: Reason, message: str, *, now: datetime
) -> None:
    """These wait, and can never run: FAILED."""
    if not ids:
        return
    values = {
        "state": TaskState.FAILED,
        "reason": reason,
        "message": message,
        "exit_code": PLATFORM_EXIT,
        "finished_at": now,
        "deadline_at": None,
    }
    await connection.execute(update(TASKS).where(TASKS.c.id.in_(tuple(ids)), PENDING).values(values))
    data = {"reason": reason, "message": message}
    await write_events(connection, EventKind.TASK_FAILED, [{"task_id": each, "data": data} for each in ids], now=now)


async def applied(connection: AsyncConnection, guarded: Update) -> bool:
    result = await connection.execute(guarded)
    return result.rowcount == 1


async def add_queues(connection: AsyncConnection, pools: Collection[str]) -> None:
    """A row for each of these pools that has none."""
    empty = {"paused_because": "", "blocked_message": "", "drained_because": "", "turn": 0}
    rows = [{"pool": pool, **empty} for pool in sorted(pools)]
    made = insert_on_postgresql if connection.dialect.name == "postgresql" else insert_on_sqlite
    await connection.execute(made(QUEUES).on_conflict_do_nothing(index_elements=[QUEUES.c.pool]), rows)
