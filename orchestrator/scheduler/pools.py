"""Read the inventory again when it has changed. Tasks of a pool that is gone wait until it is back, and say so."""

from __future__ import annotations

from orchestrator.domain.errors import UserError
from orchestrator.domain.outcome import Reason
from orchestrator.scheduler.upkeep import Upkeep


class Pools:
    """The chore. An inventory that cannot be read changes nothing: what it said last goes on."""

    interval_seconds = 10.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._problem = ""

    async def run_once(self) -> list[str]:
        """What changed in the inventory, and which queues wait for a pool that is not there."""
        lines = await self._read()
        queues, clock = self._upkeep.store.queues, self._upkeep.store.clock
        for queue in await queues.list():
            there = queue.pool in self._upkeep.pools
            told = queue.blocked_reason is Reason.NO_SUCH_POOL
            if not there and not told:
                message = f"the inventory has no pool {queue.pool!r} any more"
                await queues.block(queue.pool, Reason.NO_SUCH_POOL, message, now=clock.now())
                lines.append(f"queue {queue.pool} waits: {message}")
            elif there and told:
                await queues.unblock(queue.pool)
                lines.append(f"queue {queue.pool} goes on: its pool is in the inventory again")
        return lines

    async def _read(self) -> list[str]:
        known = self._upkeep.pools
        try:
            found = await self._upkeep.read_pools()
        except UserError as problem:
            told, self._problem = self._problem, str(problem)
            return [] if told == self._problem else [f"the inventory is left as it was read before: {problem}"]
        self._problem = ""
        lines = [f"pool {name} is new" for name in found if name not in known]
        lines += [f"pool {name} is gone" for name in known if name not in found]
        lines += [f"pool {name} changed" for name in found if name in known and found[name] != known[name]]
        known.clear()
        known.update(found)
        return lines
