"""Several schedulers, one of which acts: the leader's lease, and what becomes of one that lost it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.artifacts import Artifacts
from orchestrator.opennebula import Cloud
from orchestrator.scheduler import loop
from orchestrator.scheduler.leader import NAME, Leadership
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Store

DEADLINE = 30.0


async def until(what: str, condition: Callable[[], Any]) -> None:
    """Poll; fail, naming `what`, at a deadline."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


async def test_one_leads_at_a_time_and_each_change_is_a_new_term(store: Store) -> None:
    first, second = Leadership(store, 60), Leadership(store, 60)
    assert await first.ask() and not await second.ask()
    assert await first.ask() and first.sure and await first.holds()
    assert not second.sure and not await second.holds()
    term = first.term
    await first.give_up()
    assert not first.sure
    assert await second.ask()
    assert term is not None and second.term is not None and second.term > term
    assert not await first.ask()


async def test_a_leader_that_dies_is_followed_within_its_lease(store: Store) -> None:
    dead, next_one = Leadership(store, 0.5), Leadership(store, 0.5)
    assert await dead.ask()
    leader = await store.leaders.get(NAME)
    assert leader is not None
    assert await next_one.won(asyncio.Event())
    follower = await store.leaders.get(NAME)
    assert follower is not None and follower.term == leader.term + 1
    begun = follower.expires_at - timedelta(seconds=0.5)
    assert leader.expires_at <= begun < leader.expires_at + timedelta(seconds=5)  # no sooner; and it did not wait long
    assert not dead.sure


async def test_one_whose_term_is_over_never_acts_in_it_again(store: Store) -> None:
    first, second = Leadership(store, 60), Leadership(store, 60)
    assert await first.ask()
    await store.leaders.resign(NAME, first.holder)
    assert await second.ask()
    assert first.sure  # by its own clock, which nobody has told
    assert not await first.holds()
    await second.give_up()
    assert not await first.ask()  # it gets the lease, in a term that it must begin anew
    assert first.term is None


async def test_a_leader_that_cannot_ask_stops_when_its_lease_has_run_out(store: Store) -> None:
    leadership = Leadership(store, 0.3)
    assert await leadership.ask()
    async with store._database.writing() as connection:  # the database answers nobody for as long
        await connection.execute(text("UPDATE leaders SET holder = holder"))
        await asyncio.wait_for(leadership.kept(asyncio.Event()), DEADLINE)
        assert not leadership.sure
    await asyncio.wait_for(leadership.settled(), DEADLINE)


class Rounds:
    """A chore that counts. `hangs`: its rounds do not end by themselves."""

    interval_seconds = 0.02
    looks_twice = False

    def __init__(self) -> None:
        self.begun = 0
        self.given_up = 0
        self.hangs = False

    async def run_once(self) -> list[str]:
        self.begun += 1
        try:
            while self.hangs:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return []


@pytest.fixture
def chores(monkeypatch: pytest.MonkeyPatch) -> list[Rounds]:
    """Those that were made, a new one for each term."""
    made: list[Rounds] = []

    def make(_: Upkeep) -> Rounds:
        made.append(Rounds())
        return made[-1]

    monkeypatch.setattr(loop, "CHORES", {"count": make})
    return made


def upkeep(store: Store, home: Path) -> Upkeep:
    async def read_pools() -> dict[str, Any]:
        return {}

    return Upkeep(store, Artifacts(home), Cloud("http://127.0.0.1:9/RPC2", "nobody:nothing"), {}, read_pools)


async def test_of_two_schedulers_one_acts_and_the_other_when_that_one_ends(
    store: Store, tmp_path: Path, chores: list[Rounds]
) -> None:
    stops = [asyncio.Event(), asyncio.Event()]
    first = asyncio.create_task(loop.serve(upkeep(store, tmp_path), stops[0], leader_seconds=60))
    await until("rounds of the first", lambda: chores and chores[0].begun)
    second = asyncio.create_task(loop.serve(upkeep(store, tmp_path), stops[1], leader_seconds=60))
    begun = chores[0].begun
    await until("more rounds of the first", lambda: chores[0].begun > begun + 5)
    assert len(chores) == 1
    stops[0].set()
    await asyncio.wait_for(first, DEADLINE)
    begun = chores[0].begun
    await until("rounds of the second", lambda: len(chores) == 2 and chores[1].begun > 5)
    assert chores[0].begun == begun
    stops[1].set()
    await asyncio.wait_for(second, DEADLINE)
    last = await store.leaders.get(NAME)
    assert last is None or last.expires_at <= store.clock.now()


async def test_a_round_is_given_up_when_the_lease_is_lost(store: Store, tmp_path: Path, chores: list[Rounds]) -> None:
    stop = asyncio.Event()
    serving = asyncio.create_task(loop.serve(upkeep(store, tmp_path), stop, leader_seconds=0.4))
    await until("a round", lambda: chores and chores[0].begun)
    first = chores[0]
    first.hangs = True
    begun = first.begun
    await until("a round that hangs", lambda: first.begun > begun)
    usurper = Leadership(store, 60)

    async def usurp() -> bool:
        leader = await store.leaders.get(NAME)
        assert leader is not None
        await store.leaders.resign(NAME, leader.holder)
        return await usurper.ask()

    await until("another leads", usurp)
    await until("the round is given up", lambda: first.given_up == 1)
    begun, terms = first.begun, len(chores)
    await usurper.give_up()
    await until("a new term", lambda: len(chores) > terms and chores[-1].begun > 0)
    assert first.begun == begun
    stop.set()
    await asyncio.wait_for(serving, DEADLINE)
