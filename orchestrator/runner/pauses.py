"""Rests between launches for reasons that are not written down: neither image nor host is to blame for them."""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.domain.pool import Pool

NO_ROOM_SECONDS = 1.0
_LONGEST_DOUBLING = 30


class Pauses:
    """Those of one runner, by pool; each failure in a row doubles the rest, by the pool's back-off."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}
        self._failures: dict[str, int] = {}

    def until(self, pool: str, other: datetime | None) -> datetime | None:
        """The end of the pool's rest, or of the other one if that is later."""
        ours = self._until.get(pool)
        return max(ours, other) if ours and other else ours or other

    def longer(self, pool: Pool, now: datetime) -> None:
        """A launch failed."""
        failures = self._failures[pool.name] = self._failures.get(pool.name, 0) + 1
        seconds = pool.retry_backoff_seconds * 2.0 ** min(failures - 1, _LONGEST_DOUBLING)
        self._until[pool.name] = now + timedelta(seconds=min(seconds, pool.retry_backoff_max_seconds))

    def short(self, pool: Pool, now: datetime) -> None:
        """The pool has as many machines as it may; it is counted again soon."""
        self._until[pool.name] = now + timedelta(seconds=NO_ROOM_SECONDS)

    def over(self, pool: str) -> None:
        """A launch went well."""
        self._failures.pop(pool, None)
        self._until.pop(pool, None)
