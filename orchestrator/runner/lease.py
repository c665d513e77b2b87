"""Our hold on one attempt, and the one way in which news reaches it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from orchestrator.store import Lease

_T = TypeVar("_T")


class Canceled(Exception):
    """Somebody asked for the task to be canceled."""


class LeaseLost(Exception):
    """The task is not ours any more: nothing may be written."""


async def _nothing() -> None:
    pass


class Hold:
    """What the runner's heartbeats learned of an attempt: `canceled`, or `lost`. `silence` ends them for this one."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.canceled = asyncio.Event()
        self.lost = asyncio.Event()
        self.silence: Callable[[], Awaitable[None]] = _nothing

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
