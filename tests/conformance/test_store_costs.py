"""What a question costs, counted by the database itself, does not grow with the tasks that wait for something else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from orchestrator.domain.task import Terms
from orchestrator.store import Store
from orchestrator.store.schema import TASKS
from tests.conformance.queueing import DAY, T0, at, runner, spec, submit, take

FEW, MANY = 100, 20_000
LATER = Terms(not_before=T0 + timedelta(days=99))
COPIES = """
WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {last})
INSERT INTO tasks ({columns}) SELECT {values} FROM tasks, numbers WHERE tasks.id = '{like}'
"""
WAITS = """
INSERT INTO dependencies (task_id, on_task_id)
SELECT id, '{on}' FROM tasks WHERE id LIKE 'copy%' AND NOT EXISTS (SELECT 1 FROM dependencies WHERE task_id = id)
"""


class Costs:
    """Of the statements of a store: rows that PostgreSQL's scans looked at, scores of steps of SQLite's machine."""

    def __init__(self, store: Store) -> None:
        self.total = 0
        self._engine = store._database._engine.sync_engine
        self._postgresql = store._database.is_postgresql
        self._explaining = False

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.total = 0
        if self._postgresql:
            event.listen(self._engine, "before_cursor_execute", self._explain)
        else:
            event.listen(self._engine, "begin", self._watch)
        try:
            yield
        finally:
            if self._postgresql:
                event.remove(self._engine, "before_cursor_execute", self._explain)
            else:
                event.remove(self._engine, "begin", self._watch)

    def _watch(self, connection: Any) -> None:
        def step() -> int:
            self.total += 1
            return 0

        connection.connection.dbapi_connection.run_async(lambda each: each.set_progress_handler(step, 20))

    def _explain(self, connection: Any, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        alone = connection.connection.driver_connection.autocommit  # no transaction to undo it in
        if self._explaining or alone or statement.split()[0] not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            return
        self._explaining = True
        try:
            for given in parameters if isinstance(parameters, list) else [parameters]:
                with connection.begin_nested() as undone:
                    done = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", given)
                    found = done.scalar_one()
                    undone.rollback()
                self.total += _read((found if isinstance(found, list) else json.loads(found))[0]["Plan"])
        finally:
            self._explaining = False


def _read(plan: dict[str, Any]) -> int:
    looked = plan["Actual Rows"] + sum(plan.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    scanned = int(looked * plan["Actual Loops"]) if plan["Node Type"].endswith("Scan") else 0
    return scanned + sum(_read(each) for each in plan.get("Plans", []))


async def fill(store: Store, like: str, first: int, last: int, on: str | None = None) -> None:
    """Copies of a task, as if they had been submitted one by one."""
    postgresql = store._database.is_postgresql
    number = "lpad(n::text, 8, '0')" if postgresql else "substr('0000000' || n, -8)"
    row = {column.name: f"tasks.{column.name}" for column in TASKS.c} | {"id": f"'copy' || {number}"}
    async with store._database.writing() as connection:
        words = {"first": first, "last": last, "like": like}
        await connection.execute(text(COPIES.format(columns=", ".join(row), values=", ".join(row.values()), **words)))
        if on is not None:
            await connection.execute(text(WAITS.format(on=on)))
        if postgresql:  # which does so by itself; nobody does on SQLite
            await connection.execute(text("ANALYZE"))


async def grows(store: Store, like: str, ask: Callable[[], Awaitable[object]], on: str | None = None) -> None:
    costs, told = Costs(store), []
    for first, last in ((0, FEW), (FEW, MANY)):
        await fill(store, like, first, last, on)
        with costs.counted():
            await ask()
        told.append(costs.total)
    few, many = told
    assert many > 0, "nothing was counted"
    assert many < 3 * few + 100, f"{FEW} cost {few}, {MANY} cost {many}"


@pytest.fixture
async def on_postgresql(new_database: Callable[[], str]) -> AsyncIterator[Store]:
    """SQLite's planner prefers the index on (state, pool, id), and looks at what is QUEUED and not ready, too."""
    async with await Store.open(new_database()) as opened:
        yield opened


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_claim_does_not_look_at_what_is_not_ready(on_postgresql: Store, blocked: bool) -> None:
    store = on_postgresql
    me = await runner(store)
    first = await submit(store, spec("other"), now=T0)
    later = await submit(store, spec(terms=Terms(depends_on=(first.id,)) if blocked else LATER), now=T0)
    count = iter(range(99))

    async def ask() -> None:
        assert await take(store, me, ["small"], now=at(1), up_to=3) == ()
        mine = await submit(store, spec(), now=at(next(count)))
        [claim] = await take(store, me, ["small"], now=at(9), up_to=3)
        assert claim.task.id == mine.id

    await grows(store, later.id, ask, first.id if blocked else None)


async def test_an_admission_does_not_look_at_what_is_for_later(on_postgresql: Store) -> None:
    store = on_postgresql
    later = await submit(store, spec(terms=LATER), now=T0)
    count = iter(range(99))

    async def ask() -> None:
        assert await store.tasks.admit(now=at(1)) == ()
        due = await store.tasks.submit(spec(terms=Terms(not_before=at(9))), now=at(next(count)), deadline_at=T0 + DAY)
        assert await store.tasks.admit(now=at(9)) == (due.id,)

    await grows(store, later.id, ask)


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
