"""What is to be known of the pools to plan their ready machines: read from the database, for all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.decide.pace import rest
from orchestrator.decide.periods import in_force
from orchestrator.decide.quarantine import Quarantine
from orchestrator.decide.warm import Facts, Ready, Stock
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import put_aside
from orchestrator.store import Launch, QueueRow, RunnerRow, VmCount

_NO_ROOM = frozenset({Reason.NO_CAPACITY, Reason.QUOTA})
"""What a runner says of a queue for whose tasks OpenNebula has no room; not of one that has its max_vms."""
_COMING = frozenset({VmState.REQUESTED, VmState.BOOTING})


@dataclass(frozen=True, slots=True)
class Supply:
    """As the database had it a moment ago. `waiting`: tasks that may start, by pool: of those that we serve, and of
    others for which OpenNebula has no room."""

    runner_id: str
    now: datetime
    runners: tuple[RunnerRow, ...]
    counts: tuple[VmCount, ...]
    queues: Mapping[str, QueueRow]
    waiting: Mapping[str, int]
    launches: tuple[Launch, ...]
    aside: Quarantine

    def facts(
        self, pool: Pool, pools: Mapping[str, Pool], *, ready: tuple[Ready, ...], coming: tuple[Ready, ...]
    ) -> Facts:
        """Of one pool, but for what only the runner knows. `pools`: all that we serve."""
        spares = [each for each in self.counts if each.pool == pool.name and each.spare]
        queue = self.queues.get(pool.name)
        return Facts(
            runner_id=self.runner_id,
            runners=self.serving(pool.name),
            ready=ready,
            launching=coming,
            elsewhere=self.elsewhere(pool.name),
            held=self._held(pool.name),
            open_spares=sum(each.count for each in spares),
            destroying=sum(each.count for each in spares if each.state is VmState.DESTROYING),
            waiting=self._waiting(pool.name),
            lacking=sum(self._lacks(name, pools.get(name)) for name in self.queues if name != pool.name),
            resting_until=rest(self.launches, pool),
            drained=queue is not None and queue.drained_at is not None,
            drained_because="" if queue is None else queue.drained_because,
            rotated_at=None if queue is None else queue.rotated_at,
        )

    def serving(self, pool: str) -> tuple[str, ...]:
        """The runners that take tasks of it."""
        return tuple(sorted(row.id for row in self.runners if pool in row.pools and row.draining_at is None))

    def elsewhere(self, pool: str) -> dict[str, Stock]:
        """What the others have."""
        ready, coming = Counter[str](), Counter[str]()
        for each in self.counts:
            if each.pool == pool and each.spare and each.runner_id not in (None, self.runner_id):
                ready[str(each.runner_id)] += each.count if each.state is VmState.READY else 0
                coming[str(each.runner_id)] += each.count if each.state in _COMING else 0
        return {name: Stock(ready[name], coming[name]) for name in ready}

    def lacking_here(self, pool: str) -> int:
        """Tasks that could start, and for which no machine stands ready at another runner that may take them; 0 when
        there is no other."""
        others = [name for name in self.serving(pool) if name != self.runner_id]
        elsewhere = self.elsewhere(pool)
        ready = sum(elsewhere[name].ready for name in others if name in elsewhere)
        return max(0, self._waiting(pool) - ready) if others else 0

    def _held(self, pool: str) -> int:
        """Machines of tasks, which are all but as many as tasks that are held."""
        return sum(each.count for each in self.counts if each.pool == pool and not each.spare)

    def _waiting(self, pool: str) -> int:
        queue = self.queues.get(pool)
        return 0 if queue is not None and queue.paused_at is not None else self.waiting.get(pool, 0)

    def _lacks(self, name: str, pool: Pool | None) -> int:
        """Machines that its tasks would get if OpenNebula had room. None: of a pool that only other runners serve, and
        of which we do not know how many it may have: one at a time, as long as they say that they lack any."""
        if self.queues[name].blocked_reason not in _NO_ROOM:
            return 0
        if pool is None:
            return min(self._waiting(name), 1) if self.serving(name) else 0
        has = sum(each.count for each in self.counts if each.pool == name)
        return max(0, min(self._waiting(name), in_force(pool, self.now).max_vms - has))


async def read_supply(tools: Tools, pools: Collection[str]) -> Supply:
    """Raises what the database does."""
    store, now = tools.store, tools.store.clock.now()
    aside = await put_aside(tools)
    queues = {row.pool: row for row in await store.queues.list(counts=False)}
    return Supply(
        runner_id=tools.runner_id,
        now=now,
        runners=await store.runners.alive(now=now),
        queues=queues,
        waiting=await store.tasks.waiting(
            {*pools, *(each for each in queues if queues[each].blocked_reason in _NO_ROOM)}
        ),
        counts=await store.vms.counts(),
        launches=tools.launches.known,
        aside=aside,
    )
