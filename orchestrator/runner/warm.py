"""Machines that stand ready before a task asks: launched, held with their connection, checked, given, replaced, ended.

Load → decide → apply, each second and whenever something has changed; what is to be done, `decide.warm` says. A machine
is given by the database alone: the claim of a task takes it with the same write, and from then on it is the attempt's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import assert_never

from orchestrator.decide.periods import in_force
from orchestrator.decide.warm import Destroy, Launch, build_of
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.guest import Guest
from orchestrator.runner.beside import beside
from orchestrator.runner.launching import Order, record
from orchestrator.runner.machine import destroy
from orchestrator.runner.patience import back_off
from orchestrator.runner.placing import Placing
from orchestrator.runner.planning import Planning, under_way
from orchestrator.runner.spare import Spare, make_ready, probe_again
from orchestrator.runner.supply import Supply
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import Usable
from orchestrator.trouble import TROUBLE

ROUND_SECONDS = 1.0
"""How often it is looked at what is there and what is wanted, when nothing has changed."""

APART_SECONDS = 0.1
"""How far apart two looks are at least."""

AFTER_TAKE_SECONDS = 0.05
"""How long after a machine was taken the next is launched."""

CHECK_SECONDS = 30.0
"""How often a ready machine is asked whether it is still there, and its seal is tried; that its connection dropped is
known at once."""

BACK_SECONDS = 20.0
"""How long a ready machine whose connection dropped may take to come back."""

CLOSE_SECONDS = 15.0
"""How long a runner that stops takes to end what stands ready. What is left, upkeep ends."""

_log = logging.getLogger(__name__)


class Stock:
    """The ready machines of one runner, of all its pools: `async with Stock(…).going() as stock`.

    free: how many attempts we may still begin; asked: machines by pool that attempts are about to ask for. news: set
    when a machine has become ready.
    """

    def __init__(
        self,
        tools: Tools,
        placing: Placing,
        *,
        free: Callable[[], int],
        asked: Callable[[], Counter[str]],
        news: asyncio.Event,
    ) -> None:
        self._tools = tools
        self._news = news
        self._spares: list[Spare] = []
        """Those that are on their way or ready. What is being ended is none any more."""
        self._launching: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._planning = Planning(tools, placing, free=free, asked=asked)
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        """No claim is under way to which machines were offered."""
        self._settled.set()
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
        left = {*self._launching, *self._ending}
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)

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
        # the start of the process comes first: the database has one writer at a time, and the processor is shared
        asyncio.get_running_loop().call_later(AFTER_TAKE_SECONDS, self.look)
        return spare

    def elsewhere(self, pool: str) -> int:
        """How many stood ready at other runners when that was looked at."""
        return self._planning.elsewhere(pool)

    def under_way(self) -> Counter[str]:
        """Machines by pool of which OpenNebula does not know yet."""
        return under_way(self._spares)

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
            except Exception:
                _log.exception("ready machines could not be looked after")
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
        await self._unoffered()
        for spare in [each for each in self._spares if each.pool.name not in pools]:
            self._end(spare, "the inventory has no such pool any more")
        having = {spare.pool.name for spare in self._spares}
        wanted = [pool for name, pool in pools.items() if pool.warm.wanted or name in having]
        if not wanted:
            self._planning.nothing()
            return
        supply = await self._planning.read(tuple(pools))
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
        planning = self._planning
        version = await planning.version(pool, supply)
        await self._unoffered()
        found = planning.plan(pool, pools, self._spares, supply, version)
        if any(isinstance(step, Launch) for step in found.steps):
            version = await planning.version(pool, supply, to_launch=True)
            room = await planning.room(pool, self._spares)
            await self._unoffered()
            found = planning.plan(pool, pools, self._spares, supply, version, room)
        for step in found.steps:
            match step:
                case Launch(because=because):
                    self._launch(pool, version, supply, because)
                case Destroy(vm_id, because):
                    for spare in [each for each in self._spares if each.id == vm_id]:
                        self._end(spare, because)
                case _:
                    assert_never(step)
        for spare in planning.useless(pool, self._spares, supply):
            self._end(spare, "tasks wait, and this runner may begin no more of them")
        planning.tell(pool, found)

    async def _unoffered(self) -> None:
        """Wait until no claim is under way; until the next wait none will be."""
        while not self._settled.is_set():
            await self._settled.wait()

    def _launch(self, pool: Pool, version: Usable | str, supply: Supply, because: str) -> None:
        if self._closed or self._planning.outdated or not isinstance(version, Usable):
            return
        now = self._tools.store.clock.now()
        self._planning.launches(pool)
        order = Order(pool, avoid=frozenset(supply.aside.hosts), max_vms=in_force(pool, now).max_vms)
        spare = Spare(order, version.image.template_name, now)
        _log.info("a machine of pool %s is launched: %s", pool.name, because)
        self._spares.append(spare)
        going = spare.work = asyncio.create_task(self._bring_up(spare, version), name=f"launch for pool {pool.name}")
        self._launching.add(going)
        going.add_done_callback(self._launching.discard)

    async def _bring_up(self, spare: Spare, version: Usable) -> None:
        """Until it is ready; else it is ended."""
        try:
            try:
                await make_ready(spare, version.image, self._tools)
            except Exception as failure:
                await self._failed(spare, failure)
                spare.leaving = spare.leaving or f"it did not come up: {failure}"
        except BaseException:
            self._ends(spare)
            raise
        if spare.leaving:
            self._ends(spare)
            return
        self._planning.launched(spare.pool)
        _log.info("vm %s of pool %s is ready, after %.2f s", spare.id, spare.pool.name, spare.order.seconds or 0.0)
        spare.work = asyncio.create_task(self._keep(spare), name=f"keep {spare.id}")
        self._news.set()
        self._count(spare.pool)
        await record(spare.order, self._tools)

    async def _keep(self, spare: Spare) -> None:
        """See that it is there, and sealed; one that is not is ended."""
        guest = spare.guest
        while guest is not None:
            try:
                dropped = await _drops(guest)
                await self._unoffered()
                spare.busy = True
                async with asyncio.timeout(BACK_SECONDS):
                    await guest.check()
                    if dropped:
                        await probe_again(spare, self._tools)
                spare.busy = False
                self._news.set()
                if not dropped:  # a task may have it meanwhile: what was seen before is not old
                    async with asyncio.timeout(BACK_SECONDS):
                        await probe_again(spare, self._tools)
            except Exception as trouble:
                spare.busy = True
                await self._unoffered()
                self._end(spare, f"it is not fit any more: {str(trouble) or 'no answer in time'}")
                return

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
        self.look()
        ending = asyncio.create_task(self._see_it_gone(spare), name=f"end {spare.id}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _see_it_gone(self, spare: Spare) -> None:
        _log.info("vm %s of pool %s is ended: %s", spare.id, spare.pool.name, spare.leaving)
        try:
            await spare.around.aclose()
        except Exception as trouble:  # whatever it is, the machine goes
            _log.warning("it was not watched to its end: %s", trouble)
        if spare.machine is not None:  # else there is none, or upkeep will find it by its tag
            await destroy(spare.machine, self._tools, because=spare.leaving, if_spare=True)
            self._planning.went(spare.pool)
        self.look()

    async def _failed(self, spare: Spare, failure: Exception) -> None:
        """Written down before the next is launched."""
        if self._planning.failed(spare, failure):
            _log.warning("a machine of pool %s did not come up: %s", spare.pool.name, failure)
            await record(spare.order, self._tools, failure)
            self._planning.outdate()

    def _drop(self, spare: Spare) -> None:
        if spare.work is not None and spare.work is not asyncio.current_task():
            spare.work.cancel()
        self._spares.remove(spare)
        self._count(spare.pool)

    def _count(self, pool: Pool) -> None:
        ready = sum(each.ready_at is not None for each in self._spares if each.pool.name == pool.name)
        self._tools.telemetry.metrics.ready(pool.name, ready)


async def _drops(guest: Guest) -> bool:
    """Whether its connection drops, before it is time to ask it something."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await guest.dropped()
    except TimeoutError:
        return False
    return True
