"""Work that goes on beside a block, and ends with it: heartbeats, a look at the machine now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` for as long as the block does. An error that it broke off with is raised at the block's end."""
    going = asyncio.create_task(work, name=name)
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
