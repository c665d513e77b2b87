"""How fast OpenNebula is asked: its documentation advises against more than 30 requests a second in all.

("Large Deployments": "the number of API requests should be kept below 30 per second" for one front-end.)
"""

from __future__ import annotations

import asyncio


class Limiter:
    """At most `rate` turns a second over any longer time, and `burst` of them at once after a quiet while.

    Turns are given in the order in which they are asked for, in one event loop. The limit is this process's: several
    processes that share an OpenNebula share its 30 requests a second, too.
    """

    def __init__(self, rate: float, burst: int) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a limit is a rate above 0 and a burst of 1 or more")
        self._gap = 1 / rate
        self._slack = (burst - 1) * self._gap
        self._due = float("-inf")
        """When, by the event loop's clock, the last turn given is paid for."""

    async def turn(self, *, urgent: bool = False) -> None:
        """Return when it is our turn: at once if `urgent`, and those behind wait that much longer."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due + self._gap, now - self._slack)
        if urgent or self._due <= now:
            return
        try:
            await asyncio.sleep(self._due - now)
        except asyncio.CancelledError:
            self._due -= self._gap  # nobody takes this turn
            raise
