"""What is asked of tasks. Reading never changes anything."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, literal, select, text

from orchestrator.domain.task import TaskState
from orchestrator.store.conditions import IS_HELD, IS_OPEN, READY, SQL_READY
from orchestrator.store.guards import Room
from orchestrator.store.schema import DEPENDENCIES, TASKS
from orchestrator.store.search import find_task
from orchestrator.store.views import QueuePlace, TaskRow, Throughput, task_view

BOUND = 10_000
"""To which what is before a task is counted."""

# The frontends that wait with this priority, as in `claiming`, and how many tasks each has.
_OTHERS = text(f"""
WITH RECURSIVE waits(frontend) AS (
  SELECT (SELECT frontend FROM tasks WHERE {SQL_READY} AND pool = :pool AND priority = :priority
          ORDER BY pool, priority, frontend LIMIT 1)
  UNION ALL
  SELECT (SELECT tasks.frontend FROM tasks
          WHERE {SQL_READY} AND pool = :pool AND priority = :priority AND tasks.frontend > waits.frontend
          ORDER BY pool, priority, tasks.frontend LIMIT 1)
  FROM waits WHERE waits.frontend IS NOT NULL
)
SELECT (SELECT count(*) FROM (
  SELECT 1 FROM tasks
  WHERE {SQL_READY} AND pool = :pool AND priority = :priority AND tasks.frontend = waits.frontend LIMIT {BOUND}
) AS counted) AS many
FROM waits WHERE waits.frontend IS NOT NULL AND waits.frontend <> :own
""")  # noqa: S608  made of our own words alone

_IN_ORDER = (TASKS.c.pool, TASKS.c.priority, TASKS.c.frontend, TASKS.c.id)
"""By which SQLite's planner finds the index of what is ready, and not that of what is QUEUED."""


class Reading(Room):
    async def get(self, reference: str) -> TaskRow:
        """The task with this id, or the only one whose id begins or ends so (four characters at least).

        Raises NotFound, with the near misses.
        """
        async with self._database.reading() as connection:
            return task_view(await find_task(connection, reference))

    async def expired(self, *, now: datetime) -> tuple[TaskRow, ...]:
        """Tasks whose runner has let its lease run out, oldest first."""
        return await self._read(select(TASKS).where(IS_HELD, TASKS.c.lease_expires_at <= now).order_by(TASKS.c.id))

    async def overdue(self, *, now: datetime) -> tuple[TaskRow, ...]:
        """Tasks that are not over and whose deadline has passed, the longest ago first; a thousand at most."""
        query = select(TASKS).where(IS_OPEN, TASKS.c.deadline_at <= now).order_by(TASKS.c.deadline_at).limit(1000)
        return await self._read(query)

    async def unfinished(self, task_id: str) -> tuple[str, ...]:
        """The tasks that this one depends on and that have not FINISHED, oldest first."""
        query = (
            select(DEPENDENCIES.c.on_task_id)
            .join(TASKS, TASKS.c.id == DEPENDENCIES.c.on_task_id)
            .where(DEPENDENCIES.c.task_id == task_id, TASKS.c.state != TaskState.FINISHED)
            .order_by(DEPENDENCIES.c.on_task_id)
        )
        async with self._database.reading() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def depends_on(self, task_id: str) -> tuple[str, ...]:
        """The tasks that this one waits or waited for, oldest first; those that were forgotten are left out."""
        query = select(DEPENDENCIES.c.on_task_id).where(DEPENDENCIES.c.task_id == task_id)
        async with self._database.reading() as connection:
            return tuple((await connection.execute(query.order_by(DEPENDENCIES.c.on_task_id))).scalars())

    async def waiting(self, pools: Collection[str], *, up_to: int = 1000) -> dict[str, int]:
        """How many tasks of each of these pools are ready to be claimed, counted to a bound, which costs no more than
        that however many wait. Also of queues that are paused."""
        async with self._database.reading() as connection:
            counted = {}
            for pool in pools:
                ready = select(literal(1)).where(READY, TASKS.c.pool == pool).order_by(*_IN_ORDER)
                counted[pool] = (await connection.execute(_bounded(ready, up_to))).scalar_one()
            return counted

    async def oldest_ready(self) -> dict[str, datetime]:
        """By pool, since when the longest has waited of the tasks that wait for nothing but room; pools without such a
        task are left out. It reads all of them: not for a loop that has anything else to do."""
        query = select(TASKS.c.pool, func.min(TASKS.c.admitted_at)).where(READY).group_by(TASKS.c.pool)
        async with self._database.reading() as connection:
            found = await connection.execute(query)
            return {row[0]: row[1] for row in found}

    async def counts(self) -> dict[tuple[str, TaskState], int]:
        """How many tasks each pool has in each state; none is not counted."""
        query = select(TASKS.c.pool, TASKS.c.state, func.count()).group_by(TASKS.c.pool, TASKS.c.state)
        async with self._database.reading() as connection:
            return {(pool, TaskState(state)): count for pool, state, count in await connection.execute(query)}

    async def ahead_of(self, task_id: str) -> QueuePlace | None:
        """What is before a task in its queue. None: it is not ready."""
        async with self._database.reading() as connection:
            task = (await connection.execute(select(TASKS).where(READY, TASKS.c.id == task_id))).first()
            if task is None:
                return None
            queue = select(literal(1)).where(READY, TASKS.c.pool == task.pool)
            own = queue.where(TASKS.c.priority == task.priority, TASKS.c.frontend == task.frontend)
            above = queue.where(TASKS.c.priority > task.priority).order_by(*_IN_ORDER)
            higher = (await connection.execute(_bounded(above))).scalar_one()
            own_before = (await connection.execute(_bounded(own.where(TASKS.c.id < task.id)))).scalar_one()
            place = {"pool": task.pool, "priority": task.priority, "own": task.frontend}
            others = tuple((await connection.execute(_OTHERS, place)).scalars())
        return QueuePlace(higher, own_before, others, any(count >= BOUND for count in (higher, own_before, *others)))

    async def throughput(self, pool: str, *, now: datetime, window_seconds: float = 3600.0) -> Throughput:
        """How many tasks of the pool ran and ended within the window (counted to 10,000), and how long they took."""
        query = (
            select(TASKS.c.started_at, TASKS.c.finished_at)
            .where(TASKS.c.pool == pool, TASKS.c.finished_at > now - timedelta(seconds=window_seconds))
            .where(TASKS.c.finished_at.is_not(None), TASKS.c.started_at.is_not(None))
            .order_by(TASKS.c.finished_at.desc())
            .limit(BOUND)
        )
        async with self._database.reading() as connection:
            took = [(end - start).total_seconds() for start, end in await connection.execute(query)]
        return Throughput(len(took), window_seconds, sum(took) / len(took) if took else None)

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


def _bounded(query: Select[Any], most: int = BOUND) -> Select[Any]:
    return select(func.count()).select_from(query.limit(most).subquery())
