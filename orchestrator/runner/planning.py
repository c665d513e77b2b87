"""What one runner's ready machines are to be, from one look to the next: `decide.warm`, with what only we know.

The database is read once for all pools; then each is planned by what we hold at that moment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta

from orchestrator.decide.admission import Room
from orchestrator.decide.pace import Bucket
from orchestrator.decide.warm import Plan, plan
from orchestrator.domain.errors import CloudError, UserError
from orchestrator.domain.pool import Pool
from orchestrator.runner.launching import NoRoom, to_blame
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.pauses import Pauses
from orchestrator.runner.placing import Placing
from orchestrator.runner.spare import Spare
from orchestrator.runner.supply import Supply, read_supply
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import Usable, usable

ROOM_KNOWN_SECONDS = 6.0
"""How long it takes at most until OpenNebula's word on its room counts a machine that is gone."""

VERSION_SECONDS = 10.0
"""How old the version of an image may be that nothing is launched of: it is asked for only to see what is outdated."""

_log = logging.getLogger(__name__)


class Planning:
    """`free`: how many attempts we may still begin; `asked`: machines by pool that attempts are about to ask for."""

    def __init__(
        self, tools: Tools, placing: Placing, *, free: Callable[[], int], asked: Callable[[], Counter[str]]
    ) -> None:
        self._tools = tools
        self._placing = placing
        self._free = free
        self._asked = asked
        self._supply: Supply | None = None
        self._buckets: dict[str, Bucket] = {}
        self._pauses = Pauses()
        self._outdated = False
        self._versions: dict[str, tuple[Usable | str, float]] = {}
        """By pool, and when that was known, by a clock that nobody puts back."""
        self._told: dict[str, str] = {}
        self._gone_at: list[tuple[str, datetime]] = []
        """Of pools, when machines of theirs went lately."""

    async def read(self, pools: Collection[str]) -> Supply:
        """Read the database. Raises what that does."""
        self._outdated = False
        self._supply = await read_supply(self._tools, pools)
        return self._supply

    @property
    def outdated(self) -> bool:
        """A launch has failed since the database was read: what follows from that, the next look will tell."""
        return self._outdated

    def outdate(self) -> None:
        """How a launch failed was written down."""
        self._outdated = True

    def nothing(self) -> None:
        """No pool wants ready machines."""
        self._supply = None

    def elsewhere(self, pool: str) -> int:
        """How many stood ready at other runners when that was read."""
        return sum(each.ready for each in self._supply.elsewhere(pool).values()) if self._supply else 0

    async def version(self, pool: Pool, supply: Supply, *, to_launch: bool = False) -> Usable | str:
        """The image version to launch, or why there is none; a while ago, unless one is launched."""
        known, now = self._versions.get(pool.name), asyncio.get_running_loop().time()
        if known is not None and not to_launch and now - known[1] < VERSION_SECONDS:
            return known[0]
        found: Usable | str
        try:
            found = await usable(pool, self._tools, supply.aside)
        except (CloudError, UserError) as trouble:
            found = str(trouble)
        self._versions[pool.name] = found, now
        return found

    async def room(self, pool: Pool, spares: Collection[Spare]) -> Room:
        """What OpenNebula has room for. Raises what the database does."""
        return await self._placing.room_of(pool, under_way(spares) + self._asked())

    def plan(
        self,
        pool: Pool,
        pools: Mapping[str, Pool],
        spares: Collection[Spare],
        supply: Supply,
        version: Usable | str,
        room: Room | None = None,
    ) -> Plan:
        """What to do for a pool. spares: all of ours; no claim to which they were offered is under way. room: None:
        not asked for."""
        now = self._tools.store.clock.now()
        mine = [each for each in spares if each.pool.name == pool.name and not each.leaving]
        facts = supply.facts(
            pool,
            pools,
            ready=tuple(each.facts() for each in mine if each.ready_at is not None),
            coming=tuple(each.facts() for each in mine if each.ready_at is None),
        )
        good = isinstance(version, Usable) and version.good
        facts = dataclasses.replace(
            facts,
            destroying=facts.destroying + self._went_lately(pool.name, now),
            lacking=facts.lacking if self._placing.answered else 0,
            free_slots=self._free() - len(spares),
            allowed_launches=self._bucket(pool, now).allowed,
            resting_until=self._pauses.until(pool.name, facts.resting_until),
            wanted_version=version.image.template_name if isinstance(version, Usable) and good else "",
            version_because=version.because if isinstance(version, Usable) else version,
        )
        return plan(pool, facts if room is None else dataclasses.replace(facts, room=room), now)

    def useless(self, pool: Pool, spares: Collection[Spare], supply: Supply) -> list[Spare]:
        """Those that stand in the way of tasks: we have as many attempts as we may, and others could begin them."""
        if self._free() > 0:
            return []
        mine = [each for each in spares if each.pool.name == pool.name and not each.leaving]
        wanted = supply.lacking_here(pool.name) - self._went_lately(pool.name, self._tools.store.clock.now())
        return sorted(mine, key=lambda each: each.asked_at, reverse=True)[: max(0, wanted)]

    def tell(self, pool: Pool, found: Plan) -> None:
        """To the log, why there are not as many as are wanted."""
        if found.because != self._told.get(pool.name, ""):
            if found.because:
                _log.info("pool %s is short of %d ready machines: %s", pool.name, found.short, found.because)
            self._told[pool.name] = found.because

    def launches(self, pool: Pool) -> None:
        """One is launched."""
        self._buckets[pool.name] = self._bucket(pool, self._tools.store.clock.now()).less(1)
        self._placing.took(pool.name)

    def launched(self, pool: Pool) -> None:
        """One is ready."""
        self._pauses.over(pool.name)

    def failed(self, spare: Spare, failure: Exception) -> bool:
        """A launch did. False: that is nothing to speak of."""
        now = self._tools.store.clock.now()
        match failure:
            case NoRoom():
                self._pauses.short(spare.pool, now)
                return False
            case LeaseLost():
                return False
            case _ if not to_blame(failure, spare.order):
                self._pauses.longer(spare.pool, now)
        return True

    def went(self, pool: Pool) -> None:
        """A machine is gone."""
        self._gone_at.append((pool.name, self._tools.store.clock.now()))
        self._placing.gave_back()

    def _went_lately(self, pool: str, now: datetime) -> int:
        """Spares that are gone, and that OpenNebula's word on its room may not count as such."""
        since = now - timedelta(seconds=ROOM_KNOWN_SECONDS)
        self._gone_at = [(name, at) for name, at in self._gone_at if at > since]
        return sum(name == pool for name, _ in self._gone_at)

    def _bucket(self, pool: Pool, now: datetime) -> Bucket:
        known = self._buckets.get(pool.name)
        bucket = Bucket.full(pool.warm, now) if known is None else known.under(pool.warm, now)
        self._buckets[pool.name] = bucket
        return bucket


def under_way(spares: Collection[Spare]) -> Counter[str]:
    """Machines by pool of which OpenNebula does not know yet."""
    return Counter(each.pool.name for each in spares if each.machine is None)
