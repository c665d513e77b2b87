"""Let in what is due: a task whose time has come and whose dependencies have FINISHED may be claimed from now on."""

from __future__ import annotations

from orchestrator.scheduler.upkeep import Upkeep

AT_ONCE = 500


class Admit:
    """The chore. How often it comes is the longest that such a task waits for nothing."""

    interval_seconds = 0.5
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._tasks = upkeep.store.tasks
        self._clock = upkeep.store.clock

    async def run_once(self) -> list[str]:
        """All that is due, AT_ONCE tasks a transaction."""
        lines: list[str] = []
        while True:
            moved = await self._tasks.admit(now=self._clock.now(), limit=AT_ONCE)
            lines += [f"task {task_id} waits for nothing but its turn now, or never will start" for task_id in moved]
            if len(moved) < AT_ONCE:
                return lines
