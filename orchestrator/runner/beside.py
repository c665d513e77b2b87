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
