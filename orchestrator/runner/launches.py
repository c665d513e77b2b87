"""How launches of machines went lately, of all runners: read for many, now and then."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from orchestrator.domain.errors import CloudError
from orchestrator.opennebula import Cloud
from orchestrator.store import Launch, Store

KEPT_SECONDS = 2.0
HOSTS_KEPT_SECONDS = 60.0


class RecentLaunches:
    """One runner's view of them, a few seconds old at most."""

    def __init__(self) -> None:
        self.known: tuple[Launch, ...] = ()
        """As they were read last."""
        self._hosts: tuple[int, float] | None = None
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

    async def hosts(self, cloud: Cloud) -> int:
        """How many hosts take VMs, as of a minute ago; 1 where that cannot be told."""
        loop = asyncio.get_running_loop()
        if self._hosts is None or loop.time() - self._hosts[1] > HOSTS_KEPT_SECONDS:
            try:
                capacity = await cloud.capacity()
            except CloudError:
                return 1
            self._hosts = len(capacity.hosts or ()) or 1, loop.time()
        return self._hosts[0]

    def forget(self) -> None:
        """Read them again when they are needed next, also if they are being read: one of ours went wrong."""
        self._forgotten_at = asyncio.get_running_loop().time()
