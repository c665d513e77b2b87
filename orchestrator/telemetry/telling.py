"""What runners and schedulers tell: counts, at once; and which attempts are over, to be read again beside all else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.metrics import Metrics

AT_MOST = 10_000
"""Attempts that are over and not read yet. Further ones are not told of: nothing waits for measurements."""

LAST_SECONDS = 3.0
"""How long the end of a process waits for what is not told yet."""

Read = Callable[[str, int], Awaitable[Ended | None]]
"""Reads an attempt of a task; None: it is not over, or there is none."""

_log = logging.getLogger(__name__)


class Traces(Protocol):
    """Where traces go."""

    def write(self, attempt: Ended) -> None:
        """Make a trace of it; what sends it does not wait."""

    def close(self, seconds: float) -> None:
        """Send what is left, within so long. Blocks."""


class Telemetry:
    """`metrics` count at once. What `over` is told of is read and told only inside `going`, and only where somebody
    listens. Without anything it counts for nobody."""

    def __init__(self, metrics: Metrics | None = None, *, traces: Traces | None = None) -> None:
        self.metrics = Metrics() if metrics is None else metrics
        self._traces = traces
        self._over: asyncio.Queue[tuple[str, int]] | None = None

    def over(self, task_id: str, attempt: int) -> None:
        """This attempt is over, by a write of ours that was applied. Returns at once."""
        if self._over is not None:
            try:
                self._over.put_nowait((task_id, attempt))
            except asyncio.QueueFull:
                _log.info("attempt %d of task %s is not measured: too many are over at once", attempt, task_id)

    @asynccontextmanager
    async def going(self, read: Read) -> AsyncIterator[None]:
        """Tell of what is over, for as long as the block runs and a little longer."""
        if not self.metrics.exposed and self._traces is None:
            yield
            return
        self._over = asyncio.Queue(AT_MOST)
        telling = asyncio.create_task(self._tell(self._over, read), name="telemetry")
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(LAST_SECONDS):
                    await self._over.join()
            except TimeoutError:
                _log.warning("%d attempts that are over could not be measured in time", self._over.qsize())
            finally:
                telling.cancel()
                self._over = None
                if self._traces is not None:
                    await asyncio.to_thread(self._traces.close, LAST_SECONDS)

    async def _tell(self, over: asyncio.Queue[tuple[str, int]], read: Read) -> None:
        while True:
            task_id, number = await over.get()
            try:
                attempt = await read(task_id, number)
                if attempt is not None:
                    self.metrics.ended(attempt)
                    if self._traces is not None:
                        self._traces.write(attempt)
            except Exception as trouble:  # whatever it is: nothing depends on it
                _log.info("attempt %d of task %s is not measured: %s", number, task_id, trouble)
            finally:
                over.task_done()
