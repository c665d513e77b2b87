"""Tasks end, or go back to their queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, literal, null, update

from orchestrator.domain.outcome import CANCELED_EXIT, PLATFORM_EXIT, Reason
from orchestrator.domain.task import LEGAL_MOVES, TaskState
from orchestrator.store.attempts import END_ATTEMPT, end_attempt
from orchestrator.store.bell import Bell
from orchestrator.store.chain import Chain
from orchestrator.store.columns import as_utc
from orchestrator.store.conditions import OVER
from orchestrator.store.engine import Database
from orchestrator.store.events import LEASE_EVENT, EventKind, write_event
from orchestrator.store.grouped import Grouped, guarded
from orchestrator.store.guards import HELD_BY_V, IN_ORDER, LEASE, LET_GO, Room, applied, given_by, legal
from orchestrator.store.schema import TASKS
from orchestrator.store.search import find_task
from orchestrator.store.transitions import Finished, Requeued
from orchestrator.store.views import TaskRow, task_view

_ENDS = {
    TaskState.FINISHED: EventKind.TASK_FINISHED,
    TaskState.FAILED: EventKind.TASK_FAILED,
    TaskState.CANCELED: EventKind.TASK_CANCELED,
}
_OVER = {"deadline_at": None, "admitted_at": None}


_FINISH = Chain(
    {
        **LEASE,
        "at": datetime,
        "iso": str,
        "state": str,
        "reason": str,
        "message": str,
        "exit_code": int,
        "if_expired": bool,
        "kind": str,
        "data": dict,
    },
    f"""
    UPDATE tasks SET state = v.state, reason = v.reason, message = v.message, exit_code = v.exit_code,
      finished_at = v.at, stage = NULL, runner_id = NULL, lease_expires_at = NULL, deadline_at = NULL,
      admitted_at = NULL
    FROM v WHERE {HELD_BY_V} AND (tasks.state, v.state) IN {legal(LEGAL_MOVES)}
      AND (NOT v.if_expired OR tasks.lease_expires_at <= v.at)
    RETURNING tasks.id AS task_id
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str},
    events=LEASE_EVENT,
    then=(END_ATTEMPT,),
    locked=IN_ORDER,
)

_UNWANTED = "tasks.cancel_requested_at IS NOT NULL"
_REQUEUE = Chain(
    {
        **LEASE,
        "at": datetime,
        "iso": str,
        "reason": str,
        "message": str,
        "admitted_at": datetime,
        "not_before": datetime,
        "deadline_at": datetime,
        "avoid": dict,
        "if_expired": bool,
        "data": dict,
    },
    f"""
    UPDATE tasks SET stage = NULL, runner_id = NULL, lease_expires_at = NULL, message = v.message, avoid = v.avoid,
      not_before = v.not_before,
      state = CASE WHEN {_UNWANTED} THEN '{TaskState.CANCELED}' ELSE '{TaskState.QUEUED}' END,
      reason = CASE WHEN {_UNWANTED} THEN '{Reason.CANCELED}' ELSE v.reason END,
      exit_code = CASE WHEN {_UNWANTED} THEN {CANCELED_EXIT} END,
      finished_at = CASE WHEN {_UNWANTED} THEN v.at END,
      admitted_at = CASE WHEN {_UNWANTED} THEN NULL ELSE v.admitted_at END,
      deadline_at = CASE WHEN {_UNWANTED} THEN NULL ELSE v.deadline_at END
    FROM v WHERE {HELD_BY_V} AND (NOT v.if_expired OR tasks.lease_expires_at <= v.at)
    RETURNING tasks.id AS task_id, tasks.state
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str, "state": str},
    events=f"""
    INSERT INTO events (at, kind, task_id, attempt, runner_id, data)
    SELECT v.at,
      CASE t.state WHEN '{TaskState.QUEUED}' THEN '{EventKind.TASK_REQUEUED}' ELSE '{EventKind.TASK_CANCELED}' END,
      v.task_id, v.attempt, v.runner_id, v.data
    FROM v JOIN t ON t.task_id = v.task_id ORDER BY v.place
    """,  # noqa: S608
    then=(END_ATTEMPT,),
    locked=IN_ORDER,
)


class Ending(Room):
    def __init__(self, database: Database, bell: Bell) -> None:
        super().__init__(database, bell)
        self._finish = guarded(database, _FINISH, "task_id")
        self._requeue = Grouped(self._requeue_all, key=lambda row: row["task_id"])

    async def reject(self, task_id: str, reason: Reason, message: str, *, now: datetime) -> bool:
        """QUEUED → FAILED, before any attempt: it can never run. False: it is not QUEUED."""
        async with self._database.writing() as connection:
            guarded = update(TASKS).where(TASKS.c.id == task_id, TASKS.c.state == TaskState.QUEUED)
            values = {
                **_OVER,
                "state": TaskState.FAILED,
                "reason": reason,
                "message": message,
                "exit_code": PLATFORM_EXIT,
                "finished_at": now,
            }
            if not await applied(connection, guarded.values(values)):
                return False
            data = {"reason": reason, "message": message}
            await write_event(connection, EventKind.TASK_FAILED, now=now, task_id=task_id, data=data)
            return True

    async def finish(self, finished: Finished, *, now: datetime, if_expired: bool = False) -> bool:
        """The task is over. False: stale. `if_expired`: upkeep writes it for a runner that let its lease run out;
        False then too if the runner is back."""
        return await self._finish(
            {
                **given_by(finished.lease),
                "at": now,
                "iso": now.isoformat(),
                "state": finished.state.value,
                "reason": finished.reason,
                "message": finished.message,
                "exit_code": finished.exit_code,
                "if_expired": if_expired,
                "kind": _ENDS[finished.state].value,
                "data": {"reason": finished.reason, "message": finished.message, "exit_code": finished.exit_code},
            }
        )

    async def requeue(self, requeued: Requeued, *, now: datetime, if_expired: bool = False) -> TaskState | None:
        """Back to QUEUED, or to CANCELED if that was asked for meanwhile: the state it went to. None: stale.
        `if_expired` as in `finish`. What may be tried again at once is ready at once; upkeep admits the rest."""
        now = as_utc(now)
        wait = requeued.not_before is not None and requeued.not_before > now
        state = await self._requeue(
            {
                **given_by(requeued.lease),
                "at": now,
                "iso": now.isoformat(),
                "reason": requeued.reason.value,
                "message": requeued.message,
                "admitted_at": None if wait else now,
                "not_before": requeued.not_before,
                "deadline_at": requeued.deadline_at,
                "avoid": list(requeued.avoid),
                "if_expired": if_expired,
                "data": {"reason": requeued.reason, "message": requeued.message},
            }
        )
        if state is TaskState.QUEUED and not wait:
            self._bell.ring()
        return state

    async def _requeue_all(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[TaskState | None]:
        async with self._database.writing_at_once() as connection:
            went = {row["task_id"]: TaskState(row["state"]) for row in await _REQUEUE.run(connection, rows)}
        return [went.get(row["task_id"]) for row in rows]

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
                deadline_at=case((waits, null()), else_=TASKS.c.deadline_at),
                admitted_at=case((waits, null()), else_=TASKS.c.admitted_at),
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

    async def end_overdue(self, row: TaskRow, message: str, *, now: datetime) -> bool:
        """The deadline of the task, as it was read, has passed: FAILED, or CANCELED if it was never released. False:
        it has moved on since. A runner that holds it hears so with its next heartbeat."""
        state = TaskState.CANCELED if row.state is TaskState.NEW else TaskState.FAILED
        values: dict[str, Any] = {
            **LET_GO,
            **_OVER,
            "state": state,
            "reason": Reason.DEADLINE_PASSED,
            "message": message,
            "exit_code": PLATFORM_EXIT,
            "finished_at": now,
        }
        guard = and_(
            TASKS.c.id == row.id,
            TASKS.c.state == row.state,
            TASKS.c.attempt == row.attempt,
            TASKS.c.runner_id.is_(None) if row.runner_id is None else TASKS.c.runner_id == row.runner_id,
            TASKS.c.deadline_at == row.deadline_at,
            TASKS.c.deadline_at <= now,
        )
        async with self._database.writing() as connection:
            if not await applied(connection, update(TASKS).where(guard).values(values)):
                return False
            if row.lease is not None:
                await end_attempt(connection, row.lease, now=now)
            data = {"reason": Reason.DEADLINE_PASSED, "message": message, "exit_code": PLATFORM_EXIT}
            await write_event(
                connection,
                _ENDS[state],
                now=now,
                task_id=row.id,
                attempt=row.attempt or None,
                runner_id=row.runner_id,
                data=data,
            )
            return True
