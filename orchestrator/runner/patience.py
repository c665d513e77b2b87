"""Waiting for an outage to end: asked again with back-off, never given up for it, and told once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError

from orchestrator.domain.errors import NotPossible, PlatformError

AGAIN_SECONDS = 0.1
AGAIN_AT_MOST_SECONDS = 5.0

_NO_DATABASE = (PlatformError, NotPossible, OperationalError, OSError)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def back_off() -> Iterator[float]:
    """Seconds to wait, twice as long each time up to a limit, with jitter: not all come back at one instant."""
    seconds = AGAIN_SECONDS
    while True:
        yield seconds * (0.5 + random.random() / 2)
        seconds = min(2 * seconds, AGAIN_AT_MOST_SECONDS)


async def persist(ask: Callable[[], Awaitable[_T]], what: str) -> _T:
    """The database's answer. While it is gone it is asked again: our writes are guarded, and may be."""
    for told, pause in enumerate(back_off()):
        try:
            return await ask()
        except _NO_DATABASE as trouble:
            if not told:
                _log.warning("the database does not take it (%s), and is asked again: %s", what, trouble)
        await asyncio.sleep(pause)
    raise AssertionError("back_off never ends")


async def see_through(work: Coroutine[Any, Any, _T], *, seconds: float) -> _T:
    """The result of `work`, which is not given up in the middle: when we are canceled it has `seconds` more. The cancel
    is heeded then; a second one ends it at once."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([doing], timeout=seconds)
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
        raise
