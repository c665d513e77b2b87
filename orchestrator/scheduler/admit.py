"""Let in what is due: a task whose time has come and whose dependencies have FINISHED may be claimed from now on."""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.scheduler.upkeep import Upkeep

AT_ONCE = 500
ALL_EVERY = timedelta(seconds=30)
"""How often all that wait are looked at, and not just what has changed: for a change that was written so late that the
rounds after it had looked further already."""
LATE = timedelta(seconds=5)
"""How late a change may be written, and still be seen by the next round."""


class Admit:
    """The chore. How often it comes is the longest that such a task waits for nothing."""

    interval_seconds = 0.5
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._tasks = upkeep.store.tasks
        self._clock = upkeep.store.clock
        self._looked: datetime | None = None
        self._at_all: datetime | None = None

    async def run_once(self) -> list[str]:
        """All that is due, AT_ONCE tasks a transaction."""
        lines: list[str] = []
        now = self._clock.now()
        since = self._since(now)
        while True:
            moved = await self._tasks.admit(now=now, limit=AT_ONCE, since=since)
            lines += [f"task {task_id} waits for nothing but its turn now, or never will start" for task_id in moved]
            if len(moved) < AT_ONCE:
                break
        self._looked = now
        if since is None:
            self._at_all = now
        return lines

    def _since(self, now: datetime) -> datetime | None:
        """Since when changes matter. None: all that wait is to be looked at, as after a clock was put back."""
        if self._looked is None or self._at_all is None or not self._at_all <= self._looked <= now:
            return None
        return None if now >= self._at_all + ALL_EVERY else self._looked - LATE
