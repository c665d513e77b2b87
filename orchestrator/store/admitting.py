"""Tasks whose time has come, or that have nothing to wait for any more, become ready; others never will."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import literal, or_, select, update

from orchestrator.domain.outcome import PLATFORM_EXIT, Reason
from orchestrator.domain.task import TaskState
from orchestrator.store.events import EventKind, write_events
from orchestrator.store.guards import Room, unfinished
from orchestrator.store.schema import DEPENDENCIES, PENDING, TASKS

_LOST = (TaskState.FAILED.value, TaskState.CANCELED.value)

_NEVER = "a task that it depends on did not finish"


class Admitting(Room):
    async def admit(self, *, now: datetime, limit: int = 500) -> tuple[str, ...]:
        """Let in what is due; end what depends on a task that will never have FINISHED, which ends what depends on that
        in the next round. The ids of all that were moved."""
        other = TASKS.alias("other")
        lost = (
            select(literal(1))
            .select_from(DEPENDENCIES.join(other, other.c.id == DEPENDENCIES.c.on_task_id))
            .where(DEPENDENCIES.c.task_id == TASKS.c.id, other.c.state.in_(_LOST))
            .correlate(TASKS)
            .exists()
        )
        pending = select(TASKS.c.id, lost.label("lost")).where(PENDING, or_(~unfinished(), lost))
        # What is for later is not looked at, but for the few of it that depend on something.
        depends = TASKS.c.id.in_(select(DEPENDENCIES.c.task_id))
        asked = (
            pending.where(TASKS.c.not_before.is_(None)),
            pending.where(TASKS.c.not_before <= now),
            select(TASKS.c.id, literal(True).label("lost")).where(PENDING, TASKS.c.not_before > now, depends, lost),
        )
        found: list[Any] = []
        async with self._database.writing() as connection:
            for query in asked:
                # Another that admits at the same time passes these by.
                locked = query.limit(limit).with_for_update(of=TASKS, skip_locked=True, key_share=True)
                found += (await connection.execute(locked)).all()
            ready = [row.id for row in found if not row.lost]
            never = [row.id for row in found if row.lost]
            if ready:
                admitted = update(TASKS).where(TASKS.c.id.in_(ready), PENDING).values(admitted_at=now)
                await connection.execute(admitted)
            if never:
                values = {
                    "state": TaskState.FAILED,
                    "reason": Reason.DEPENDENCY_FAILED,
                    "message": _NEVER,
                    "exit_code": PLATFORM_EXIT,
                    "finished_at": now,
                    "deadline_at": None,
                }
                await connection.execute(update(TASKS).where(TASKS.c.id.in_(never), PENDING).values(values))
            data = {"reason": Reason.DEPENDENCY_FAILED, "message": _NEVER}
            await write_events(connection, EventKind.TASK_ADMITTED, [{"task_id": each} for each in ready], now=now)
            ended = [{"task_id": each, "data": data} for each in never]
            await write_events(connection, EventKind.TASK_FAILED, ended, now=now)
        if ready:
            self._bell.ring()
        return (*ready, *never)

    async def shorten_waits(self, *, now: datetime, longest_seconds: Mapping[str, float]) -> int:
        """Cut what tasks that were tried wait for their next attempt to the longest of their pool, since a clock jumped
        back: how many."""
        cut = 0
        async with self._database.writing() as connection:
            for pool, seconds in longest_seconds.items():
                most = now + timedelta(seconds=seconds)
                waits = (PENDING, TASKS.c.not_before > most, TASKS.c.attempt > 0, TASKS.c.pool == pool)
                cut += (await connection.execute(update(TASKS).where(*waits).values(not_before=most))).rowcount
        return cut
