"""How launches of machines went lately, of all runners: read for many, now and then."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from orchestrator.store import Launch, Store

KEPT_SECONDS = 2.0


class RecentLaunches:
    """One runner's view of them, a few seconds old at most."""

    def __init__(self) -> None:
        self.known: tuple[Launch, ...] = ()
        """As they were read last."""
        self._at = self._forgotten_at = float("-inf")
        self._reading = asyncio.Lock()

    async def newest(self, store: Store, back: timedelta) -> tuple[Launch, ...]:
        """Those of so long ago and later, the newest first."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            began = loop.time()
            if self._at <= self._forgotten_at or began - self._at > KEPT_SECONDS:
                self.known = await store.vms.launches(since=store.clock.now() - back)
                self._at = began
            return self.known

    def forget(self) -> None:
        """Read them again when they are needed next, also if they are being read: one of ours went wrong."""
        self._forgotten_at = asyncio.get_running_loop().time()
