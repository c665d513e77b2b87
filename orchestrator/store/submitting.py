"""Tasks come in: submitted, described further, released."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, literal, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.errors import InvalidTask, NotFound, NotPossible
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.store.bell import Bell
from orchestrator.store.columns import as_utc, kept
from orchestrator.store.encoding import Json, spec_to_json
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event, write_events
from orchestrator.store.guards import Room, add_queues, is_due
from orchestrator.store.ids import new_id
from orchestrator.store.schema import DEPENDENCIES, INSTALLATION, TASKS
from orchestrator.store.views import Row, TaskRow, task_view

MAX_SPEC_BYTES = 256 * 1024
"""Of a task's description as JSON."""
_COUNT_AGAIN_SECONDS = 1.0
_TRIES = 5

# Everything that some tasks wait for, and what that waits for, and so on.
_CYCLE = text("""
WITH RECURSIVE needed(id) AS (
  SELECT on_task_id FROM dependencies WHERE task_id = :task
  UNION SELECT d.on_task_id FROM dependencies d JOIN needed ON d.task_id = needed.id
) SELECT id FROM needed WHERE id = :task
""")


class Submitting(Room):
    def __init__(self, database: Database, bell: Bell) -> None:
        super().__init__(database, bell)
        self._with_row: set[str] = set()
        self._room: dict[str, tuple[float, int]] = {}
        """By pool: until when, by the monotonic clock, how many more may come before they are counted again."""

    async def submit(
        self,
        spec: TaskSpec,
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str = "local",
        idempotency_key: str | None = None,
        hold: bool = False,
        max_waiting: int | None = None,
    ) -> TaskRow:
        """Write a new task: QUEUED, or NEW with `hold`, to be released later. The spec is taken as valid.

        deadline_at: when it fails if nobody has claimed it. idempotency_key: the task that this frontend submitted with
        it before, if it did. max_waiting: how many tasks of the pool may be QUEUED, about (they are not counted at each
        submit while there is room for many). Raises InvalidTask (too large, a dependency that cannot be waited for) and
        NotPossible (`pool`: full; `idempotency_key`: used for another task).
        """
        options = {"frontend": frontend, "idempotency_key": idempotency_key, "hold": hold}
        [made] = await self._submit((spec,), now, deadline_at, options, max_waiting)
        return made

    async def submit_many(
        self,
        specs: Sequence[TaskSpec],
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str = "local",
        hold: bool = False,
        max_waiting: int | None = None,
    ) -> tuple[TaskRow, ...]:
        """As `submit`: all of them, in this order, or none."""
        options = {"frontend": frontend, "idempotency_key": None, "hold": hold}
        return await self._submit(specs, now, deadline_at, options, max_waiting) if specs else ()

    async def _submit(
        self,
        specs: Sequence[TaskSpec],
        now: datetime,
        deadline_at: datetime,
        options: Mapping[str, Any],
        max_waiting: int | None,
    ) -> tuple[TaskRow, ...]:
        encoded = [_encoded(spec) for spec in specs]
        for last in range(_TRIES)[::-1]:
            try:
                async with self._database.writing() as connection:
                    rows = await self._write(connection, specs, encoded, now, deadline_at, options, max_waiting)
            except IntegrityError:
                # The same key at the same time, a dependency pruned this moment, or one in 2**30 for two tasks of the
                # same millisecond: what it was shows when it is tried again.
                if not last:
                    raise
            else:
                self._with_row |= {spec.pool for spec in specs}
                self._bell.ring()
                return rows
        raise AssertionError("unreachable")

    async def submit_in(
        self,
        connection: AsyncConnection,
        spec: TaskSpec,
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str,
        idempotency_key: str,
    ) -> TaskRow:
        """As `submit`, within the transaction of `connection`, whose IntegrityError and wake-up are the caller's."""
        options = {"frontend": frontend, "idempotency_key": idempotency_key, "hold": False}
        [made] = await self._write(connection, (spec,), [_encoded(spec)], now, deadline_at, options, None)
        return made

    def ring(self) -> None:
        """A task was submitted, and its transaction is committed."""
        self._bell.ring()

    async def _write(
        self,
        connection: AsyncConnection,
        specs: Sequence[TaskSpec],
        encoded: Sequence[Json],
        now: datetime,
        deadline_at: datetime,
        options: Mapping[str, Any],
        max_waiting: int | None,
    ) -> tuple[TaskRow, ...]:
        frontend, key = options["frontend"], options["idempotency_key"]
        now, deadline_at = as_utc(now), as_utc(deadline_at)
        if key is not None and not kept(key):
            raise InvalidTask("idempotency_key", f"{key!r} has a character that no database keeps", "give another key")
        if key is not None and (before := await _with_key(connection, frontend, key)) is not None:
            if before["spec"] != encoded[0]:
                raise NotPossible("idempotency_key", f"{key!r} was used for another task", "give another key")
            return (task_view(before),)
        if new := {spec.pool for spec in specs} - self._with_row:
            await add_queues(connection, new)
        if max_waiting is not None:
            for pool in {spec.pool for spec in specs}:
                await self._see_room(connection, pool, sum(spec.pool == pool for spec in specs), max_waiting)
        states = await _dependencies(connection, specs, frontend)
        ids: set[str] = set()
        while len(ids) < len(specs):
            ids.add(new_id(now))
        rows = []
        for task_id, spec, data in zip(sorted(ids), specs, encoded, strict=True):
            terms = spec.terms
            due = (terms.not_before is None or terms.not_before <= now) and all(
                states[other] is TaskState.FINISHED for other in terms.depends_on
            )
            rows.append(
                {
                    "id": task_id,
                    "name": spec.name,
                    "pool": spec.pool,
                    "spec": data,
                    "state": TaskState.NEW if options["hold"] else TaskState.QUEUED,
                    "stage": None,
                    "reason": None,
                    "message": "",
                    "exit_code": None,
                    "attempt": 0,
                    "runner_id": None,
                    "lease_expires_at": None,
                    "cancel_requested_at": None,
                    "submitted_at": now,
                    "started_at": None,
                    "finished_at": None,
                    "frontend": frontend,
                    "priority": terms.priority,
                    "admitted_at": now if due and not options["hold"] else None,
                    "not_before": None if terms.not_before is None else as_utc(terms.not_before),
                    "idempotency_key": key,
                    "delivery": terms.delivery.value,
                    "deadline_at": deadline_at,
                    "avoid": [],
                }
            )
        await connection.execute(insert(TASKS), rows)
        made = [task_view(row) for row in rows]
        waits = [
            {"task_id": row.id, "on_task_id": other}
            for row in made
            for other in dict.fromkeys(row.spec.terms.depends_on)
        ]
        if waits:
            await connection.execute(insert(DEPENDENCIES), waits)
        await write_events(connection, EventKind.TASK_SUBMITTED, [{"task_id": row.id} for row in made], now=now)
        return tuple(made)

    async def _see_room(self, connection: AsyncConnection, pool: str, wanted: int, most: int) -> None:
        """Counting costs time for each task that waits: it is not done again before a tenth of the room is used."""
        until, left = self._room.get(pool, (0.0, 0))
        if time.monotonic() > until or left < wanted:
            waiting = select(literal(1)).where(TASKS.c.state == TaskState.QUEUED, TASKS.c.pool == pool).limit(most)
            count = (await connection.execute(select(func.count()).select_from(waiting.subquery()))).scalar_one()
            if count + wanted > most:
                problem = f"its queue is full: {count} of {most} tasks wait"
                raise NotPossible("pool", f"{pool}: {problem}", "submit again later")
            until, left = time.monotonic() + _COUNT_AGAIN_SECONDS, max(wanted, (most - count) // 10)
        self._room[pool] = until, left - wanted

    async def depend(self, task_id: str, on: Collection[str], *, now: datetime) -> None:
        """Let a task that is NEW wait for these too. Raises NotFound, NotPossible (not NEW any more) and InvalidTask
        (`depends_on`: unknown, over without success, or a cycle)."""
        async with self._database.writing() as connection:
            # One at a time: two could close a cycle together.
            await connection.execute(select(INSTALLATION.c.id).with_for_update())
            found = await connection.execute(select(TASKS).where(TASKS.c.id == task_id).with_for_update(key_share=True))
            row = found.mappings().first()
            if row is None:
                raise NotFound("task", f"no task {task_id!r}", "see `mayfly list`")
            if row["state"] != TaskState.NEW:
                raise NotPossible("task", f"{task_id} is {row['state']}", "only one that is held can wait for more")
            await _states(connection, tuple(on), row["frontend"])
            there = select(DEPENDENCIES.c.on_task_id).where(DEPENDENCIES.c.task_id == task_id)
            new = set(on) - set((await connection.execute(there)).scalars())
            if new:
                rows = [{"task_id": task_id, "on_task_id": other} for other in sorted(new)]
                await connection.execute(insert(DEPENDENCIES), rows)
            if (await connection.execute(_CYCLE, {"task": task_id})).first() is not None:
                through = ", ".join(sorted(new))
                raise InvalidTask("depends_on", f"a cycle: {task_id} would wait for itself, through {through}")
            data = {"message": f"waits for {', '.join(sorted(new))}"}
            await write_event(connection, EventKind.NOTE, now=now, task_id=task_id, data=data)

    async def release(self, task_id: str, *, now: datetime) -> bool:
        """NEW → QUEUED. False: it is not NEW."""
        async with self._database.writing() as connection:
            guarded = update(TASKS).where(TASKS.c.id == task_id, TASKS.c.state == TaskState.NEW)
            went = guarded.values(state=TaskState.QUEUED).returning(TASKS.c.id)
            if (await connection.execute(went)).first() is None:
                return False
            # Deadlines and dependencies are looked at by the same statement as at an admission.
            due = update(TASKS).where(TASKS.c.id == task_id, is_due(now)).values(admitted_at=now)
            await connection.execute(due)
            await write_event(connection, EventKind.TASK_RELEASED, now=now, task_id=task_id)
        self._bell.ring()
        return True


def _encoded(spec: TaskSpec) -> Json:
    data = spec_to_json(spec)
    size = len(json.dumps(data))
    if size > MAX_SPEC_BYTES:
        problem = f"its description takes {size} bytes as JSON, at most {MAX_SPEC_BYTES} are allowed"
        raise InvalidTask("task", problem, "give large data as an input")
    return data


async def _with_key(connection: AsyncConnection, frontend: str, key: str) -> Row | None:
    query = select(TASKS).where(TASKS.c.frontend == frontend, TASKS.c.idempotency_key == key)
    return (await connection.execute(query)).mappings().first()


async def _dependencies(
    connection: AsyncConnection, specs: Sequence[TaskSpec], frontend: str
) -> Mapping[str, TaskState]:
    wanted = tuple(dict.fromkeys(other for spec in specs for other in spec.terms.depends_on))
    return await _states(connection, wanted, frontend) if wanted else {}


async def _states(connection: AsyncConnection, wanted: Sequence[str], frontend: str) -> Mapping[str, TaskState]:
    query = select(TASKS.c.id, TASKS.c.state).where(TASKS.c.id.in_(wanted), TASKS.c.frontend == frontend)
    states = {row.id: TaskState(row.state) for row in await connection.execute(query)}
    for other in wanted:
        if other not in states:  # of another frontend, or of none: nobody learns which
            raise InvalidTask("depends_on", f"no task {other!r}", "give whole ids of tasks of your own")
        if states[other] in (TaskState.FAILED, TaskState.CANCELED):
            raise InvalidTask("depends_on", f"task {other} is {states[other]} already", "it will never have finished")
    return states
