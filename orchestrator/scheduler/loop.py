"""The scheduler: APScheduler with a table of chore and interval, run by the one scheduler that leads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from orchestrator import log
from orchestrator.scheduler.admit import Admit
from orchestrator.scheduler.deadlines import Deadlines
from orchestrator.scheduler.layers import Layers
from orchestrator.scheduler.leader import LEADER_SECONDS, Leadership
from orchestrator.scheduler.measure import Measure
from orchestrator.scheduler.pools import Pools
from orchestrator.scheduler.prune import Prune
from orchestrator.scheduler.reap import Reap
from orchestrator.scheduler.receipts import Receipts
from orchestrator.scheduler.schedules import Schedules
from orchestrator.scheduler.sweep import Sweep
from orchestrator.scheduler.upkeep import Chore, Upkeep
from orchestrator.telemetry import Metrics
from orchestrator.trouble import TROUBLE

CLOCK_SECONDS = 1.0
"""How often the wall clock is looked at, and how far it may be off by then."""

_log = logging.getLogger(__name__)

CHORES: dict[str, Callable[[Upkeep], Chore]] = {
    "admit": Admit,
    "layers": Layers,
    "schedules": Schedules,
    "deadlines": Deadlines,
    "reap": Reap,
    "pools": Pools,
    "receipts": Receipts,
    "measure": Measure,
    "prune": Prune,
    "sweep": Sweep,
}


async def serve(upkeep: Upkeep, stop: asyncio.Event, *, leader_seconds: float | None = None) -> None:
    """Run every chore at its interval until `stop`, while no other scheduler leads. A chore that fails is logged, and
    comes again. `leader_seconds`: a leader that dies is followed within that time."""
    leadership = Leadership(upkeep.store, leader_seconds or min(LEADER_SECONDS, upkeep.lease_seconds))
    metrics = upkeep.telemetry.metrics
    metrics.chores(CHORES)
    metrics.leads(False)
    try:
        while await leadership.won(stop):
            metrics.leads(True)
            try:
                with log.bound(term=leadership.term):
                    await _act(upkeep, leadership, stop)
            finally:
                metrics.leads(False)
    finally:
        await leadership.give_up()


async def _act(upkeep: Upkeep, leadership: Leadership, stop: asyncio.Event) -> None:
    """One term, from its beginning to its end. What a chore was in the middle of is given up: each write is guarded."""
    _log.info("this scheduler leads, in term %s", leadership.term)
    scheduler = AsyncIOScheduler(timezone=UTC)
    metrics = upkeep.telemetry.metrics
    rounds = [_Rounds(name, make(upkeep), leadership, metrics) for name, make in CHORES.items()]
    for each in rounds:
        scheduler.add_job(
            each.run,
            "interval",
            seconds=each.chore.interval_seconds,
            id=each.name,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
            next_run_time=datetime.now(UTC),
        )
    scheduler.start()
    watching = asyncio.create_task(_watch_the_clock(scheduler), name="watch the clock")
    try:
        await leadership.kept(stop)
    finally:
        watching.cancel()
        ending = asyncio.gather(*(each.end() for each in rounds))
        scheduler.shutdown(wait=False)
        await ending
        await leadership.settled()


async def _watch_the_clock(scheduler: AsyncIOScheduler) -> None:
    """APScheduler goes by the wall clock: when that is put back, a chore would be due hours from now. So every chore is
    due at once when it has jumped."""
    ahead = time.time() - time.monotonic()
    while True:
        await asyncio.sleep(CLOCK_SECONDS)
        was, ahead = ahead, time.time() - time.monotonic()
        if abs(ahead - was) > CLOCK_SECONDS:
            _log.warning("the clock has jumped by %+.0f s: every chore is due now", ahead - was)
            for job in scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))


class _Rounds:
    """The rounds of one chore in one term."""

    def __init__(self, name: str, chore: Chore, leadership: Leadership, metrics: Metrics) -> None:
        self.name = name
        self._metrics = metrics
        self.chore = chore
        self._leadership = leadership
        self._running: asyncio.Task[None] | None = None
        self._over = False
        self._trouble = ""

    async def run(self) -> None:
        """One round. Trouble that lasts is told once, and so is its end."""
        self._running = asyncio.current_task()
        try:
            if self._over or not await self._leadership.holds():
                return
            for line in await self._measured():
                _log.info("chore %s: %s", self.name, line)
            if self._trouble:
                _log.warning("chore %s: works again", self.name)
            self._trouble = ""
        except TROUBLE as trouble:
            if str(trouble) != self._trouble:
                _log.warning("chore %s failed, and comes again: %s", self.name, trouble)
            self._trouble = str(trouble) or type(trouble).__name__
        except asyncio.CancelledError:
            if not self._over:
                raise
        finally:
            self._running = None

    async def _measured(self) -> list[str]:
        """A round that is given up is neither good nor bad."""
        began = time.monotonic()
        try:
            lines = await self.chore.run_once()
        except Exception:
            self._metrics.chore(self.name, time.monotonic() - began, ok=False)
            raise
        self._metrics.chore(self.name, time.monotonic() - began, ok=True)
        return lines

    async def end(self) -> None:
        """Give up the round that is under way, and begin no other."""
        self._over = True
        running = self._running
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
