"""What a queue must offer to be measured. Each of the systems does it in the way its own documentation shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

DEEP, QUICK = "deep", "quick"
"""Two queues: DEEP is filled to the depth that is measured, QUICK is empty but for the tasks of the pick-up latency."""
PAYLOAD_BYTES = 400
"""What a task carries, roughly: our spec of a short command as JSON; the others get as many bytes."""
CONNECTIONS = 20
"""Connections to the database at most, and jobs that a worker has under way at most."""
BATCH = 10
"""How many tasks are claimed, or finished, in one call where a system offers that. PgQueuer's own default."""

Held = TypeVar("Held")


class System(Protocol[Held]):
    """An open queue. `Held` is what a claim gives and a finish takes."""

    name: str
    claims_many: bool
    finishes_many: bool

    async def fill(self, waiting: int) -> None:
        """Bring DEEP to `waiting` tasks by bulk INSERT, each as the system's own enqueue leaves it."""

    async def enqueue(self, queue: str) -> None:
        """One task, committed."""

    async def enqueue_many(self, queue: str, count: int) -> None:
        """As many in one call."""

    async def claim(self, queue: str, count: int) -> Sequence[Held]:
        """Up to `count` tasks, in one call, committed."""

    async def finish(self, held: Sequence[Held]) -> None:
        """Successfully ended, in one call, committed."""

    def working(self, queue: str, taken: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """While the block runs, a worker takes jobs of `queue`, which do nothing but call `taken`, and finishes them.
        At the end of the block it stops."""
