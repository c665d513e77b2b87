"""How fast machines are launched ahead of need: so many a minute, and slower while launches fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, Self

from orchestrator.domain.pool import Pool, Warm

_LONGEST_DOUBLING = 30


class Launched(Protocol):
    """How a launch went. ok: the machine was reached and checked. host: "" when it never had one. at: when that was
    known."""

    @property
    def pool(self) -> str: ...
    @property
    def image_version(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def message(self) -> str: ...
    @property
    def at(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """`tokens` launches at `at`, and `rate` more each minute, never above `burst`.

    >>> start = datetime.fromisoformat("2026-03-01T00:00Z")
    >>> Bucket(rate=6, burst=2, tokens=0, at=start).after(start + timedelta(seconds=10)).allowed
    1
    """

    rate: float
    burst: int
    tokens: float
    at: datetime

    @classmethod
    def full(cls, warm: Warm, now: datetime) -> Self:
        """As a runner begins with."""
        return cls(warm.launch_rate, warm.launch_burst, warm.launch_burst, now)

    @property
    def allowed(self) -> int:
        """How many may be launched now."""
        return int(self.tokens)

    def after(self, now: datetime) -> Self:
        """Refilled. A clock that was put back refills nothing."""
        minutes = max(0.0, (now - self.at).total_seconds() / 60)
        return replace(self, tokens=min(self.burst, self.tokens + self.rate * minutes), at=now)

    def under(self, warm: Warm, now: datetime) -> Self:
        """Refilled as it was until now, and by these numbers from now on."""
        then = self.after(now)
        tokens = min(then.tokens, warm.launch_burst)
        return replace(then, rate=warm.launch_rate, burst=warm.launch_burst, tokens=tokens)

    def less(self, count: int) -> Self:
        """When `count` were launched. Raises ValueError where so many are not allowed."""
        if not 0 <= count <= self.allowed:
            raise ValueError(f"{count} launches, where {self.allowed} are allowed")
        return replace(self, tokens=self.tokens - count)


def rest(launches: Iterable[Launched], pool: Pool) -> datetime | None:
    """Until when none is launched ahead of need, because the last launches of the pool failed; None: they did not.

    launches: the newest first. The rest doubles from failure to failure, by the pool's `retry_backoff`.
    """
    last: datetime | None = None
    failures = 0
    for launch in launches:
        if launch.pool != pool.name:
            continue
        if launch.ok:
            break
        last = last or launch.at
        failures += 1
    if last is None:
        return None
    seconds = pool.retry_backoff_seconds * 2.0 ** min(failures - 1, _LONGEST_DOUBLING)
    return last + timedelta(seconds=min(seconds, pool.retry_backoff_max_seconds))
