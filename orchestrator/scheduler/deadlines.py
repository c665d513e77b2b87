"""End what was not over by its deadline, with the reason in writing. Its machine, if it has one, is then reaped."""

from __future__ import annotations

from orchestrator.decide.deadlines import overdue
from orchestrator.reports.waiting import Line
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Finished, TaskRow


class Deadlines:
    """The chore."""

    interval_seconds = 10.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def run_once(self) -> list[str]:
        """All whose deadline has passed; one that was over meanwhile is left as it is."""
        store = self._upkeep.store
        lines = []
        for task in await store.tasks.overdue(now=store.clock.now()):
            if ended := await self._end(task):
                lines.append(f"task {task.id} is over: {ended}")
        return lines

    async def _end(self, task: TaskRow) -> str:
        store, lease = self._upkeep.store, task.lease
        if lease is None:
            standing = await Line(store, self._upkeep.pools).standing(task)
            verdict = overdue(task.state, task.stage, None, "" if standing is None else standing.waiting.message)
            done = await store.tasks.end_overdue(task, verdict.message, now=store.clock.now())
            return verdict.message if done else ""
        attempt = await store.attempts.get(task.id, lease.attempt)
        recorded = None if attempt is None else attempt.verdict
        verdict = overdue(task.state, task.stage, recorded)
        if recorded is None:
            done = await store.tasks.end_overdue(task, verdict.message, now=store.clock.now())
        else:
            done = await store.tasks.finish(Finished.by(lease, verdict), now=store.clock.now())
        if done:
            self._upkeep.telemetry.over(task.id, lease.attempt)
        return verdict.message if done else ""
