"""Look at the database for the gauges: VMs, queues, runners, what is quarantined. Only where somebody may read them."""

from __future__ import annotations

import asyncio
from collections import Counter

from orchestrator.decide import quarantine
from orchestrator.domain.errors import CloudError
from orchestrator.domain.vm import VmState
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.telemetry import Look
from orchestrator.trouble import TROUBLE

HOSTS_KEPT_SECONDS = 60.0
ASK_SECONDS = 2.0
"""How long the gauges wait at most for OpenNebula, which they need for nothing else."""


class Measure:
    """The chore. However often metrics are read, the database is asked no more often than this."""

    interval_seconds = 5.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._hosts_at: tuple[int, float] | None = None

    async def run_once(self) -> list[str]:
        """Look. When that fails there is no look: one of long ago would be taken for now."""
        metrics = self._upkeep.telemetry.metrics
        if metrics.exposed:
            try:
                metrics.saw(await self._look())
            except TROUBLE:
                metrics.forget()
                raise
        return []

    async def _look(self) -> Look:
        store, now = self._upkeep.store, self._upkeep.store.clock.now()
        vms: Counter[tuple[str, VmState]] = Counter()
        ready: Counter[str] = Counter()
        for each in await store.vms.counts():
            vms[each.pool, each.state] += each.count
            if each.spare and each.state is VmState.READY:
                ready[each.pool] += each.count
        queues = await store.queues.list()
        oldest = await store.tasks.oldest_ready()
        runners = await store.runners.alive(now=now)
        return Look(
            vms=vms,
            ready=ready,
            waiting={queue.pool: queue.waiting for queue in queues},
            held={queue.pool: queue.held for queue in queues},
            oldest_wait_seconds={pool: (now - since).total_seconds() for pool, since in oldest.items()},
            runners=Counter(pool for runner in runners if runner.draining_at is None for pool in runner.pools),
            quarantined=await self._quarantined(),
        )

    async def _quarantined(self) -> dict[str, int]:
        """How many image versions and hosts."""
        store, now = self._upkeep.store, self._upkeep.store.clock.now()
        warms = {name: pool.warm for name, pool in self._upkeep.pools.items()}
        launches = await store.vms.launches(since=now - quarantine.looks_back(warms.values()))
        if all(launch.ok for launch in launches):
            return {"version": 0, "host": 0}
        found = quarantine.of(launches, warms, now, hosts=await self._hosts())
        return {"version": len(found.versions), "host": len(found.hosts)}

    async def _hosts(self) -> int:
        """How many take VMs, as runners see it, as of a minute ago; 1 where that cannot be told."""
        now = asyncio.get_running_loop().time()
        if self._hosts_at is None or now - self._hosts_at[1] > HOSTS_KEPT_SECONDS:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    capacity = await self._upkeep.cloud.capacity()
            except (CloudError, TimeoutError):
                return 1
            self._hosts_at = len(capacity.hosts or ()) or 1, now
        return self._hosts_at[0]
