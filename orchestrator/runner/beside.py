"""Work that goes on beside a block, and ends with it: heartbeats, a look at the machine now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

_log = logging.getLogger(__name__)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` for as long as the block does. An error that it broke off with is told at once, and raised at the
    block's end."""
    going = asyncio.create_task(work, name=name)
    going.add_done_callback(_tell)
    try:
        yield
    finally:
        going.cancel()
        with suppress(asyncio.CancelledError):
            await going


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside the block, and see it to its end; it is given up when the block fails."""
    going = asyncio.create_task(work, name=name)
    try:
        yield
        await going
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


def _tell(work: asyncio.Task[None]) -> None:
    """The block may go on for days."""
    if not work.cancelled() and (error := work.exception()) is not None:
        _log.error("%s broke off", work.get_name(), exc_info=error)
