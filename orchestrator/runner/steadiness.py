"""Whether a lease that looks old is old: not for a while after an outage or a jump of the clock, for then all do."""

from __future__ import annotations

from datetime import datetime

from orchestrator.runner.heartbeats import BEATS_PER_LEASE, CLOCK_SECONDS


class Steadiness:
    """What one runner has seen of the database lately. Runners that live have beaten again two beats after an outage,
    and after a jump of the clock two beats after each of them asked for the time anew.

    monotonic: our own clock, in seconds. now: the store's.

    >>> steadiness, noon = Steadiness(60), datetime(2026, 1, 1, 12)
    >>> steadiness.holds(monotonic=5, now=noon)
    True
    >>> steadiness.outage(monotonic=6)
    >>> steadiness.holds(monotonic=7, now=noon.replace(second=2))
    False
    """

    def __init__(self, lease_seconds: float) -> None:
        self._beat_seconds = lease_seconds / BEATS_PER_LEASE
        self._last: tuple[float, datetime] | None = None
        self._doubtful_until = float("-inf")

    def outage(self, *, monotonic: float) -> None:
        """The database did not answer."""
        self._doubt(monotonic + 2 * self._beat_seconds)

    def holds(self, *, monotonic: float, now: datetime) -> bool:
        """Leases that look old are old. To be asked again and again: a jump shows from one time to the next."""
        if self._last is not None:
            then, told = self._last
            jump = (now - told).total_seconds() - (monotonic - then)
            if abs(jump) > self._beat_seconds:
                self._doubt(monotonic + CLOCK_SECONDS + 2 * self._beat_seconds)
        self._last = monotonic, now
        return monotonic >= self._doubtful_until

    def _doubt(self, until: float) -> None:
        self._doubtful_until = max(self._doubtful_until, until)
