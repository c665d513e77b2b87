"""The heartbeats of a runner: one write for all of its attempts, and a look at the cancel flags in between.

A lease is lost when the database says so, and not before: while that is gone nobody else can take the task either, and
the guards of every write settle who has it afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.runner.beside import beside
from orchestrator.runner.lease import Hold
from orchestrator.store import Lease, Store
from orchestrator.trouble import TROUBLE

BEATS_PER_LEASE = 6
LOOK_SECONDS = 1.0
"""The longest that a cancel waits to be noticed, beside the grace period."""

CLOCK_SECONDS = 30.0
"""How often the clock is set by the database's."""

_log = logging.getLogger(__name__)


class Heartbeats:
    """Those of one runner: `async with heartbeats.going()`, and inside it `heartbeats.of(hold)` around each attempt."""

    def __init__(self, store: Store, runner_id: str, lease_seconds: float) -> None:
        self._store = store
        self._runner_id = runner_id
        self._lease_seconds = lease_seconds
        self._holds: dict[Lease, Hold] = {}
        self._beating = asyncio.Lock()

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """Heartbeats for as long as the block runs."""
        async with beside(self._beat(), "heartbeats"), beside(self._set_clock(), "clock"):
            yield

    @asynccontextmanager
    async def of(self, hold: Hold) -> AsyncIterator[None]:
        """The attempt's lease is kept alive for as long as the block runs."""

        async def silence() -> None:
            async with self._beating:  # one that is under way would extend the lease once more
                self._holds.pop(hold.lease, None)

        self._holds[hold.lease] = hold
        hold.silence = silence
        try:
            yield
        finally:
            self._holds.pop(hold.lease, None)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        every = self._lease_seconds / BEATS_PER_LEASE
        due, away = loop.time() + every, False
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, every))
            if not self._holds:
                continue
            try:
                if loop.time() >= due:
                    async with self._beating:
                        await self._extend(dict(self._holds))
                    due = loop.time() + every
                else:
                    for lease in await self._store.tasks.canceling(self._runner_id) & self._holds.keys():
                        self._holds[lease].canceled.set()
            except TROUBLE as trouble:
                if not away:
                    _log.warning("no heartbeat: %s; what runs goes on", trouble)
                away = True
            else:
                away = False

    async def _extend(self, holds: dict[Lease, Hold]) -> None:
        beats = await self._store.tasks.beat(
            self._runner_id, holds.keys(), lease_seconds=self._lease_seconds, now=self._store.clock.now()
        )
        for lease, hold in holds.items():
            beat = beats.get(lease)
            if beat is None:
                hold.lost.set()
            elif beat.cancel_requested:
                hold.canceled.set()

    async def _set_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            try:
                await self._store.clock.sync()
            except TROUBLE as trouble:
                _log.info("the clock could not be set: %s", trouble)
