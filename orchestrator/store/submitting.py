"""Tasks come in: submitted, described further, released."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, insert, literal, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.errors import InvalidTask, NotFound, NotPossible
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.store.bell import Bell
from orchestrator.store.columns import kept
from orchestrator.store.encoding import spec_from_json, spec_to_json
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event
from orchestrator.store.grouped import Grouped
from orchestrator.store.guards import Room, add_queues, is_due
from orchestrator.store.putting import Submission, put, put_waiting
from orchestrator.store.schema import DEPENDENCIES, INSTALLATION, TASKS
from orchestrator.store.views import Row, TaskRow, task_view

MAX_SPEC_BYTES = 256 * 1024
"""Of a task's description as JSON."""
_COUNT_AGAIN_SECONDS = 1.0
_TRIES = 5
_MANY = 10

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
        self._put = Grouped(self._put_all, key=lambda submission: submission)

    async def submit(
        self,
        spec: TaskSpec,
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str = "local",
        submitted_by: str = "",
        idempotency_key: str | None = None,
        hold: bool = False,
        max_waiting: int | None = None,
    ) -> TaskRow:
        """Write a new task: QUEUED, or NEW with `hold`, to be released later. The spec is taken as valid.

        deadline_at: when it fails if nobody has claimed it. submitted_by: who wants it. idempotency_key: the task that
        this frontend submitted with it before, if it did. max_waiting: how many tasks of the pool may be QUEUED, about
        (they are not counted at each submit while there is room for many). Raises InvalidTask (too large, a dependency
        that cannot be waited for) and NotPossible (`pool`: full; `idempotency_key`: used for another task).
        """
        data = [_encoded(spec)]
        [made] = await self._submit(
            Submission((spec,), data, now, deadline_at, frontend, idempotency_key, hold, max_waiting, submitted_by)
        )
        return made

    async def submit_many(
        self,
        specs: Sequence[TaskSpec],
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str = "local",
        submitted_by: str = "",
        hold: bool = False,
        max_waiting: int | None = None,
    ) -> tuple[TaskRow, ...]:
        """As `submit`: all of them, in this order, or none."""
        if not specs:
            return ()
        data = [_encoded(spec) for spec in specs]
        return await self._submit(
            Submission(specs, data, now, deadline_at, frontend, None, hold, max_waiting, submitted_by)
        )

    async def _submit(self, submission: Submission) -> tuple[TaskRow, ...]:
        for last in range(_TRIES)[::-1]:
            try:
                if self._is_plain(submission):
                    # Many go by themselves: several connections write them at the same time.
                    many = len(submission.specs) > _MANY
                    rows = (await self._put_all((submission,)))[0] if many else await self._put(submission)
                else:
                    async with self._database.writing() as connection:
                        rows = await self._write(connection, submission)
            except IntegrityError:
                # The same key at the same time, a dependency pruned this moment, or one in 2**30 for two tasks of the
                # same millisecond: what it was shows when it is tried again.
                if not last:
                    raise
            else:
                self._with_row |= {spec.pool for spec in submission.specs}
                self._bell.ring()
                return rows
        raise AssertionError("unreachable")

    def _is_plain(self, submission: Submission) -> bool:
        """Nothing need be read before it is written. Room is taken for it."""
        pools = Counter(spec.pool for spec in submission.specs)
        return (
            submission.key is None
            and not submission.depends
            and pools.keys() <= self._with_row
            and (submission.max_waiting is None or all(self._take_room(*each) for each in pools.items()))
        )

    async def _put_all(self, group: Sequence[Submission]) -> Sequence[tuple[TaskRow, ...]]:
        rows = [submission.rows({}) for submission in group]
        async with self._database.writing_at_once() as connection:
            await put(connection, [row for each in rows for row in each])
        return [submission.made(each) for submission, each in zip(group, rows, strict=True)]

    async def submit_in(
        self,
        connection: AsyncConnection,
        spec: TaskSpec,
        *,
        now: datetime,
        deadline_at: datetime,
        frontend: str,
        submitted_by: str = "",
        idempotency_key: str | None = None,
        max_waiting: int | None = None,
    ) -> TaskRow:
        """As `submit`, within the transaction of `connection`, whose IntegrityError and wake-up are the caller's."""
        submission = Submission(
            (spec,), [_encoded(spec)], now, deadline_at, frontend, idempotency_key, False, max_waiting, submitted_by
        )
        [made] = await self._write(connection, submission)
        return made

    def ring(self) -> None:
        """A task was submitted, and its transaction is committed."""
        self._bell.ring()

    async def _write(self, connection: AsyncConnection, submission: Submission) -> tuple[TaskRow, ...]:
        frontend, key, specs = submission.frontend, submission.key, submission.specs
        if key is not None and not kept(key):
            raise InvalidTask("idempotency_key", f"{key!r} has a character that no database keeps", "give another key")
        if key is not None and (before := await _with_key(connection, frontend, key)) is not None:
            # Not as JSON: that of a former version lacks what there was not then.
            if spec_from_json(before["spec"]) != spec_from_json(json.loads(submission.encoded[0])):
                raise NotPossible("idempotency_key", f"{key!r} was used for another task", "give another key")
            return (task_view(before),)
        pools = Counter(spec.pool for spec in specs)
        if new := pools.keys() - self._with_row:
            await add_queues(connection, new)
        if submission.max_waiting is not None:
            for pool, wanted in pools.items():
                await self._see_room(connection, pool, wanted, submission.max_waiting)
        rows = submission.rows(await _dependencies(connection, specs, frontend))
        if submission.depends:
            await put_waiting(connection, rows, submission.waits(rows), submission.now)
        else:
            await put(connection, rows)
        return submission.made(rows)

    async def _see_room(self, connection: AsyncConnection, pool: str, wanted: int, most: int) -> None:
        """Counting costs time for each task that waits: it is not done again before a tenth of the room is used."""
        if self._take_room(pool, wanted):
            return
        waiting = select(literal(1)).where(TASKS.c.state == TaskState.QUEUED, TASKS.c.pool == pool).limit(most)
        count = (await connection.execute(select(func.count()).select_from(waiting.subquery()))).scalar_one()
        if count + wanted > most:
            problem = f"its queue is full: {count} of {most} tasks wait"
            raise NotPossible("pool", f"{pool}: {problem}", "submit again later")
        self._room[pool] = time.monotonic() + _COUNT_AGAIN_SECONDS, max(wanted, (most - count) // 10) - wanted

    def _take_room(self, pool: str, wanted: int) -> bool:
        """Of what was counted. False: it is to be counted again."""
        until, left = self._room.get(pool, (0.0, 0))
        if time.monotonic() > until or left < wanted:
            return False
        self._room[pool] = until, left - wanted
        return True

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


def _encoded(spec: TaskSpec) -> str:
    text = json.dumps(spec_to_json(spec), allow_nan=False)
    if len(text) > MAX_SPEC_BYTES:
        problem = f"its description takes {len(text)} bytes as JSON, at most {MAX_SPEC_BYTES} are allowed"
        raise InvalidTask("task", problem, "give large data as an input")
    return text


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
