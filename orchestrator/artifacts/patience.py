"""Waiting while this machine's disk is full. Whoever waits takes nothing more from a machine, whose process goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.artifacts.disk import in_thread
from orchestrator.domain.errors import HostDiskFull

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
QUIET_SECONDS = 60.0
"""A disk that is full, and has space, and is full again within so long is told of once."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WhenFull:
    """What a write does that meets a full disk: it is tried again, for up to `seconds` in a row, then HostDiskFull.

    `tell` hears of it once when it begins, and once when there is space again. Setting `hurry` ends all waiting.
    """

    seconds: float
    tell: Callable[[str], Awaitable[None]]
    hurry: asyncio.Event | None = None


class Patience:
    """That of one attempt, for all that it writes. None: HostDiskFull at once."""

    def __init__(self, when_full: WhenFull | None = None) -> None:
        self._when = when_full
        self._quiet_until = float("-inf")

    async def through(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, in a thread; it must be such that it can be repeated when it raised HostDiskFull."""
        try:
            return await in_thread(work)
        except HostDiskFull as full:
            if self._when is None:
                raise
            return await self._persist(work, self._when, full)

    async def _persist(self, work: Callable[[], _T], when: WhenFull, full: HostDiskFull) -> _T:
        now = asyncio.get_running_loop().time
        until, pause = now() + when.seconds, FIRST_PAUSE
        aloud = now() > self._quiet_until
        if aloud:
            await when.tell(f"{full}: waiting up to {when.seconds:g} s for space")
        while now() < until and not (when.hurry and when.hurry.is_set()):
            await _sleep(min(pause, until - now()), when.hurry)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                result = await in_thread(work)
            except HostDiskFull as again:
                full = again
                continue
            self._quiet_until = now() + QUIET_SECONDS
            if aloud:
                await when.tell("there is space on this machine again")
            return result
        raise full


async def _sleep(seconds: float, hurry: asyncio.Event | None) -> None:
    if hurry is None:
        await asyncio.sleep(max(0.0, seconds))
        return
    with suppress(TimeoutError):
        await asyncio.wait_for(hurry.wait(), max(0.0, seconds))
