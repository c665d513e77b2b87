"""Submit the tasks of recurring schedules when they are due, each instant once.

The task and the schedule's next instant are written in one transaction, the task under a key made of the schedule's
name and the instant: a scheduler that dies, or two that act, submit no second one.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from orchestrator.decide.deadlines import of_queued
from orchestrator.domain.errors import NotPossible, UserError
from orchestrator.domain.pool import Pool
from orchestrator.scheduler.recurrence import Recurrence
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import ScheduleRow

CATCH_UP_AT_MOST = 100
"""Instants that were missed; of more, the newest are made up for."""


class Schedules:
    """The chore."""

    interval_seconds = 1.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._problems: dict[str, str] = {}

    async def run_once(self) -> list[str]:
        """Every schedule that is due. One whose task is refused (its queue is full) stays due; that is told once."""
        store = self._upkeep.store
        now = store.clock.now()
        lines = []
        for row in await store.schedules.list():
            if row.paused_at is not None or row.next_at > now:
                continue
            try:
                lines += await self._submit(row, now)
                self._problems.pop(row.name, None)
            except UserError as problem:
                if self._problems.get(row.name) != str(problem):
                    lines.append(f"schedule {row.name}: no task is submitted: {problem}")
                self._problems[row.name] = str(problem)
        return lines

    async def _submit(self, row: ScheduleRow, now: datetime) -> list[str]:
        schedules = self._upkeep.store.schedules
        pool = self._upkeep.pools.get(row.spec.pool) or Pool(name=row.spec.pool, image="")
        recurrence = Recurrence(row.cron, row.interval_seconds, row.time_zone)
        due = recurrence.missed(row.next_at, now, limit=CATCH_UP_AT_MOST if row.catch_up else 1)
        await self._see_room(pool, len(due))
        deadline = of_queued(row.spec.terms, pool, now)
        if due[0] != row.next_at:
            await schedules.advance(row.name, row.next_at, None, due[0], now=now, deadline_at=deadline)
        lines = []
        for instant, following in pairwise((*due, recurrence.after(now, anchor=row.next_at))):
            task = await schedules.advance(row.name, instant, row.spec, following, now=now, deadline_at=deadline)
            if task is None:  # another scheduler has done it, or somebody has paused it
                break
            lines.append(f"schedule {row.name}: task {task.id} for {instant.isoformat(timespec='seconds')}")
        return lines

    async def _see_room(self, pool: Pool, wanted: int) -> None:
        waiting = sum(queue.waiting for queue in await self._upkeep.store.queues.list() if queue.pool == pool.name)
        if waiting + wanted > pool.max_waiting:
            raise NotPossible("pool", f"{pool.name}: its queue is full: {waiting} of {pool.max_waiting} tasks wait")
