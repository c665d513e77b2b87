"""A lease on a task: kept alive by heartbeats, and the one way in which news reaches a running attempt.

The heartbeat extends the lease and reads the cancel flag in the same write. `while_held` runs a piece of work and gives
it up at once when the flag is up or the lease is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import MayflyError
from orchestrator.runner.beside import beside
from orchestrator.store import Lease, Store

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 1.0
"""Also the longest that a cancel waits to be noticed, beside the grace period."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Canceled(Exception):
    """Somebody asked for the task to be canceled."""


class LeaseLost(Exception):
    """The task is not ours any more: nothing may be written."""


class Hold:
    """Our hold on one attempt, and what its heartbeats learned."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.canceled = asyncio.Event()
        self.lost = asyncio.Event()
        self._store = store
        self._lease = lease
        self._held_until = asyncio.get_running_loop().time() + LEASE_SECONDS

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Heartbeats for as long as the block runs."""
        async with beside(self._beat(), "heartbeat"):
            yield

    async def while_held(self, work: Coroutine[Any, Any, _T], *, cancelable: bool = True) -> _T:
        """The result of `work`; LeaseLost, or Canceled if `cancelable`, as soon as that is known."""
        doing = asyncio.ensure_future(work)
        news = [asyncio.ensure_future(self.lost.wait())]
        if cancelable:
            news.append(asyncio.ensure_future(self.canceled.wait()))
        try:
            await asyncio.wait([doing, *news], return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return await doing
            raise LeaseLost if self.lost.is_set() else Canceled
        finally:
            for waiting in (doing, *news):
                waiting.cancel()
            await asyncio.gather(doing, *news, return_exceptions=True)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.lost.is_set():
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                pulse = await self._store.tasks.heartbeat(
                    self._lease, lease_seconds=LEASE_SECONDS, now=datetime.now(UTC)
                )
            except (MayflyError, SQLAlchemyError, OSError) as trouble:
                _log.warning("heartbeat failed: %s", trouble)
                if loop.time() > self._held_until:
                    self.lost.set()
                continue
            if pulse is None:
                self.lost.set()
                return
            self._held_until = loop.time() + LEASE_SECONDS
            if pulse.cancel_requested:
                self.canceled.set()
