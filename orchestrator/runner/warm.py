"""Machines that stand ready before a task asks: launched, held with their connection, checked, given, replaced, ended.

Load → decide → apply, each second and whenever something has changed; what is to be done, `decide.warm` says. A machine
is given by the database alone: the claim of a task takes it with the same write, and from then on it is the attempt's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import assert_never

from orchestrator.decide.admission import Room
from orchestrator.decide.pace import Bucket
from orchestrator.decide.periods import in_force
from orchestrator.decide.warm import Destroy, Launch, Plan, build_of, plan
from orchestrator.domain.errors import CloudError, UserError
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.runner.beside import beside
from orchestrator.runner.launching import NoRoom, Order, record, to_blame
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.machine import destroy
from orchestrator.runner.patience import TROUBLE, back_off
from orchestrator.runner.pauses import Pauses
from orchestrator.runner.placing import Placing
from orchestrator.runner.spare import Spare, make_ready
from orchestrator.runner.supply import Supply, read_supply
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import Usable, usable

ROUND_SECONDS = 1.0
"""How often it is looked at what is there and what is wanted, when nothing has changed."""

APART_SECONDS = 0.1
"""How far apart two looks are at least."""

CHECK_SECONDS = 30.0
"""How often a ready machine is asked whether it is still there; that its connection dropped is known at once."""

BACK_SECONDS = 20.0
"""How long a ready machine whose connection dropped may take to come back."""

ROOM_KNOWN_SECONDS = 4.0
"""How long it takes at most until OpenNebula's word on its room counts a machine that is gone."""

CLOSE_SECONDS = 15.0
"""How long a runner that stops takes to end what stands ready. What is left, upkeep ends."""

_log = logging.getLogger(__name__)


class Stock:
    """The ready machines of one runner, of all its pools: `async with Stock(…).going() as stock`.

    free: how many attempts we may still begin. news: set when a machine has become ready.
    """

    def __init__(self, tools: Tools, placing: Placing, *, free: Callable[[], int], news: asyncio.Event) -> None:
        self._tools = tools
        self._placing = placing
        self._free = free
        self._news = news
        self._spares: list[Spare] = []
        """Those that are on their way or ready. What is being ended is none any more."""
        self._launching: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._buckets: dict[str, Bucket] = {}
        self._pauses = Pauses()
        self._supply: Supply | None = None
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        """No claim is under way to which machines were offered."""
        self._settled.set()
        self._told: dict[str, str] = {}
        self._gone_at: list[tuple[str, datetime]] = []
        """Of pools, when machines of theirs went lately."""
        self._closed = False

    @asynccontextmanager
    async def going(self) -> AsyncIterator[Stock]:
        """Machines are kept ready for as long as the block runs, or until `close`."""
        try:
            async with beside(self._go_on(), "ready machines"):
                yield self
        finally:
            await self.close()

    async def close(self) -> None:
        """End them all, and take CLOSE_SECONDS for it at most."""
        self._closed = True
        for spare in list(self._spares):
            self._end(spare, "its runner stops")
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while working := {*self._launching, *self._ending}:
                    await asyncio.wait(working)
        except TimeoutError:
            _log.warning("not all ready machines are gone yet: upkeep goes on with them")
        for each in self._ending:
            each.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def look(self) -> None:
        """Something has changed: it is time for a round."""
        self._changed.set()

    @contextmanager
    def offered(self, pools: Mapping[str, Pool]) -> Iterator[dict[str, tuple[str, ...]]]:
        """Inside the block a claim may take these, by pool, the oldest first; nothing else is done to them.

        Of a claim of which nobody knows what became, each may have been taken: it is looked up before it is used again.
        """
        offer: dict[str, list[Spare]] = {}
        for spare in sorted(self._spares, key=lambda each: each.ready_at or each.asked_at):
            pool = pools.get(spare.pool.name)
            if pool is not None and spare.is_fit and build_of(spare.pool) == build_of(pool):
                offer.setdefault(pool.name, []).append(spare)
        self._settled.clear()
        try:
            yield {name: tuple(spare.id for spare in spares) for name, spares in offer.items()}
        except BaseException:
            for spare in (spare for spares in offer.values() for spare in spares):
                spare.doubtful = True
            raise
        finally:
            self._settled.set()

    def take(self, vm_id: str) -> Spare:
        """A claim has taken it: it is the attempt's now."""
        [spare] = [each for each in self._spares if each.id == vm_id]
        self._drop(spare)
        return spare

    def elsewhere(self, pool: str) -> int:
        """How many stood ready at other runners when that was looked at."""
        return sum(each.ready for each in self._supply.elsewhere(pool).values()) if self._supply else 0

    def under_way(self) -> Counter[str]:
        """Machines by pool of which OpenNebula does not know yet."""
        return Counter(each.pool.name for each in self._spares if each.machine is None)

    async def _go_on(self) -> None:
        """For ever."""
        pauses = back_off()
        while True:
            pause = ROUND_SECONDS
            try:
                await self._round()
                pauses = back_off()
            except TROUBLE as trouble:
                _log.warning("ready machines cannot be looked after: %s", trouble)
                pause = next(pauses)
            await asyncio.sleep(APART_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def _round(self) -> None:
        await self._resolve()
        pools = dict(self._tools.pools)
        await self._settled.wait()
        for spare in [each for each in self._spares if each.pool.name not in pools]:
            self._end(spare, "the inventory has no such pool any more")
        having = {spare.pool.name for spare in self._spares}
        wanted = [pool for name, pool in pools.items() if pool.warm.wanted or name in having]
        if not wanted:
            self._supply = None
            return
        supply = self._supply = await read_supply(self._tools, tuple(pools))
        for pool in wanted:
            await self._see_to(pool, pools, supply)

    async def _resolve(self) -> None:
        """Look up those of which it is not known whether a claim took them."""
        doubtful = [each for each in self._spares if each.doubtful]
        if not doubtful:
            return
        rows = await self._tools.store.vms.spares(self._tools.runner_id)
        there = {row.id for row in rows if row.state is VmState.READY}
        for spare in doubtful:
            if spare.id in there:
                spare.doubtful = False
            else:
                self._end(spare, "a claim took it, and was lost")

    async def _see_to(self, pool: Pool, pools: Mapping[str, Pool], supply: Supply) -> None:
        """Plan one pool, and do what was planned."""
        version = await self._version(pool, supply)
        found = await self._planned(pool, pools, supply, version)
        if any(isinstance(step, Launch) for step in found.steps):
            room = await self._placing.room_of(pool, self.under_way())
            found = await self._planned(pool, pools, supply, version, room)
        for step in found.steps:
            match step:
                case Launch(because=because):
                    self._launch(pool, version, supply, because)
                case Destroy(vm_id, because):
                    for spare in [each for each in self._spares if each.id == vm_id]:
                        self._end(spare, because)
                case _:
                    assert_never(step)
        if found.because != self._told.get(pool.name, ""):
            _log.info("pool %s is short of %d ready machines: %s", pool.name, found.short, found.because)
            self._told[pool.name] = found.because

    async def _version(self, pool: Pool, supply: Supply) -> Usable | str:
        """The image version to launch, or why there is none."""
        try:
            return await usable(pool, self._tools, supply.aside)
        except (CloudError, UserError) as trouble:
            return str(trouble)

    async def _planned(
        self, pool: Pool, pools: Mapping[str, Pool], supply: Supply, version: Usable | str, room: Room | None = None
    ) -> Plan:
        """What to do, by what there is this moment, in which no claim is under way."""
        while not self._settled.is_set():
            await self._settled.wait()
        now = self._tools.store.clock.now()
        mine = [each for each in self._spares if each.pool.name == pool.name and not each.leaving]
        facts = supply.facts(
            pool,
            pools,
            ready=tuple(each.facts() for each in mine if each.ready_at is not None),
            coming=tuple(each.facts() for each in mine if each.ready_at is None),
        )
        usable_now = isinstance(version, Usable) and version.good
        facts = dataclasses.replace(
            facts,
            destroying=facts.destroying + self._went_lately(pool.name, now),
            lacking=facts.lacking if self._placing.answered else 0,
            free_slots=self._free() - len(self._spares),
            allowed_launches=self._bucket(pool, now).allowed,
            resting_until=self._pauses.until(pool.name, facts.resting_until),
            wanted_version=version.image.template_name if isinstance(version, Usable) and usable_now else "",
            version_because=version.because if isinstance(version, Usable) else version,
        )
        return plan(pool, facts if room is None else dataclasses.replace(facts, room=room), now)

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

    def _launch(self, pool: Pool, version: Usable | str, supply: Supply, because: str) -> None:
        if self._closed or not isinstance(version, Usable):
            return
        now = self._tools.store.clock.now()
        self._buckets[pool.name] = self._bucket(pool, now).less(1)
        order = Order(pool, avoid=frozenset(supply.aside.hosts), max_vms=in_force(pool, now).max_vms)
        spare = Spare(order, version.image.template_name, now)
        _log.info("a machine of pool %s is launched: %s", pool.name, because)
        self._spares.append(spare)
        self._placing.took(pool.name)
        going = spare.work = asyncio.create_task(self._bring_up(spare, version), name=f"launch for pool {pool.name}")
        self._launching.add(going)
        going.add_done_callback(self._launching.discard)

    async def _bring_up(self, spare: Spare, version: Usable) -> None:
        """Until it is ready; else it is ended."""
        try:
            await make_ready(spare, version.image, self._tools)
        except Exception as failure:
            await self._failed(spare, failure)
            spare.leaving = spare.leaving or f"it did not come up: {failure}"
        except asyncio.CancelledError:
            self._ends(spare)
            raise
        if spare.leaving:
            self._ends(spare)
            return
        self._pauses.over(spare.pool.name)
        _log.info("vm %s of pool %s is ready, after %.2f s", spare.id, spare.pool.name, spare.order.seconds or 0.0)
        spare.work = asyncio.create_task(self._keep(spare), name=f"keep {spare.id}")
        self._news.set()
        self._count(spare.pool)
        await record(spare.order, self._tools)

    async def _keep(self, spare: Spare) -> None:
        """See that it is still there; one that is not is ended."""
        guest = spare.guest
        while guest is not None:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await guest.dropped()
            except TimeoutError:
                pass
            while not self._settled.is_set():
                await self._settled.wait()
            spare.busy = True
            try:
                async with asyncio.timeout(BACK_SECONDS):
                    await guest.check()
            except (*TROUBLE, TimeoutError) as trouble:
                self._end(spare, f"it does not answer any more: {trouble or 'in time'}")
                return
            spare.busy = False
            self._news.set()

    def _end(self, spare: Spare, because: str) -> None:
        """It is to be none of the stock any more. One that is on its way is stopped first."""
        if spare.leaving:
            return
        spare.leaving = because
        if spare.ready_at is None and spare.work is not None:
            spare.work.cancel()
        else:
            self._ends(spare)

    def _ends(self, spare: Spare) -> None:
        """Its machine is destroyed beside all else."""
        self._drop(spare)
        ending = asyncio.create_task(self._see_it_gone(spare), name=f"end {spare.id}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _see_it_gone(self, spare: Spare) -> None:
        _log.info("vm %s of pool %s is ended: %s", spare.id, spare.pool.name, spare.leaving)
        try:
            await spare.around.aclose()
        except TROUBLE as trouble:
            _log.info("it was not watched to its end: %s", trouble)
        if spare.machine is not None:  # else there is none, or upkeep will find it by its tag
            await destroy(spare.machine, self._tools, because=spare.leaving, if_spare=True)
            self._gone_at.append((spare.pool.name, self._tools.store.clock.now()))
        self._placing.gave_back()
        self.look()

    async def _failed(self, spare: Spare, failure: Exception) -> None:
        """Written down before the next is launched."""
        now = self._tools.store.clock.now()
        match failure:
            case NoRoom():
                self._pauses.short(spare.pool, now)
            case LeaseLost():
                pass
            case _:
                _log.warning("a machine of pool %s did not come up: %s", spare.pool.name, failure)
                if not to_blame(failure, spare.order):
                    self._pauses.longer(spare.pool, now)
                await record(spare.order, self._tools, failure)

    def _drop(self, spare: Spare) -> None:
        if spare.work is not None and spare.work is not asyncio.current_task():
            spare.work.cancel()
        self._spares.remove(spare)
        self._count(spare.pool)
        self.look()

    def _count(self, pool: Pool) -> None:
        ready = sum(each.ready_at is not None for each in self._spares if each.pool.name == pool.name)
        self._tools.telemetry.metrics.ready(pool.name, ready)
