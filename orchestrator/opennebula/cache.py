"""What OpenNebula said a moment ago, so that a burst of VMs does not ask the same again for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """`read(key)`, kept for `seconds`; several who ask at once wait for one reading. What it raises is not kept."""

    def __init__(self, read: Callable[[K], Awaitable[V]], seconds: float) -> None:
        self._read = read
        self._seconds = seconds
        self._kept: dict[K, tuple[float, V]] = {}
        self._reading: dict[K, asyncio.Lock] = {}

    async def get(self, key: K, *, not_before: float = float("-inf")) -> tuple[V, float]:
        """The value, and when its reading began (monotonic clock): not before then."""
        async with self._reading.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is None or time.monotonic() - kept[0] >= self._seconds or kept[0] < not_before:
                began = time.monotonic()
                kept = began, await self._read(key)
                self._kept[key] = kept
            return kept[1], kept[0]

    def forget(self) -> None:
        """Read again when asked next."""
        self._kept.clear()
