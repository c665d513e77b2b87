"""A runner: takes tasks that it can place, runs each on the page (`attempt.py`), and knows of no other runner."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Literal

from orchestrator import log
from orchestrator.decide import deadlines
from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import TaskSpec
from orchestrator.runner.attempt import resume_attempt, run_attempt
from orchestrator.runner.beside import beside
from orchestrator.runner.heartbeats import BEATS_PER_LEASE, Heartbeats
from orchestrator.runner.lease import Hold
from orchestrator.runner.patience import TROUBLE, back_off, see_through
from orchestrator.runner.placing import Placing
from orchestrator.runner.progress import Progress, Transfer
from orchestrator.runner.steadiness import Steadiness
from orchestrator.runner.tools import Tools
from orchestrator.store import Claim, Store, Wakeups

POLL_SECONDS = 1.0
"""How often a runner looks without having been woken up."""

AT_LEAST_SECONDS = 0.02
"""So long at least, when there was nothing to take."""

STARTING_AT_ONCE = 50
"""Attempts of one runner whose process has not begun. More of them at once only keep each other from beginning: with a
thousand, eight processes ran after four minutes on two cores."""

STARTING_POLL_SECONDS = 0.1

TAKE_SECONDS = 3.0
"""How long a runner that is stopped at once waits for what it is claiming, so as to hand it back."""

RUNNER_HEARTBEAT_SECONDS = 2.0
DRAIN_SECONDS = 3600.0

_log = logging.getLogger(__name__)


async def claim(tools: Tools, *, only: str | None = None) -> Claim | None:
    """Claim the first task that can be placed; `only`: that task or none."""
    async with Placing(tools).open() as placing:
        claims = await _claim(tools, placing, Counter(), up_to=1, only=only)
        return claims[0] if claims else None


async def work_on(claimed: Claim, tools: Tools, transfer: Transfer | None = None) -> Verdict | None:
    """Run one attempt under its lease, as the only one who is there to: a stop in the middle leaves no machine.

    None: the attempt failed and the task is QUEUED again, or it is not ours any more.
    """
    heartbeats = Heartbeats(tools.store, tools.runner_id, tools.lease_seconds)
    async with heartbeats.going():
        return await _run(Progress(tools, claimed, Hold(claimed.lease), transfer), tools, heartbeats, alone=True)


@asynccontextmanager
async def registered(store: Store, pools: Collection[str], *, name: str | None = None) -> AsyncIterator[str]:
    """Known as a runner, with a heartbeat, for as long as the block runs. Yields the runner's id, new each time.

    name: HOST-PID unless given. Raises NotPossible when a living runner has it.
    """
    runners, host = store.runners, socket.gethostname()
    name = name or f"{host}-{os.getpid()}"
    us = await runners.register(name=name, host=host, pid=os.getpid(), pools=pools, now=store.clock.now())

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


async def serve(tools: Tools, stop: asyncio.Event, *, limit: int, drain_seconds: float = DRAIN_SECONDS) -> None:
    """Adopt, claim and run until `stop`, at most `limit` attempts at once. Those that run have `drain_seconds` then to
    come to their end; what is left is handed over, as it is at once when this is canceled: a process that runs goes on,
    for another runner to adopt, and what had not begun goes back to its queue."""
    heartbeats = Heartbeats(tools.store, tools.runner_id, tools.lease_seconds)
    async with heartbeats.going(), tools.store.wakeups() as wakeups, Placing(tools).open() as placing:
        runner = _Runner(tools, heartbeats, placing, limit)
        try:
            await runner.take_until(stop, wakeups)
            await runner.drain(drain_seconds)
        finally:
            await runner.hand_over()


class _Runner:
    """The attempts that run, and the taking of more."""

    def __init__(self, tools: Tools, heartbeats: Heartbeats, placing: Placing, limit: int) -> None:
        self._tools = tools
        self._heartbeats = heartbeats
        self._limit = limit
        self._placing = placing
        self._running: dict[asyncio.Task[Verdict | None], Progress] = {}
        self._adopt_at = 0.0
        self._steadiness = Steadiness(tools.lease_seconds)
        self._freed = asyncio.Event()
        """An attempt has ended since we looked."""

    async def take_until(self, stop: asyncio.Event, wakeups: Wakeups) -> None:
        """Take what there is, and wait for more, until `stop`."""
        pauses = back_off()
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                try:
                    taken = await see_through(self._take(), seconds=TAKE_SECONDS)
                except TROUBLE as trouble:
                    _log.warning("cannot take tasks: %s", trouble)
                    self._steadiness.outage(monotonic=asyncio.get_running_loop().time())
                    await asyncio.wait([stopping], timeout=next(pauses))
                    continue
                pauses = back_off()
                if not taken:
                    await self._idle(stopping, wakeups)
        finally:
            stopping.cancel()

    async def drain(self, seconds: float) -> None:
        """Say that we take no more, and wait for those that run."""
        try:
            await self._tools.store.runners.drain(self._tools.runner_id, now=self._tools.store.clock.now())
        except TROUBLE as trouble:
            _log.warning("that we drain could not be written down: %s", trouble)
        if self._running:
            _log.info("draining: %d attempts still run", len(self._running))
            await asyncio.wait(self._running, timeout=seconds)

    async def hand_over(self) -> None:
        """Let go of what still runs."""
        for attempt in self._running:
            attempt.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self) -> bool:
        self._freed.clear()
        free = min(self._limit - len(self._running), STARTING_AT_ONCE - self._starting())
        if free <= 0:
            return False
        # the pools as they are now: the inventory may be read again at any await
        tools = dataclasses.replace(self._tools, pools=dict(self._tools.pools))
        taken = await self._adopt(tools, free) or await _claim(tools, self._placing, self._under_way(), up_to=free)
        for each in taken:
            self._start(each, tools)
        return bool(taken)

    async def _adopt(self, tools: Tools, free: int) -> tuple[Claim, ...]:
        monotonic, now = asyncio.get_running_loop().time(), tools.store.clock.now()
        if monotonic < self._adopt_at:
            return ()
        self._adopt_at = monotonic + min(POLL_SECONDS, tools.lease_seconds / BEATS_PER_LEASE)
        if not self._steadiness.holds(monotonic=monotonic, now=now):
            return ()
        return await tools.store.tasks.adopt(
            tools.runner_id,
            tuple(tools.pools),
            lease_seconds=tools.lease_seconds,
            now=now,
            up_to=free,
        )

    def _starting(self) -> int:
        return sum(not progress.started for progress in self._running.values())

    def _under_way(self) -> Counter[str]:
        """VMs that OpenNebula was not asked for yet, or not long ago."""
        return Counter(progress.pool.name for progress in self._running.values() if not progress.placed)

    def _start(self, claimed: Claim, tools: Tools) -> None:
        progress = Progress(tools, claimed, Hold(claimed.lease))
        attempt = asyncio.create_task(
            _run(progress, tools, self._heartbeats, alone=False), name=f"attempt {claimed.lease.task_id}"
        )
        self._running[attempt] = progress
        attempt.add_done_callback(self._ended)

    def _ended(self, attempt: asyncio.Task[Verdict | None]) -> None:
        del self._running[attempt]
        self._freed.set()
        self._placing.gave_back()
        if not attempt.cancelled() and attempt.exception() is not None:
            _log.error("%s ended badly", attempt.get_name(), exc_info=attempt.exception())

    async def _idle(self, stopping: asyncio.Task[bool], wakeups: Wakeups) -> None:
        """Until there may be something to take: a task, or room for one."""
        waits = [asyncio.create_task(self._freed.wait(), name="an attempt ends")]
        if len(self._running) < self._limit:
            seconds = min(POLL_SECONDS, self._tools.lease_seconds / BEATS_PER_LEASE)
            seconds = min(seconds, max(self._placing.good_for(), AT_LEAST_SECONDS))
            if self._starting() >= STARTING_AT_ONCE:
                seconds = min(seconds, STARTING_POLL_SECONDS)
            waits.append(asyncio.create_task(_woken(wakeups, seconds), name="wake-up"))
        try:
            await asyncio.wait([stopping, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def _woken(wakeups: Wakeups, seconds: float) -> Literal[True]:
    await wakeups.wait(seconds)
    return True


async def _claim(
    tools: Tools, placing: Placing, under_way: Counter[str], *, up_to: int, only: str | None = None
) -> tuple[Claim, ...]:
    room = {name: count for name, count in (await placing.room(under_way)).items() if name in tools.pools}
    if not room:
        return ()
    now = tools.store.clock.now()

    def deadline(spec: TaskSpec) -> datetime:
        return deadlines.of_attempt(spec, tools.pools[spec.pool], now)

    claims = await tools.store.tasks.claim(
        tools.runner_id,
        room,
        max_vms={name: tools.pools[name].max_vms for name in room},
        lease_seconds=tools.lease_seconds,
        now=now,
        # as many of one pool as of another have room together, then it is asked again
        up_to=min(up_to, *room.values()),
        only=only,
        deadline=deadline,
    )
    for each in claims:
        placing.took(each.task.spec.pool)
    return claims


async def _run(progress: Progress, tools: Tools, heartbeats: Heartbeats, *, alone: bool) -> Verdict | None:
    """One attempt: a new one, or one that another runner began."""
    if progress.task.cancel_requested_at is not None:
        progress.hold.canceled.set()
    go = run_attempt if progress.stage is None else resume_attempt
    with log.bound(task=progress.lease.task_id, attempt=progress.lease.attempt):
        async with heartbeats.of(progress.hold):
            return await go(tools, progress, alone=alone)
