"""Runners take tasks: one priority after the other, the frontends in turn, the oldest task of each first.

What a claim costs does not grow with the number of tasks that wait: each question is answered by the ends of a partial
index. Claimers of one queue take turns at its row, which makes `max_vms` and the turns hold across all runners.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, literal, select, text, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.task import MAX_PRIORITY, TaskSpec, TaskState
from orchestrator.store.attempts import begin_attempts
from orchestrator.store.encoding import spec_from_json
from orchestrator.store.events import EventKind, write_events
from orchestrator.store.guards import Room
from orchestrator.store.schema import IS_HELD, QUEUES, READY, SQL_READY, TASKS, VM_OPEN, VMS
from orchestrator.store.shares import share_out
from orchestrator.store.views import Claim, Lease, Row, task_view

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The frontends that wait with the highest priority below :below. Each step of the recursion is one look into the index
# on (pool, priority, frontend); DISTINCT would read every task that waits. ORDER BY with LIMIT in the index's own order
# is looked up whatever the planner believes of the number of rows; min() is not always.
_FRONTENDS = text(f"""
WITH RECURSIVE top(priority) AS (
  SELECT (SELECT priority FROM tasks WHERE {SQL_READY} AND pool = :pool AND priority < :below
          ORDER BY pool DESC, priority DESC LIMIT 1)
), waits(frontend) AS (
  SELECT (SELECT frontend FROM tasks
          WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
          ORDER BY pool, priority, frontend LIMIT 1)
  UNION ALL
  SELECT (SELECT tasks.frontend FROM tasks
          WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
          AND tasks.frontend > waits.frontend ORDER BY pool, priority, tasks.frontend LIMIT 1)
  FROM waits WHERE waits.frontend IS NOT NULL
)
SELECT (SELECT priority FROM top) AS priority, waits.frontend AS frontend, coalesce(shares.turn, 0) AS turn
FROM waits LEFT JOIN shares ON shares.pool = :pool AND shares.frontend = waits.frontend
WHERE waits.frontend IS NOT NULL
""")  # noqa: S608  made of our own words alone
_SERVED = text("""
INSERT INTO shares (pool, frontend, turn) VALUES (:pool, :frontend, :turn)
ON CONFLICT (pool, frontend) DO UPDATE SET turn = excluded.turn
""")


@dataclass(slots=True)
class _Queue:
    """One queue as a claimer sees it. `room`: how many more of it may be held; `held`: by frontend."""

    pool: str
    turn: int
    room: int
    held: Counter[str]


class Claiming(Room):
    async def claim(
        self,
        runner_id: str,
        room: Mapping[str, int],
        *,
        max_vms: Mapping[str, int],
        lease_seconds: float,
        now: datetime,
        deadline: Callable[[TaskSpec], datetime],
        up_to: int = 1,
        only: str | None = None,
    ) -> tuple[Claim, ...]:
        """Take up to so many ready tasks (or just the task `only`) and begin an attempt of each.

        room: how many of each pool can be placed now; none of others are taken. max_vms: how many VMs a pool may have
        over all runners, where it has a limit; a task that is held counts as one, whether its VM is there yet or not.
        deadline: when the attempt must be over. Queues that are paused give nothing. Of several pools, each gets
        an even part first, the one that was served longest ago first. The runner must be registered.
        """
        wanted = {pool: count for pool, count in room.items() if count > 0}
        if not wanted or up_to < 1:
            return ()
        async with self._database.writing() as connection:
            queues = await _queues(connection, wanted, max_vms)
            chosen: list[Row] = []
            for even in (True, False):
                for left, queue in zip(range(len(queues), 0, -1), queues, strict=True):
                    count = up_to - len(chosen)
                    count = min(queue.room, -(-count // left) if even else count)
                    if count > 0:
                        chosen += await _next(connection, queue, count, now, only, {row["id"] for row in chosen})
            claims = await _take(connection, chosen, runner_id, now + timedelta(seconds=lease_seconds), now, deadline)
            if claims:
                leases = [each.lease for each in claims]
                await begin_attempts(connection, leases, now=now)
                rows = [{"task_id": e.task_id, "attempt": e.attempt, "runner_id": e.runner_id} for e in leases]
                await write_events(connection, EventKind.TASK_CLAIMED, rows, now=now)
            return claims


async def _queues(connection: AsyncConnection, room: Mapping[str, int], max_vms: Mapping[str, int]) -> list[_Queue]:
    """Those that have a ready task, are not paused and have room, the one that was served longest ago first; locked."""
    ready = select(literal(1)).where(READY, TASKS.c.pool == QUEUES.c.pool).exists()
    # In one order, so that no two claimers wait for each other. A row that is not given out is not locked.
    query = (
        select(QUEUES.c.pool, QUEUES.c.turn)
        .where(QUEUES.c.pool.in_(tuple(room)), QUEUES.c.paused_at.is_(None), ready)
        .order_by(QUEUES.c.pool)
        .with_for_update()
    )
    turns: dict[str, int] = {row.pool: row.turn for row in await connection.execute(query)}
    if not turns:
        return []
    held: dict[str, Counter[str]] = {pool: Counter() for pool in turns}
    counted = (
        select(TASKS.c.pool, TASKS.c.frontend, func.count())
        .where(IS_HELD, TASKS.c.pool.in_(tuple(turns)))
        .group_by(TASKS.c.pool, TASKS.c.frontend)
    )
    for pool, frontend, count in await connection.execute(counted):
        held[pool][frontend] = count
    left_over: dict[str, int] = {}
    if limited := [pool for pool in turns if pool in max_vms]:
        its_task = select(literal(1)).where(TASKS.c.id == VMS.c.task_id, TASKS.c.attempt == VMS.c.attempt, IS_HELD)
        vms = (
            select(VMS.c.pool, func.count())
            .where(VM_OPEN, VMS.c.pool.in_(limited), ~its_task.exists())
            .group_by(VMS.c.pool)
        )
        left_over = {row[0]: row[1] for row in await connection.execute(vms)}
    queues = []
    for pool, turn in sorted(turns.items(), key=lambda item: item[1]):
        free = room[pool]
        if pool in max_vms:
            free = min(free, max_vms[pool] - held[pool].total() - left_over.get(pool, 0))
        if free > 0:
            queues.append(_Queue(pool, turn, free, held[pool]))
    return queues


async def _next(
    connection: AsyncConnection, queue: _Queue, count: int, now: datetime, only: str | None, taken: set[str]
) -> list[Row]:
    """The rows of the next `count` tasks of the queue, whose turns are written."""
    chosen: list[tuple[str, str]] = []
    last: dict[str, int] = {}
    turn = max(queue.turn, (now - _EPOCH) // timedelta(microseconds=1))
    if only is not None:
        query = select(TASKS.c.frontend, TASKS.c.id).where(READY, TASKS.c.pool == queue.pool, TASKS.c.id == only)
        chosen = [(row.frontend, row.id) for row in await connection.execute(query) if row.id not in taken]
        last = {frontend: turn + 1 for frontend, _ in chosen}
    below = MAX_PRIORITY + 1
    while only is None and len(chosen) < count:
        waits = (await connection.execute(_FRONTENDS, {"pool": queue.pool, "below": below})).all()
        if not waits:
            break
        below = waits[0].priority
        turns = {row.frontend: last.get(row.frontend, row.turn) for row in waits}
        # No more frontends than tasks can get one, and these are the first.
        first = sorted(turns, key=lambda name: (queue.held[name], turns[name], name))[:count]
        ids = await _ids(connection, queue.pool, below, first, count + len(taken))
        line = {name: [each for each in ids[name] if each not in taken] for name in first}
        served = share_out(line, queue.held, turns, count - len(chosen))
        last |= {frontend: turn + place for place, (frontend, _) in enumerate(served, start=len(chosen) + 1)}
        queue.held.update(frontend for frontend, _ in served)
        chosen += served
    if not chosen:
        return []
    await connection.execute(
        _SERVED, [{"pool": queue.pool, "frontend": name, "turn": each} for name, each in sorted(last.items())]
    )
    queue.turn = turn + len(chosen)
    queue.room -= len(chosen)
    await connection.execute(update(QUEUES).where(QUEUES.c.pool == queue.pool).values(turn=queue.turn))
    found = await connection.execute(select(TASKS).where(TASKS.c.id.in_([task_id for _, task_id in chosen])))
    rows = {row["id"]: row for row in found.mappings()}
    return [rows[task_id] for _, task_id in chosen if task_id in rows]


async def _ids(
    connection: AsyncConnection, pool: str, priority: int, frontends: Sequence[str], count: int
) -> dict[str, list[str]]:
    """The oldest ready tasks of each of these frontends, up to `count` of each."""
    each = [
        select(TASKS.c.frontend, TASKS.c.id)
        .where(READY, TASKS.c.pool == pool, TASKS.c.priority == priority, TASKS.c.frontend == frontend)
        .order_by(TASKS.c.id)
        .limit(count)
        .subquery()
        for frontend in frontends
    ]
    ids: dict[str, list[str]] = {frontend: [] for frontend in frontends}
    for frontend, task_id in await connection.execute(union_all(*(select(one) for one in each))):
        ids[frontend].append(task_id)
    return {frontend: sorted(found) for frontend, found in ids.items()}


async def _take(
    connection: AsyncConnection,
    chosen: Sequence[Row],
    runner_id: str,
    lease_expires_at: datetime,
    now: datetime,
    deadline: Callable[[TaskSpec], datetime],
) -> tuple[Claim, ...]:
    """Hold them. One that was canceled a moment ago is left out."""
    if not chosen:
        return ()
    ends: dict[datetime, list[str]] = {}
    for row in chosen:
        ends.setdefault(deadline(spec_from_json(row["spec"])), []).append(row["id"])
    values: dict[str, Any] = {
        "state": TaskState.RUNNING,
        "attempt": TASKS.c.attempt + 1,
        "runner_id": runner_id,
        "lease_expires_at": lease_expires_at,
        "started_at": func.coalesce(TASKS.c.started_at, literal(now, TASKS.c.started_at.type)),
        "reason": None,
        "message": "",
    }
    taken: dict[str, Row] = {}
    for deadline_at, ids in ends.items():
        guarded = update(TASKS).where(TASKS.c.id.in_(bindparam("ids", expanding=True)), READY)
        changed = ("id", "state", "attempt", "runner_id", "lease_expires_at", "started_at", "deadline_at")
        held = guarded.values(values | {"deadline_at": deadline_at}).returning(*(TASKS.c[name] for name in changed))
        for row in (await connection.execute(held, {"ids": ids})).mappings():
            taken[row["id"]] = dict(row)
    claims = []
    for row in chosen:
        if row["id"] in taken:
            whole = {**row, "reason": None, "message": "", **taken[row["id"]]}
            claims.append(Claim(task_view(whole), Lease(row["id"], whole["attempt"], runner_id)))
    return tuple(claims)
