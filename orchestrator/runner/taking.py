"""The attempts of one runner that run, and the taking of more: of what was left by others, of tasks for which a machine
stands ready, of tasks for which one can be made."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from orchestrator import log
from orchestrator.decide import deadlines
from orchestrator.decide.periods import in_force
from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import TaskSpec
from orchestrator.runner.attempt import resume_attempt, run_attempt
from orchestrator.runner.beside import meanwhile
from orchestrator.runner.heartbeats import BEATS_PER_LEASE, Heartbeats
from orchestrator.runner.lease import Hold
from orchestrator.runner.patience import back_off, see_through
from orchestrator.runner.placing import Placing
from orchestrator.runner.progress import Progress
from orchestrator.runner.spare import Spare
from orchestrator.runner.steadiness import Steadiness
from orchestrator.runner.tools import Tools
from orchestrator.runner.warm import Stock
from orchestrator.store import Claim, Wakeups
from orchestrator.trouble import TROUBLE

POLL_SECONDS = 1.0
"""How often a runner looks without having been woken up."""

AT_LEAST_SECONDS = 0.02
"""So long at least, when there was nothing to take."""

STARTING_AT_ONCE = 50
"""Attempts of one runner whose process has not begun. More of them at once only keep each other from beginning: with a
thousand, eight processes ran after four minutes on two cores."""

STARTING_POLL_SECONDS = 0.1

LEFT_SECONDS = 0.05
"""How long a task is left to runners at which a machine stands ready for it, by one at which none does."""

TAKE_SECONDS = 3.0
"""How long a runner that is stopped at once waits for what it is claiming, so as to hand it back."""

_log = logging.getLogger(__name__)


class Taking:
    """The attempts that run, and the taking of more."""

    def __init__(self, tools: Tools, heartbeats: Heartbeats, placing: Placing, limit: int, news: asyncio.Event) -> None:
        self._tools = tools
        self._heartbeats = heartbeats
        self._limit = limit
        self._placing = placing
        self._running: dict[asyncio.Task[Verdict | None], Progress] = {}
        self._adopt_at = 0.0
        self._steadiness = Steadiness(tools.lease_seconds)
        self._news = news
        """Something has changed since we looked: an attempt ended, a machine is ready, OpenNebula has answered."""
        self._left_until = float("-inf")
        """Until then, tasks are left to those at whom a machine stands ready for them."""
        self.stock = Stock(tools, placing, free=lambda: limit - len(self._running), asked=self._under_way, news=news)

    async def take_until(self, stop: asyncio.Event, wakeups: Wakeups) -> None:
        """Take what there is, and wait for more, until `stop`."""
        pauses = back_off()
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                try:
                    taken = await see_through(self._take(), seconds=TAKE_SECONDS)
                except TROUBLE as trouble:
                    _log.warning("cannot take tasks: %s", trouble)
                    self._steadiness.outage(monotonic=asyncio.get_running_loop().time())
                    await asyncio.wait([stopping], timeout=next(pauses))
                    continue
                pauses = back_off()
                if not taken:
                    await self._idle(stopping, wakeups)
        finally:
            stopping.cancel()

    async def drain(self, seconds: float) -> None:
        """Say that we take no more, and wait for those that run."""
        try:
            await self._tools.store.runners.drain(self._tools.runner_id, now=self._tools.store.clock.now())
        except TROUBLE as trouble:
            _log.warning("that we drain could not be written down: %s", trouble)
        async with meanwhile(self.stock.close(), "ready machines go"):
            if self._running:
                _log.info("draining: %d attempts still run", len(self._running))
                await asyncio.wait(self._running, timeout=seconds)

    async def hand_over(self) -> None:
        """Let go of what still runs, and end what stands ready."""
        for attempt in self._running:
            attempt.cancel()
        await asyncio.gather(*self._running, self.stock.close(), return_exceptions=True)

    async def _take(self) -> bool:
        self._news.clear()
        free = min(self._limit - len(self._running), STARTING_AT_ONCE - self._starting())
        if free <= 0:
            return False
        # the pools as they are now: the inventory may be read again at any await
        tools = dataclasses.replace(self._tools, pools=dict(self._tools.pools))
        return await self._adopt(tools, free) or await self._begin(tools, free)

    async def _adopt(self, tools: Tools, free: int) -> bool:
        """Attempts that their runners have let go of."""
        monotonic, now = asyncio.get_running_loop().time(), tools.store.clock.now()
        if monotonic < self._adopt_at:
            return False
        self._adopt_at = monotonic + min(POLL_SECONDS, tools.lease_seconds / BEATS_PER_LEASE)
        if not self._steadiness.holds(monotonic=monotonic, now=now):
            return False
        seconds = tools.lease_seconds
        taken = await tools.store.tasks.adopt(
            tools.runner_id, tuple(tools.pools), lease_seconds=seconds, now=now, up_to=free
        )
        for each in taken:
            tools.telemetry.metrics.adopted(each.task.spec.pool)
            self._start(each, tools)
        return bool(taken)

    async def _begin(self, tools: Tools, free: int) -> bool:
        """Tasks for which a machine stands ready, or can be made. OpenNebula, which says of the latter, is not waited
        for: between a task that was submitted and the start of its process there is the database alone."""
        room = self._placing.at_hand(self._under_way() + self.stock.under_way())
        left = self._left_to_others(tools.pools)
        here = {name: count for name, count in (room or {}).items() if name in tools.pools and name not in left}
        with self.stock.offered(tools.pools) as ready:
            taken = await claim_with(tools, here, up_to=free, ready=ready)
            for each in taken:
                self._start(each, tools, None if each.vm_id is None else self.stock.take(each.vm_id))
        for each in taken:
            if each.vm_id is None:
                self._placing.took(each.task.spec.pool)
        if room is not None:
            await self._placing.tell()
        return bool(taken)

    def _left_to_others(self, pools: Collection[str]) -> set[str]:
        if asyncio.get_running_loop().time() >= self._left_until:
            return set()
        return {name for name in pools if self.stock.elsewhere(name)}

    def _starting(self) -> int:
        return sum(not progress.started for progress in self._running.values())

    def _under_way(self) -> Counter[str]:
        """VMs that OpenNebula was not asked for yet, or not long ago."""
        return Counter(progress.pool.name for progress in self._running.values() if not progress.placed)

    def _start(self, claimed: Claim, tools: Tools, spare: Spare | None = None) -> None:
        progress = Progress(tools, claimed, Hold(claimed.lease))
        running = run_held(progress, tools, self._heartbeats, spare, alone=False)
        attempt = asyncio.create_task(running, name=f"attempt {claimed.lease.task_id}")
        self._running[attempt] = progress
        attempt.add_done_callback(self._ended)

    def _ended(self, attempt: asyncio.Task[Verdict | None]) -> None:
        del self._running[attempt]
        self._news.set()
        self._placing.gave_back()
        self.stock.look()
        if not attempt.cancelled() and attempt.exception() is not None:
            _log.error("%s ended badly", attempt.get_name(), exc_info=attempt.exception())

    async def _idle(self, stopping: asyncio.Task[bool], wakeups: Wakeups) -> None:
        """Until there may be something to take: a task, or a machine or room for one."""
        loop = asyncio.get_running_loop()
        waits = [asyncio.create_task(self._news.wait(), name="news")]
        if len(self._running) < self._limit:
            seconds = min(POLL_SECONDS, self._tools.lease_seconds / BEATS_PER_LEASE)
            seconds = min(seconds, max(self._placing.good_for(), AT_LEAST_SECONDS))
            if self._starting() >= STARTING_AT_ONCE:
                seconds = min(seconds, STARTING_POLL_SECONDS)
            if self._left_until > loop.time():
                seconds = min(seconds, max(self._left_until - loop.time(), AT_LEAST_SECONDS))
            waits.append(asyncio.create_task(self._woken(wakeups, seconds), name="wake-up"))
        try:
            await asyncio.wait([stopping, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _woken(self, wakeups: Wakeups, seconds: float) -> Literal[True]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await wakeups.wait(seconds)
        now = loop.time()
        # tasks are left to others for a part of the time only, however many come
        if now - began < seconds and now > self._left_until + LEFT_SECONDS:
            self._left_until = now + LEFT_SECONDS
        return True


async def claim_with(
    tools: Tools,
    room: Mapping[str, int],
    *,
    up_to: int,
    ready: Mapping[str, Sequence[str]] = MappingProxyType({}),
    only: str | None = None,
) -> tuple[Claim, ...]:
    """Claim tasks for machines that are `ready` (ids by pool), or that there is `room` for."""
    if not (room or ready):
        return ()
    now = tools.store.clock.now()
    limits = {name: in_force(tools.pools[name], now).max_vms for name in room}

    def deadline(spec: TaskSpec) -> datetime:
        return deadlines.of_attempt(spec, tools.pools[spec.pool], now)

    claims = await tools.store.tasks.claim(
        tools.runner_id,
        room,
        max_vms=limits,
        lease_seconds=tools.lease_seconds,
        now=now,
        # as many of one pool as of another have room together, then it is asked again
        up_to=min(up_to, *room.values()) if room else up_to,
        only=only,
        deadline=deadline,
        ready=ready,
    )
    for each in claims:
        waited = None if each.task.admitted_at is None else (now - each.task.admitted_at).total_seconds()
        tools.telemetry.metrics.claimed(each.task.spec.pool, warm=each.vm_id is not None, waited_seconds=waited)
    return claims


async def run_held(
    progress: Progress, tools: Tools, heartbeats: Heartbeats, spare: Spare | None = None, *, alone: bool
) -> Verdict | None:
    """One attempt, under its lease: a new one, or one that another runner began."""
    if progress.task.cancel_requested_at is not None:
        progress.hold.canceled.set()
    with log.bound(task=progress.lease.task_id, attempt=progress.lease.attempt):
        async with heartbeats.of(progress.hold):
            if progress.stage is None:
                return await run_attempt(tools, progress, spare, alone=alone)
            return await resume_attempt(tools, progress, alone=alone)
