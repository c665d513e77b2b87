"""A runner: takes tasks that it can place, runs each on the page (`attempt.py`), and knows of no other runner."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from orchestrator.domain.outcome import Verdict
from orchestrator.runner.beside import beside
from orchestrator.runner.heartbeats import Heartbeats
from orchestrator.runner.lease import Hold
from orchestrator.runner.placing import Placing
from orchestrator.runner.progress import Progress, Transfer
from orchestrator.runner.taking import Taking, claim_with, run_held
from orchestrator.runner.tools import Tools
from orchestrator.store import Claim, Store
from orchestrator.trouble import TROUBLE

RUNNER_HEARTBEAT_SECONDS = 2.0
DRAIN_SECONDS = 3600.0

_log = logging.getLogger(__name__)


async def claim(tools: Tools, *, only: str | None = None) -> Claim | None:
    """Claim the first task that can be placed; `only`: that task or none."""
    async with Placing(tools).open() as placing:
        room = {name: count for name, count in (await placing.room()).items() if name in tools.pools}
        claims = await claim_with(tools, room, up_to=1, only=only)
        return claims[0] if claims else None


async def work_on(claimed: Claim, tools: Tools, transfer: Transfer | None = None) -> Verdict | None:
    """Run one attempt under its lease, as the only one who is there to: a stop in the middle leaves no machine.

    None: the attempt failed and the task is QUEUED again, or it is not ours any more.
    """
    heartbeats = Heartbeats(tools.store, tools.runner_id, tools.lease_seconds)
    async with heartbeats.going():
        progress = Progress(tools, claimed, Hold(claimed.lease), transfer)
        return await run_held(progress, tools, heartbeats, alone=True)


@asynccontextmanager
async def registered(store: Store, pools: Collection[str], *, name: str | None = None) -> AsyncIterator[str]:
    """Known as a runner, with a heartbeat, for as long as the block runs. Yields the runner's id, new each time.

    name: HOST-PID unless given. Raises NotPossible when a living runner has it.
    """
    runners, host = store.runners, socket.gethostname()
    name = name or f"{host}-{os.getpid()}"
    us = await runners.register(
        name=name, host=host, pid=os.getpid(), pools=pools, now=store.clock.now(), gone=_is_no_more
    )

    async def beat() -> None:
        while True:
            await asyncio.sleep(RUNNER_HEARTBEAT_SECONDS)
            try:
                await runners.heartbeat(us.id, now=store.clock.now())
            except TROUBLE as trouble:
                _log.info("runner heartbeat failed: %s", trouble)

    try:
        async with beside(beat(), "runner heartbeat"):
            yield us.id
    finally:
        try:
            await runners.leave(us.id, now=store.clock.now())
        except TROUBLE as trouble:
            _log.warning("that we leave could not be written down: %s", trouble)


def _is_no_more(pid: int) -> bool:
    """Of a process of this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it is somebody else's
    return False


async def serve(tools: Tools, stop: asyncio.Event, *, limit: int, drain_seconds: float = DRAIN_SECONDS) -> None:
    """Adopt, claim and run until `stop`, at most `limit` attempts at once. Those that run have `drain_seconds` then to
    come to their end; what is left is handed over, as it is at once when this is canceled: a process that runs goes on,
    for another runner to adopt, and what had not begun goes back to its queue."""
    heartbeats, news = Heartbeats(tools.store, tools.runner_id, tools.lease_seconds), asyncio.Event()
    async with heartbeats.going(), tools.store.wakeups() as wakeups, Placing(tools, news).open() as placing:
        runner = Taking(tools, heartbeats, placing, limit, news)
        async with runner.stock.going():
            try:
                await runner.take_until(stop, wakeups)
                await runner.drain(drain_seconds)
            finally:
                await runner.hand_over()
