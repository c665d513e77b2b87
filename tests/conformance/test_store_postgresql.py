"""What only PostgreSQL can do, or can do to us: go away, come back, wake others, give numbers out of order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, insert, text

from orchestrator.domain.errors import DatabaseUnavailable, NotPossible
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState, Terms
from orchestrator.store import Claim, Store
from orchestrator.store.engine import Database
from orchestrator.store.schema import EVENTS
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, retried, runner, spec, submit, take_one
from tests.postgres import binaries, running_server


async def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    if binaries() is None:
        pytest.skip("no PostgreSQL server is installed")
    with running_server(tmp_path / "server", durable=True) as server:
        async with await Store.open(server.create("mayfly")) as store, store.wakeups() as wakeups:
            await submit(store, spec(), now=T0)
            await asyncio.to_thread(server.kill)
            with pytest.raises(DatabaseUnavailable):
                await submit(store, spec(), now=T0)
            await asyncio.to_thread(server.start)
            await submit(store, spec(), now=T0)
            assert len(await store.tasks.list()) == 2
            async with asyncio.timeout(30):
                await wakeups.wait(60)


async def test_a_password_is_never_shown(tmp_path: Path) -> None:
    for url in (
        f"postgresql://me:geheim@/x?host={tmp_path}",
        "postgresql://me:geheim@localhost:notaport/x",
        "mysql://me:geheim@host/x",
    ):
        with pytest.raises((DatabaseUnavailable, NotPossible)) as refused:
            await Store.open(url)
        told: BaseException | None = refused.value
        while told is not None:
            assert "geheim" not in str(told)
            told = told.__cause__


async def test_a_reader_never_misses_an_event(new_database: Callable[[], str]) -> None:
    url = new_database()
    async with await Store.open(url) as store:
        slow = Database(url)
        row = {"at": datetime.now(UTC), "kind": "note", "data": {}}
        async with slow.writing() as connection:
            await connection.execute(insert(EVENTS).values(**row))
            await store.events.append("later, and committed first", now=T0)
            reading = asyncio.create_task(store.events.list())
            waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            async with asyncio.timeout(30):
                while not (await connection.execute(waits)).scalar_one():
                    pass
            assert not reading.done()
        assert [event.number for event in await reading] == [1, 2]
        await slow.close()


@pytest.fixture
async def pair(new_database: Callable[[], str]) -> AsyncIterator[tuple[Store, Store]]:
    """Two processes' stores on one database."""
    url = new_database()
    async with await Store.open(url) as one, await Store.open(url) as other:
        yield one, other


async def _released(store: Store, claim: Claim) -> None:
    task = await submit(store, spec(), now=T0, hold=True)
    await store.tasks.release(task.id, now=at(5))


async def _requeued(store: Store, claim: Claim) -> None:
    assert await store.tasks.requeue(retried(claim.lease, Reason.RETRY), now=at(5)) is TaskState.QUEUED


async def _let_go(store: Store, claim: Claim) -> None:
    assert await store.tasks.let_go(claim.lease, now=at(5))


async def _admitted(store: Store, claim: Claim) -> None:
    task = await store.tasks.submit(spec(terms=Terms(not_before=at(3))), now=T0, deadline_at=T0 + DAY)
    assert await store.tasks.admit(now=at(5)) == (task.id,)


async def _submitted(store: Store, claim: Claim) -> None:
    await submit(store, spec(), now=at(5))


async def _resumed(store: Store, claim: Claim) -> None:
    await store.queues.pause("small", "", now=at(4))
    assert await store.queues.resume("small", now=at(5))


@pytest.mark.parametrize("change", [_submitted, _released, _admitted, _requeued, _let_go, _resumed])
async def test_who_waits_is_woken_by_the_word_of_another_process(
    pair: tuple[Store, Store], change: Callable[[Store, Claim], Coroutine[Any, Any, None]]
) -> None:
    """The next look would come after the test's deadline."""
    one, other = pair
    claim = await claimed(other)
    await other._bell.close()  # the word of what was submitted so far has gone out
    async with one.wakeups() as wakeups, asyncio.timeout(60):
        await wakeups.wait(3600)  # it listens: what came before is looked at
        waiting = asyncio.create_task(wakeups.wait(3600))
        await change(other, claim)
        await waiting


async def test_word_that_comes_while_nobody_waits_is_not_lost(pair: tuple[Store, Store]) -> None:
    one, other = pair
    async with one.wakeups() as wakeups, asyncio.timeout(60):
        await wakeups.wait(3600)
        await submit(other, spec(), now=T0)
        await submit(other, spec(), now=T0)
        await wakeups.wait(3600)


async def test_nothing_half_written_is_left_when_the_connection_breaks_in_the_middle(
    new_database: Callable[[], str],
) -> None:
    """Each write is broken off at each of its statements in turn, by the server; it is all there, or not at all."""
    url = new_database()
    async with await Store.open(url) as store, await Store.open(url) as other:
        me = await runner(store)
        for place in range(12):
            first = await submit(other, spec(), now=at(1))
            with _broken_at(store, place) as broken:
                try:
                    rows = await store.tasks.submit_many(
                        [spec(terms=Terms(depends_on=(first.id,)))] * 3, now=at(2), deadline_at=T0 + DAY
                    )
                except DatabaseUnavailable:
                    rows = ()
            there = [task for task in await other.tasks.list(limit=100) if first.id in task.spec.terms.depends_on]
            assert len(there) == len(rows) == (0 if broken else 3)
            for task in there:
                assert await other.tasks.unfinished(task.id) == (first.id,)
                assert await kinds(other, task.id) == ["task.submitted"]

            with _broken_at(store, place) as broken_claim:
                try:
                    claim = await take_one(store, me, ["small"], now=at(3), only=first.id)
                except DatabaseUnavailable:
                    claim = None
            task = await other.tasks.get(first.id)
            assert (claim is None) == bool(broken_claim)
            assert task.state is (TaskState.QUEUED if claim is None else TaskState.RUNNING)
            assert len(await other.attempts.of_task(task.id)) == task.attempt == int(claim is not None)
            assert (await kinds(other, task.id)).count("task.claimed") == task.attempt
            if not broken and not broken_claim:
                break
        else:
            raise AssertionError("a write has more statements than were broken off")
        assert place > 1, "it was broken off in the middle, too"


@contextmanager
def _broken_at(store: Store, place: int) -> Iterator[list[str]]:
    """The server ends the connection at the statement of this number of those that the store makes; what is told is
    the statement, if there were so many."""
    engine = store._database._engine.sync_engine
    count = itertools.count()
    broken: list[str] = []

    def before(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if next(count) == place:
            broken.append(statement)
            pid = connection.connection.driver_connection.info.backend_pid
            with psycopg.connect(_conninfo(store), autocommit=True) as own:
                own.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield broken
    finally:
        event.remove(engine, "before_cursor_execute", before)


def _conninfo(store: Store) -> str:
    return store._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
