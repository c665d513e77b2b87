"""What every database must do for those who wait: word of each task that may have become ready, of little else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState, Terms
from orchestrator.store import Finished, StageEntered, Store, Wakeups
from tests.conformance.queueing import T0, at, claimed, retried, spec, submit, take_one

LONG = 60.0


@pytest.fixture
async def other(store_url: str) -> AsyncIterator[Store]:
    """Another process's."""
    async with await Store.open(store_url) as opened:
        yield opened


@pytest.fixture
async def wakeups(store: Store) -> AsyncIterator[Wakeups]:
    """That of a runner to which everything so far was told."""
    async with store.wakeups() as waiting:
        await in_time(waiting.wait(LONG))
        yield waiting


async def in_time(work: Awaitable[None]) -> None:
    """Long before the wait would have been over by itself."""
    async with asyncio.timeout(LONG / 2):
        await work


async def woken_by(wakeups: Wakeups, work: Callable[[], Awaitable[object]]) -> None:
    waiting = asyncio.create_task(wakeups.wait(LONG))
    assert await work()
    await in_time(waiting)


async def test_whoever_begins_to_wait_looks_at_once(store: Store) -> None:
    async with store.wakeups() as wakeups:
        await in_time(wakeups.wait(LONG))


@pytest.mark.parametrize("by_another", [False, True])
async def test_a_task_that_becomes_ready_wakes_those_who_wait(
    store: Store, other: Store, wakeups: Wakeups, by_another: bool
) -> None:
    one = other if by_another else store
    held = await submit(store, spec("none"), now=T0, hold=True)
    await in_time(wakeups.wait(LONG))
    await woken_by(wakeups, lambda: one.tasks.release(held.id, now=at(1)))
    await woken_by(wakeups, lambda: submit(one, spec(), now=at(1)))
    claim = await claimed(store)
    await in_time(wakeups.wait(LONG))
    await woken_by(wakeups, lambda: one.tasks.requeue(retried(claim.lease, Reason.RETRY), now=at(2)))
    again = await take_one(store, claim.lease.runner_id, ["small"], now=at(3), only=claim.task.id)
    assert again is not None
    await woken_by(wakeups, lambda: one.tasks.let_go(again.lease, now=at(4)))
    await submit(store, spec(terms=Terms(not_before=at(60))), now=T0)
    await in_time(wakeups.wait(LONG))
    await woken_by(wakeups, lambda: one.tasks.admit(now=at(60)))
    await store.queues.pause("small", "", now=at(61))
    await woken_by(wakeups, lambda: one.queues.resume("small", now=at(62)))


async def test_those_who_work_wake_nobody(store: Store, other: Store, wakeups: Wakeups) -> None:
    claim = await claimed(store)
    await in_time(wakeups.wait(LONG))
    for _ in range(5):
        assert await other.tasks.heartbeat(claim.lease, lease_seconds=30, now=at(2)) is not None
        await store.tasks.enter_stage(StageEntered(claim.lease, Stage.PROVISIONING), now=at(2))
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(3))
    await other.events.append("a note", now=at(3))
    waiting = asyncio.create_task(wakeups.wait(LONG))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await submit(other, spec(), now=at(4))
    await in_time(waiting)


async def test_a_wait_ends_when_its_time_is_over(wakeups: Wakeups) -> None:
    async with asyncio.timeout(LONG / 2):
        await wakeups.wait(0.01)


async def test_what_came_between_two_waits_is_not_lost(store: Store, other: Store, wakeups: Wakeups) -> None:
    for n in range(5):
        await submit(other if n % 2 else store, spec(), now=at(n))
        await in_time(wakeups.wait(LONG))
