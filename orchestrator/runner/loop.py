"""A runner: claims tasks that it can place, runs each on the page (`attempt.py`), and knows of no other runner."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from orchestrator import log
from orchestrator.domain.errors import MayflyError
from orchestrator.domain.outcome import Verdict
from orchestrator.runner.attempt import run_attempt
from orchestrator.runner.beside import beside
from orchestrator.runner.lease import LEASE_SECONDS, Hold
from orchestrator.runner.progress import Progress, Transfer
from orchestrator.runner.tools import Tools
from orchestrator.store import Claim, Store

POLL_SECONDS = 0.2
RUNNER_HEARTBEAT_SECONDS = 2.0
DRAIN_SECONDS = 3600.0

_log = logging.getLogger(__name__)


async def claim(tools: Tools, *, only: str | None = None) -> Claim | None:
    """Claim the oldest task whose pool has room for one more VM; `only`: that task or none."""
    room = {name: pool.max_vms for name, pool in tools.pools.items()}
    return await tools.store.tasks.claim(
        tools.runner_id, room, lease_seconds=LEASE_SECONDS, now=datetime.now(UTC), only=only, max_vms=room
    )


async def work_on(claimed: Claim, tools: Tools, transfer: Transfer | None = None) -> Verdict | None:
    """Run one attempt under its lease."""
    lease = claimed.lease
    hold = Hold(tools.store, lease)
    with log.bound(task=lease.task_id, attempt=lease.attempt):
        async with hold.kept():
            return await run_attempt(claimed.task, tools, Progress(tools.store, claimed, hold, transfer))


@asynccontextmanager
async def registered(store: Store, pools: Collection[str]) -> AsyncIterator[str]:
    """Known as a runner, with a heartbeat, for as long as the block runs. Yields the runner's id, new each time."""
    runners = store.runners
    us = await runners.register(host=socket.gethostname(), pid=os.getpid(), pools=pools, now=datetime.now(UTC))

    async def beat() -> None:
        while True:
            await asyncio.sleep(RUNNER_HEARTBEAT_SECONDS)
            try:
                await runners.heartbeat(us.id, now=datetime.now(UTC))
            except (MayflyError, SQLAlchemyError, OSError) as trouble:
                _log.warning("runner heartbeat failed: %s", trouble)

    try:
        async with beside(beat(), "runner heartbeat"):
            yield us.id
    finally:
        await runners.leave(us.id, now=datetime.now(UTC))


async def serve(tools: Tools, stop: asyncio.Event, *, limit: int) -> None:
    """Claim and run until `stop`, at most `limit` attempts at once; then let those that run come to their end."""
    running: set[asyncio.Task[Verdict | None]] = set()
    try:
        while not stop.is_set():
            claimed = None
            if len(running) < limit:
                try:
                    claimed = await claim(tools)
                except (MayflyError, SQLAlchemyError, OSError) as trouble:
                    _log.warning("cannot claim: %s", trouble)
            if claimed is not None:
                attempt = asyncio.create_task(work_on(claimed, tools), name=f"attempt {claimed.lease.task_id}")
                running.add(attempt)
                attempt.add_done_callback(running.discard)
                attempt.add_done_callback(_tell)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
        if running:
            _log.info("draining: %d attempts still run", len(running))
            await asyncio.wait(running, timeout=DRAIN_SECONDS)
    finally:
        for attempt in list(running):
            attempt.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _tell(attempt: asyncio.Task[Verdict | None]) -> None:
    if not attempt.cancelled() and attempt.exception() is not None:
        _log.error("%s ended badly", attempt.get_name(), exc_info=attempt.exception())
