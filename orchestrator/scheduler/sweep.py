"""Take away from the artifact store what nobody names any more: inputs of tasks that were forgotten or never queued."""

from __future__ import annotations

import asyncio

from orchestrator.domain.errors import PlatformError
from orchestrator.domain.task import TaskSpec
from orchestrator.scheduler.upkeep import Upkeep

PAGE = 1000


class Sweep:
    """The chore. What is young is kept by the artifact store itself, so submits that are under way are safe."""

    interval_seconds = 6 * 3600.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def run_once(self) -> list[str]:
        """Inputs of every task and schedule that there is are kept."""
        keep = await self._named()
        try:
            swept = await asyncio.to_thread(self._upkeep.artifacts.sweep, keep)
        except ValueError as problem:  # a manifest cannot be read: then nobody knows what it names
            raise PlatformError(f"the artifact store is left as it is: {problem}") from problem
        return [f"{swept.blobs} blobs that nobody names are gone, {swept.bytes} bytes"] if swept.blobs else []

    async def _named(self) -> set[str]:
        store, last = self._upkeep.store, None
        named = {blob for row in await store.schedules.list() for blob in _blobs(row.spec)}
        named |= {row.blob for row in await store.layers.list() if row.blob is not None}
        while page := await store.tasks.list(limit=PAGE, before=last):
            named.update(blob for task in page for blob in _blobs(task.spec))
            last = page[-1].id
        return named


def _blobs(spec: TaskSpec) -> list[str]:
    return [each.blob for each in spec.inputs]
