"""What can be placed now, by OpenNebula's word; and word to people of what cannot."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from orchestrator.decide.admission import Capacity, Room, room_for
from orchestrator.decide.periods import in_force
from orchestrator.domain.errors import CloudError
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.runner.tools import Tools

TICK_SECONDS = 1.0
"""OpenNebula is asked at most so often."""

GIVEN_BACK_SECONDS = 0.2
"""How old what was read may be once a machine of ours is gone."""

IDLE_SECONDS = 10.0
"""How old its answer may be when there was room for all, and nothing was claimed since."""

ANSWER_SECONDS = 2.0
"""How long it is waited for: a runner has other things to do than to claim."""

TELL_AGAIN_SECONDS = 10.0
"""Another runner may have written otherwise, and be gone."""

_log = logging.getLogger(__name__)


class Placing:
    """One runner's view of the room there is, read from OpenNebula and the database, less what it took since."""

    def __init__(self, tools: Tools, news: asyncio.Event | None = None) -> None:
        self._tools = tools
        self._news = news or asyncio.Event()
        """Set when OpenNebula has answered what `at_hand` asked."""
        self._reading = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[Capacity] | None = None
        self._read_at: float | None = None
        self._good_for = 0.0
        self._answer: Capacity | None = None
        self._capacity: Capacity | None = None
        """The answer, less what was claimed since. None: OpenNebula does not say."""
        self._no_cloud = ""
        self._open: Counter[str] = Counter()
        self._told: dict[str, tuple[Reason | None, str, float]] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Placing]:
        """Around its use: nothing that was asked is left behind."""
        try:
            yield self
        finally:
            left = [each for each in (self._asking, self._refreshing) if each is not None]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def room(self, under_way: Mapping[str, int] | None = None) -> dict[str, int]:
        """How many more VMs of each pool can be placed; pools without room are left out, and their queues say why.

        under_way: VMs by pool that this runner is about to ask for, and that OpenNebula may not count yet.
        Raises what the database does.
        """
        if self._stale():
            await self._refresh(under_way or {})
        await self.tell()
        return self._counts()

    def at_hand(self, under_way: Mapping[str, int]) -> dict[str, int] | None:
        """The same without a wait, and nobody is told; None while OpenNebula is asked. Raises what the database did."""
        asked = self._refreshing
        if asked is not None and asked.done():
            self._refreshing = None
            asked.result()
            return self._counts()
        if not self._stale():
            return self._counts()
        if asked is None:
            self._refreshing = asyncio.create_task(self._refresh(under_way), name="room")
            self._refreshing.add_done_callback(lambda _: self._news.set())
        return None

    async def room_of(self, pool: Pool, under_way: Mapping[str, int]) -> Room:
        """What there is for machines of one pool ahead of need, or why there is none. Raises what the database does."""
        if self._stale():
            await self._refresh(under_way)
        return self._room(pool)

    @property
    def answered(self) -> bool:
        """OpenNebula said what it has room for when it was asked last."""
        return self._capacity is not None

    async def tell(self) -> None:
        """Let the queues say why nothing of them can be placed. Raises what the database does."""
        now = asyncio.get_running_loop().time()
        rooms = {name: self._room(pool) for name, pool in self._tools.pools.items()}
        for name, room in rooms.items():
            await self._tell(name, room, now)

    def took(self, pool: str) -> None:
        """A task of the pool was claimed: there is room for one less."""
        self._open[pool] += 1
        self._good_for = min(self._good_for, TICK_SECONDS)
        if self._capacity is not None and pool in self._tools.pools:
            self._capacity = self._capacity.less(self._tools.pools[pool], 1)

    def gave_back(self) -> None:
        """A machine of ours is gone: there may be more room than was read."""
        self._good_for = min(self._good_for, GIVEN_BACK_SECONDS)

    def good_for(self) -> float:
        """In how many seconds it is worth asking again; OpenNebula's answer may come sooner."""
        if self._refreshing is not None and not self._refreshing.done():
            return IDLE_SECONDS
        return self._left()

    def _left(self) -> float:
        if self._read_at is None:
            return 0.0
        return max(0.0, self._read_at + self._good_for - asyncio.get_running_loop().time())

    def _stale(self) -> bool:
        return self._left() <= 0

    def _counts(self) -> dict[str, int]:
        rooms = {name: self._room(pool) for name, pool in self._tools.pools.items()}
        if any(room.count <= 0 for room in rooms.values()):
            self._good_for = min(self._good_for, TICK_SECONDS)
        return {name: room.count for name, room in rooms.items() if room.count > 0}

    async def _refresh(self, under_way: Mapping[str, int]) -> None:
        async with self._reading:
            if self._stale():
                began = asyncio.get_running_loop().time()
                await self._read(under_way)
                self._read_at, self._good_for = began, IDLE_SECONDS

    async def _read(self, under_way: Mapping[str, int]) -> None:
        self._open = Counter(await self._tools.store.vms.open_by_pool())
        try:
            capacity = await self._ask()
        except (CloudError, TimeoutError) as trouble:
            if not self._no_cloud:
                _log.warning("OpenNebula does not say what it has room for, and nothing is claimed: %s", trouble)
            self._answer = self._capacity = None
            self._no_cloud = f"OpenNebula does not answer: {trouble}"
            return
        if self._no_cloud:
            _log.info("OpenNebula answers again")
        if capacity is self._answer and self._capacity is not None:
            return  # an answer of a while ago, from which we have taken what we claimed since
        self._answer = self._capacity = capacity
        self._no_cloud = ""
        for pool, count in under_way.items():
            if pool in self._tools.pools:
                self._capacity = self._capacity.less(self._tools.pools[pool], count)

    async def _ask(self) -> Capacity:
        """Raises TimeoutError when the answer takes too long; it is looked for the next time."""
        self._asking = self._asking or asyncio.create_task(self._tools.cloud.capacity(), name="capacity")
        done, _ = await asyncio.wait([self._asking], timeout=ANSWER_SECONDS)
        if not done:
            raise TimeoutError(f"no word for {ANSWER_SECONDS:g} s and more")
        asked, self._asking = self._asking, None
        return asked.result()

    def _room(self, pool: Pool) -> Room:
        if self._capacity is None:
            return Room(0, Reason.NO_CAPACITY, self._no_cloud)
        limited = in_force(pool, self._tools.store.clock.now())
        return room_for(limited, self._capacity, open_vms=self._open[pool.name])

    async def _tell(self, pool: str, room: Room, now: float) -> None:
        reason = None if room.count > 0 else room.reason or Reason.NO_CAPACITY
        was = self._told.get(pool)
        if was and was[:2] == (reason, room.message) and now - was[2] < TELL_AGAIN_SECONDS:
            return
        queues = self._tools.store.queues
        if reason is None:
            await queues.unblock(pool)
        else:
            await queues.block(pool, reason, room.message, now=self._tools.store.clock.now())
        self._told[pool] = (reason, room.message, now)
