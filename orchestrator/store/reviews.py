"""Reviews: what somebody decided of the results of a task that is over. The first one stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.domain.task import TaskState
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event
from orchestrator.store.schema import REVIEWS, TASKS
from orchestrator.store.views import Decision, Row


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """Who decided of a task's results, why and when."""

    task_id: str
    decision: Decision
    by: str
    why: str
    at: datetime


class Reviews:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, task_id: str) -> ReviewRow | None:
        """None: nobody has decided."""
        async with self._database.reading() as connection:
            return await _of(connection, task_id)

    async def decide(self, task_id: str, decision: Decision, by: str, why: str, *, now: datetime) -> ReviewRow:
        """Once and for all. Raises NotFound, and NotPossible: the task is not over, or somebody has decided."""
        async with self._database.writing() as connection:
            # Of two at once the second waits here for what the first decides.
            locked = select(TASKS.c.state, TASKS.c.attempt).where(TASKS.c.id == task_id)
            task = (await connection.execute(locked.with_for_update(key_share=True))).first()
            if task is None:
                raise NotFound("task", f"no task {task_id!r}", "see `mayfly list`")
            if not TaskState(task.state).over:
                raise NotPossible("task", f"{task_id} is {task.state}", "what it leaves can be judged once it is over")
            if (before := await _of(connection, task_id)) is not None:
                when = before.at.isoformat(timespec="seconds")
                problem = f"the results of {task_id} were {before.decision} by {before.by} at {when}"
                raise NotPossible("task", problem, "what was decided stands")
            row = {"task_id": task_id, "decision": decision.value, "by": by, "why": why, "at": now}
            made = (await connection.execute(insert(REVIEWS).values(row).returning(REVIEWS))).mappings().one()
            attempt = task.attempt or None
            data = {"by": by, "why": why}
            await write_event(connection, _kind(decision), now=now, task_id=task_id, attempt=attempt, data=data)
            return _view(made)


async def _of(connection: AsyncConnection, task_id: str) -> ReviewRow | None:
    row = (await connection.execute(select(REVIEWS).where(REVIEWS.c.task_id == task_id))).mappings().first()
    return None if row is None else _view(row)


def _kind(decision: Decision) -> EventKind:
    match decision:
        case Decision.RELEASED:
            return EventKind.TASK_RESULTS_RELEASED
        case Decision.REJECTED:
            return EventKind.TASK_RESULTS_REJECTED
        case _:
            assert_never(decision)


def _view(row: Row) -> ReviewRow:
    fields = {name: row[name] for name in ReviewRow.__dataclass_fields__}
    return ReviewRow(**{**fields, "decision": Decision(row["decision"])})
