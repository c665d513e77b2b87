"""What every database must do with runners: one of a name at a time, and nobody counts on those that leave."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.errors import NotPossible
from orchestrator.store import RunnerRow, Store
from orchestrator.store.runners import ALIVE_SECONDS
from tests.conformance.queueing import at, spec, submit, take_one


async def join(store: Store, seconds: float, name: str = "me", *pools: str) -> RunnerRow:
    return await store.runners.register(name=name, host="here", pid=7, pools=pools or ("small",), now=at(seconds))


async def test_a_living_namesake_is_refused_and_told_of(store: Store) -> None:
    first = await join(store, 0)
    with pytest.raises(NotPossible, match="process 7 on here") as refused:
        await join(store, 10)
    assert refused.value.field == "name" and refused.value.remedy
    assert await store.runners.heartbeat(first.id, now=at(20))
    with pytest.raises(NotPossible):
        await join(store, 20 + ALIVE_SECONDS)
    assert [row.id for row in await store.runners.alive(now=at(21))] == [first.id]
    assert [event.kind for event in await store.events.list()] == ["runner.joined"]
    assert (await join(store, 21, "other")).id != first.id


async def test_a_dead_namesake_is_taken_to_have_left_and_cannot_come_back(store: Store) -> None:
    first = await join(store, 0)
    second = await join(store, 1 + ALIVE_SECONDS)
    assert second.id != first.id
    gone = await store.runners.get(first.id)
    assert gone is not None and gone.left_at == at(1 + ALIVE_SECONDS)
    assert not await store.runners.heartbeat(first.id, now=at(32))
    assert not await store.runners.drain(first.id, now=at(32))
    assert not await store.runners.leave(first.id, now=at(32))
    assert [row.id for row in await store.runners.alive(now=at(32))] == [second.id]


async def test_a_namesake_of_this_host_whose_process_is_gone_is_succeeded_at_once(store: Store) -> None:
    first, asked = await join(store, 0), []

    def gone(pid: int) -> bool:
        asked.append(pid)
        return True

    after = {"name": "me", "pid": 8, "pools": ["small"], "now": at(1)}
    with pytest.raises(NotPossible, match="process 7 on here"):
        await store.runners.register(**after, host="there", gone=gone)
    assert asked == [], "what runs on another host nobody can say"
    with pytest.raises(NotPossible, match="process 7 on here"):
        await store.runners.register(**after, host="here", gone=lambda pid: False)
    second = await store.runners.register(**after, host="here", gone=gone)
    assert asked == [7] and second.pid == 8
    left = await store.runners.get(first.id)
    assert left is not None and left.left_at == at(1)
    assert [row.id for row in await store.runners.alive(now=at(2))] == [second.id]
    assert not await store.runners.heartbeat(first.id, now=at(2))


async def test_of_several_that_succeed_one_runner_one_does(store_url: str, store: Store) -> None:
    await join(store, 0)
    async with await Store.open(store_url) as other:
        joined = await asyncio.gather(
            *(
                each.runners.register(name="me", host="here", pid=8 + n, pools=[], now=at(1), gone=lambda pid: pid == 7)
                for n in range(3)
                for each in (store, other)
            ),
            return_exceptions=True,
        )
    assert len([each for each in joined if isinstance(each, RunnerRow)]) == 1
    assert {type(each) for each in joined} == {RunnerRow, NotPossible}


async def test_a_name_is_free_once_its_runner_has_left(store: Store) -> None:
    first = await join(store, 0)
    assert await store.runners.leave(first.id, now=at(1))
    second = await join(store, 1)
    assert second.id != first.id and second.left_at is None


async def test_of_several_that_join_under_one_name_one_does(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        joined = await asyncio.gather(
            *(join(each, 0) for _ in range(4) for each in (store, other)), return_exceptions=True
        )
    assert len([each for each in joined if isinstance(each, RunnerRow)]) == 1
    assert {type(each) for each in joined} == {RunnerRow, NotPossible}
    assert len(await store.runners.alive(now=at(1))) == 1


async def test_a_runner_that_drains_serves_no_more_and_is_still_there(store: Store) -> None:
    one = await join(store, 0, "one", "small", "big")
    two = await join(store, 0, "two", "small")
    for pool, serves in (("small", True), ("big", True), ("none", False)):
        assert await store.runners.serving(pool, now=at(1)) is serves
    assert await store.runners.drain(one.id, now=at(2))
    assert not await store.runners.drain(one.id, now=at(3))
    assert not await store.runners.drain("nobody", now=at(3))
    row = await store.runners.get(one.id)
    assert row is not None and (row.draining_at, row.left_at) == (at(2), None)
    assert not await store.runners.serving("big", now=at(3))
    assert await store.runners.serving("small", now=at(3))
    assert {each.id for each in await store.runners.alive(now=at(3))} == {one.id, two.id}
    assert await store.runners.heartbeat(one.id, now=at(4))
    with pytest.raises(NotPossible):
        await join(store, 5, "one")
    assert not await store.runners.serving("small", now=at(1 + ALIVE_SECONDS)), "two is silent, one drains"
    assert await store.runners.leave(one.id, now=at(6))
    draining = [(event.kind, event.runner_id) for event in await store.events.list() if event.runner_id == one.id]
    assert draining == [(f"runner.{what}", one.id) for what in ("joined", "draining", "left")]


async def test_those_of_a_pool_are_alive_and_take_more(store: Store) -> None:
    runners = [await join(store, 0, name, "small", "big") for name in ("a", "b", "c", "d")]
    other = await join(store, 0, "other", "big")
    assert await store.runners.drain(runners[0].id, now=at(1))
    assert await store.runners.leave(runners[1].id, now=at(1))
    for each in (*runners, other):
        await store.runners.heartbeat(each.id, now=at(1 if each is runners[2] else 20))
    both = [runners[2].id, runners[3].id]
    assert list(await store.runners.of_pool("small", now=at(21))) == sorted(both)
    assert await store.runners.of_pool("small", now=at(40)) == (runners[3].id,), "one is silent"
    assert await store.runners.of_pool("big", now=at(40)) == tuple(sorted((runners[3].id, other.id)))
    assert await store.runners.of_pool("none", now=at(40)) == ()


async def test_what_a_runner_holds_stays_its_own_while_it_drains(store: Store) -> None:
    me = await join(store, 0)
    await submit(store, spec(), now=at(0))
    claim = await take_one(store, me.id, ["small"], now=at(1))
    assert claim is not None
    assert await store.runners.drain(me.id, now=at(2))
    assert await store.tasks.heartbeat(claim.lease, lease_seconds=30, now=at(3)) is not None


async def test_a_runner_that_serves_other_pools_from_now_on(store: Store) -> None:
    me = await store.runners.register(name="one", host="here", pid=1, pools=["small"], now=at(0))
    assert await store.runners.serves(me.id, ["big", "large"])
    assert [await store.runners.serving(pool, now=at(1)) for pool in ("small", "big", "large")] == [False, True, True]
    assert await store.runners.leave(me.id, now=at(2))
    assert not await store.runners.serves(me.id, ["small"])
