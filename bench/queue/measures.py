"""The measures, the same for every system."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bench.queue.system import BATCH, DEEP, QUICK, Held, System

CALLERS = 10
"""Callers at once, in one process; each begins its next call when the last has ended."""
ENQUEUE_MANY = 100
MEASURE_SECONDS = 15.0
"""No single measure takes longer: it ends with as many calls as there were by then."""
PICK_UPS_SECONDS = 10.0
SETTLE_SECONDS = 0.3
PICK_UP_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Effort:
    """How much is measured: single calls of each kind, tasks enqueued in batches, tasks worked off, pick-ups timed."""

    singles: int = 300
    in_batches: int = 2000
    worked: int = 1000
    pick_ups: int = 60


@dataclass(frozen=True)
class Rates:
    """Tasks per second; the milliseconds of one call are the median's and the slowest twentieth's."""

    enqueue: float
    enqueue_many: float
    claim: float
    claim_many: float | None
    finish: float
    finish_many: float | None
    work: float
    claim_ms: tuple[float, float]


@dataclass(frozen=True)
class PickUp:
    """Milliseconds from the call of enqueue to the begin of the job in a worker that waits."""

    median: float
    slow: float


def median_rates(rounds: Sequence[Rates]) -> Rates:
    """Of each figure the median over the rounds."""

    def middle(read: Callable[[Rates], float | None]) -> float | None:
        values = [value for value in map(read, rounds) if value is not None]
        return statistics.median(values) if values else None

    return Rates(
        enqueue=statistics.median(each.enqueue for each in rounds),
        enqueue_many=statistics.median(each.enqueue_many for each in rounds),
        claim=statistics.median(each.claim for each in rounds),
        claim_many=middle(lambda each: each.claim_many),
        finish=statistics.median(each.finish for each in rounds),
        finish_many=middle(lambda each: each.finish_many),
        work=statistics.median(each.work for each in rounds),
        claim_ms=(
            statistics.median(each.claim_ms[0] for each in rounds),
            statistics.median(each.claim_ms[1] for each in rounds),
        ),
    )


async def measure_rates(system: System[Held], effort: Effort) -> Rates:
    """At the depth that the system has been filled to. It has about as many waiting afterwards."""
    enqueue, _ = await _paced(effort.singles, lambda: system.enqueue(DEEP))
    batches = effort.in_batches // ENQUEUE_MANY
    enqueue_many, _ = await _paced(batches, lambda: system.enqueue_many(DEEP, ENQUEUE_MANY))

    singly: list[Sequence[Held]] = []
    claim, took = await _paced(effort.singles, lambda: _keep(singly, system.claim(DEEP, 1)))
    together: list[Sequence[Held]] = []
    claim_many = finish_many = None
    if system.claims_many:
        calls = max(1, effort.singles // BATCH)
        per_call, _ = await _paced(calls, lambda: _keep(together, system.claim(DEEP, BATCH)))
        claim_many = per_call * BATCH
    if any(len(each) != 1 for each in singly) or any(len(each) != BATCH for each in together):
        raise RuntimeError(f"{system.name} gave fewer tasks than were waiting")

    finish, _ = await _paced(len(singly), lambda: system.finish(singly.pop()))
    if system.finishes_many:
        per_call, _ = await _paced(len(together), lambda: system.finish(together.pop()))
        finish_many = per_call * BATCH
    for held in (held for each in (*singly, *together) for held in each):
        await system.finish([held])
    return Rates(
        enqueue=enqueue,
        enqueue_many=enqueue_many * ENQUEUE_MANY,
        claim=claim,
        claim_many=claim_many,
        finish=finish,
        finish_many=finish_many,
        work=await _worked(system, effort.worked),
        claim_ms=(1000 * statistics.median(took), 1000 * _slow(took)),
    )


async def measure_pick_up(system: System[Held], count: int) -> PickUp:
    """One task at a time into QUICK, at moments that fit no clock. What waits in DEEP is none of the worker's."""
    taken = asyncio.Event()
    took: list[float] = []
    async with system.working(QUICK, taken.set):
        await _one_pick_up(system, taken)  # the worker may still be starting
        give_up = time.monotonic() + PICK_UPS_SECONDS
        while len(took) < count and (time.monotonic() < give_up or not took):
            await asyncio.sleep(random.uniform(0.02, 0.06))
            took.append(await _one_pick_up(system, taken))
        await asyncio.sleep(SETTLE_SECONDS)
    return PickUp(1000 * statistics.median(took), 1000 * _slow(took))


async def _one_pick_up(system: System[Held], taken: asyncio.Event) -> float:
    taken.clear()
    began = time.perf_counter()
    await system.enqueue(QUICK)
    async with asyncio.timeout(PICK_UP_TIMEOUT_SECONDS):
        await taken.wait()
    return time.perf_counter() - began


async def _worked(system: System[Held], count: int) -> float:
    """Tasks per second through the system's own worker, from its first to its last; the start is left out."""
    times: list[float] = []
    done = asyncio.Event()

    def taken() -> None:
        times.append(time.perf_counter())
        if len(times) > count:
            done.set()

    async with system.working(DEEP, taken):
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), MEASURE_SECONDS)
        last = len(times) - 1
    return last / (times[last] - times[0]) if last > 0 else 0.0


async def _paced(count: int, call: Callable[[], Awaitable[object]]) -> tuple[float, list[float]]:
    """`count` calls by CALLERS callers, or what MEASURE_SECONDS allow: calls per second, and the seconds of each."""
    left = count
    took: list[float] = []

    async def caller() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < give_up:
            left -= 1
            called = time.perf_counter()
            await call()
            took.append(time.perf_counter() - called)

    began = time.perf_counter()
    give_up = began + MEASURE_SECONDS
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return len(took) / (time.perf_counter() - began), took


async def _keep(kept: list[Sequence[Held]], claiming: Awaitable[Sequence[Held]]) -> None:
    kept.append(await claiming)


def _slow(took: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(took)[min(len(took) - 1, int(len(took) * 0.95))]
