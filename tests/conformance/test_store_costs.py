"""What a question costs, counted by the database itself, does not grow with the tasks that wait for something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from sqlalchemy import event

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Entrypoint, Packages, TaskSpec, TaskState, Terms
from orchestrator.store import Finished, Store
from tests.conformance.filling import fill
from tests.conformance.queueing import T0, at, retried, runner, spec, submit, take, take_one

FEW, MANY = 100, 20_000
LATER = Terms(not_before=T0 + timedelta(days=99))

READ = """
SELECT (SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables)
     + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes)
"""
OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Costs:
    """Of what a store does: rows and index entries that PostgreSQL read, scores of steps of SQLite's machine."""

    def __init__(self, store: Store) -> None:
        self.total = 0
        self._database = store._database
        self._bell = store._bell

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        if self._database.is_postgresql:
            before = await self._read()
            yield
            self.total = await self._read() - before
            return
        self.total = 0
        engine = self._database._engine.sync_engine
        event.listen(engine, "begin", self._watch)
        try:
            yield
        finally:
            event.remove(engine, "begin", self._watch)

    def _watch(self, connection: Any) -> None:
        def step() -> int:
            self.total += 1
            return 0

        connection.connection.dbapi_connection.run_async(lambda each: each.set_progress_handler(step, 20))

    async def _read(self) -> int:
        """Each server process adds what it has read at its end, if not before: so all of the store's are ended."""
        url = self._database.url.set(drivername="postgresql", query={"host": self._database.url.query["host"]})
        async with await psycopg.AsyncConnection.connect(url.render_as_string(), autocommit=True) as connection:
            async with asyncio.timeout(30):
                await self._bell.close()  # a connection that is in use is not closed
                await self._database.close()
                while await _number(connection, OTHERS):
                    await asyncio.sleep(0.01)
            before, now = -1, 0
            while before != now:  # they are gone a moment before what they have read is added
                await asyncio.sleep(0.2)
                before, now = now, await _number(connection, READ)
            return now


async def _number(connection: psycopg.AsyncConnection[Any], query: LiteralString) -> int:
    [number] = await (await connection.execute(query)).fetchone() or [0]
    return int(number)


async def grows(store: Store, like: str, ask: Callable[[], Awaitable[object]], on: str | None = None) -> None:
    costs, told = Costs(store), []
    for first, last in ((0, FEW), (FEW, MANY)):
        await fill(store, like, first, last, on)
        async with costs.counted():
            await ask()
        told.append(costs.total)
    few, many = told
    assert many > 0, "nothing was counted"
    assert many < 3 * few + 100, f"{FEW} cost {few}, {MANY} cost {many}"


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_claim_does_not_look_at_what_is_not_ready(store: Store, blocked: bool) -> None:
    me = await runner(store)
    first = await submit(store, spec("other"), now=T0)
    later = await submit(store, spec(terms=Terms(depends_on=(first.id,)) if blocked else LATER), now=T0)
    count = iter(range(99))

    async def ask() -> None:
        assert await take(store, me, ["small"], now=at(1), up_to=3) == ()
        mine = await submit(store, spec(), now=at(next(count)))
        assert await store.tasks.waiting(["small"]) == {"small": 1}
        [claim] = await take(store, me, ["small"], now=at(9), up_to=3)
        assert claim.task.id == mine.id

    await grows(store, later.id, ask, first.id if blocked else None)


@pytest.mark.parametrize("waits", ["ready", "later", "blocked"])
async def test_an_admission_does_not_look_at_what_waits_for_something_else(store: Store, waits: str) -> None:
    me = await runner(store)
    first = await submit(store, spec("other"), now=T0)
    terms = {"ready": Terms(), "later": LATER, "blocked": Terms(depends_on=(first.id,))}[waits]
    like = await submit(store, spec(terms=terms), now=T0)
    rounds = iter(range(1000, 9999, 1000))

    async def ask() -> None:
        """One becomes due, one depended on what has finished."""
        now = next(rounds)
        due = await submit(store, spec("a", terms=Terms(not_before=at(now))), now=at(now - 5))
        other = await submit(store, spec("a"), now=at(now - 5))
        freed = await submit(store, spec("a", terms=Terms(depends_on=(other.id,))), now=at(now - 5))
        claim = await take_one(store, me, ["a"], now=at(now - 4), only=other.id)
        assert claim is not None
        assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(now - 2))
        moved = await store.tasks.admit(now=at(now), since=at(now - 3))
        assert set(moved) == {due.id, freed.id}
        if waits == "ready":  # of the others all may be looked at
            assert await store.tasks.admit(now=at(now)) == ()

    await grows(store, like.id, ask, first.id if waits == "blocked" else None)


@pytest.mark.parametrize("what", ["wanted", "built", "receipts"])
async def test_layers_and_receipts_look_at_what_is_to_be_done_alone(store: Store, what: str) -> None:
    """Not at tasks that wait for their time, or for a layer that is being built, and not at what FINISHED."""
    bringing = replace(spec(terms=LATER), packages=Packages("numpy"))
    builder = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
    laid = await submit(store, bringing, now=T0)
    layer = await store.layers.order("k", "1", builder, for_tasks=[laid.id], now=T0, deadline_at=at(999))
    mine = await submit(store, bringing, now=at(1))
    claim = await take_one(store, await runner(store), ["builds"], now=at(2), only=layer.task_id)
    assert claim is not None
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(3))
    like = layer.task_id if what == "built" else laid.id

    async def ask() -> None:
        match what:
            case "wanted":
                assert [row.id for row in await store.layers.wanted()] == [mine.id]
            case "built":
                assert await store.layers.built() == (layer,)
            case _:
                assert await store.attempts.receipt_due() == ((layer.task_id, 1),)

    await grows(store, like, ask)


async def test_a_claim_of_what_runs_with_a_layer_costs_no_more_the_more_there_are(store: Store) -> None:
    me = await runner(store)
    builder = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
    like = await submit(store, replace(spec(), packages=Packages("numpy")), now=T0)
    layer = await store.layers.order("k", "1", builder, for_tasks=[like.id], now=T0, deadline_at=at(999))
    first = await take_one(store, me, ["builds"], now=at(1), only=layer.task_id)
    assert first is not None
    assert await store.tasks.finish(Finished(first.lease, TaskState.FINISHED, exit_code=0), now=at(2))
    assert await store.layers.ready("k", "blob", [], now=at(3))

    async def ask() -> None:
        claims = await take(store, me, ["small"], now=at(9), up_to=3)
        assert [claim.task.layer for claim in claims] == ["k"] * 3
        for claim in claims:  # as it was, to be copied
            await store.tasks.requeue(retried(claim.lease, Reason.UNREACHABLE), now=at(10))

    await grows(store, like.id, ask)


@pytest.mark.parametrize("what", ["overdue", "expired", "adopt", "beat", "shorten"])
async def test_upkeep_does_not_look_at_what_waits(store: Store, what: str) -> None:
    me = await runner(store)
    ready = await submit(store, spec(), now=T0)
    await take(store, me, ["small"], now=T0, up_to=1)
    like = await submit(store, spec(), now=T0)
    late = await submit(store, spec("big"), now=T0, deadline_at=at(1))
    lease = (await store.tasks.get(ready.id)).lease
    assert lease is not None

    async def ask() -> None:
        match what:
            case "overdue":
                assert [row.id for row in await store.tasks.overdue(now=at(1))] == [late.id]
            case "expired":
                assert len(await store.tasks.expired(now=at(60))) == 1
            case "adopt":
                assert await store.tasks.adopt(await runner(store), ["small"], lease_seconds=30, now=at(60)) == ()
            case "beat":
                assert await store.tasks.beat(me, [lease], lease_seconds=30, now=at(1))
            case _:
                assert await store.tasks.shorten_leases(now=T0, longest_seconds=60) == 0

    await grows(store, like.id, ask)
