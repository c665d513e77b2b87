"""What only PostgreSQL can do, or can do to us: go away, come back, wake others, give numbers out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, text

from orchestrator.domain.errors import DatabaseUnavailable, NotPossible
from orchestrator.store import Store
from orchestrator.store.engine import Database
from orchestrator.store.schema import EVENTS
from tests.conformance.queueing import T0, spec, submit
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
