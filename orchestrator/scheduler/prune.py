"""Forget tasks that are over for longer than their pool keeps them: their artifacts first, then their rows."""

from __future__ import annotations

import asyncio

from orchestrator.decide.deadlines import keep_since
from orchestrator.domain.pool import Pool
from orchestrator.scheduler.upkeep import Upkeep

AT_ONCE = 500


class Prune:
    """The chore. A round that ends in between leaves rows without artifacts, which the next round finds again."""

    interval_seconds = 3600.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def run_once(self) -> list[str]:
        """All that is due, AT_ONCE tasks a transaction."""
        upkeep = self._upkeep
        tasks, now = upkeep.store.tasks, upkeep.store.clock.now()
        since = keep_since(upkeep.pools.values(), now)
        # of a pool that is gone nobody knows how long it kept tasks: as long as one that says nothing of it
        [default] = keep_since([Pool(name="", image="")], now).values()
        count = 0
        while ids := await tasks.prunable(since, default, limit=AT_ONCE):
            for task_id in ids:
                await asyncio.to_thread(upkeep.artifacts.remove, task_id)
            await tasks.delete(ids)
            count += len(ids)
        spares = 0
        while gone := await upkeep.store.vms.forget(since, default, limit=AT_ONCE):
            spares += gone
        told = {"tasks are forgotten, with what they left": count, "VMs that no task took are forgotten": spares}
        return [f"{many} {what}" for what, many in told.items() if many]
