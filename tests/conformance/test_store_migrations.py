"""Migrations of databases that are in use: what was in them stays, on either kind, up and down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, bindparam, inspect, text

from orchestrator.domain.errors import NotPossible
from orchestrator.domain.outcome import Exited, Usage
from orchestrator.domain.task import Delivery, Entrypoint, Packages, Stage, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import Decision, Finished, Store, VmRequest
from orchestrator.store.columns import UtcDateTime
from orchestrator.store.encoding import spec_to_json
from orchestrator.store.engine import Database
from orchestrator.store.migrate import configuration, downgrade, revision, upgrade
from orchestrator.store.schema import METADATA
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, runner, spec, submit, take

NEWER = {"terms", "seal", "packages"}
OLD_SPEC = {key: value for key, value in spec_to_json(spec()).items() if key not in NEWER}
HELD = (TaskState.RUNNING, TaskState.WAITING)


@pytest.fixture
async def database(empty_url: str) -> AsyncIterator[Database]:
    """As `empty_url` names it; nothing is in it."""
    made = Database(empty_url)
    await made.prepare()
    yield made
    await made.close()


async def migrated(database: Database, work: Callable[[Connection], object]) -> None:
    async with database.changing() as connection:
        await connection.run_sync(work)


def to_first(connection: Connection) -> None:
    command.upgrade(configuration(connection), "0001")


def to_base(connection: Connection) -> None:
    downgrade(connection, "base")


def back_to_first(connection: Connection) -> None:
    downgrade(connection, "0001")


def tables(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


def differences(connection: Connection) -> list[Any]:
    found: list[Any] = compare_metadata(MigrationContext.configure(connection), METADATA)
    return found


def shape(connection: Connection) -> dict[str, Any]:
    """What Alembic's comparison leaves out, and what it does not, as this database tells it."""
    seen = inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in seen.get_columns(table)],
            "checks": sorted((c["name"], c["sqltext"]) for c in seen.get_check_constraints(table)),
            "foreign keys": sorted((k["name"], k["referred_table"]) for k in seen.get_foreign_keys(table)),
            "indexes": sorted(
                (i["name"], i["unique"], *i["column_names"], *map(str, i.get("dialect_options", {}).values()))
                for i in seen.get_indexes(table)
            ),
            "primary key": seen.get_pk_constraint(table)["constrained_columns"],
        }
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def fill(connection: Connection) -> None:
    """A task of every state, as the first schema has them, with the attempt, VM and event of those that had one."""
    runner = {"id": "r", "host": "here", "pid": 7, "pools": '["small"]', "started_at": T0, "heartbeat_at": T0}
    put(connection, "runners", runner)
    put(connection, "installation", {"single": 1, "id": "mine", "made_at": T0})
    for n, state in enumerate(TaskState):
        begun = state not in (TaskState.NEW, TaskState.QUEUED)
        task = {
            "id": f"t{n}", "name": "naïve", "pool": "small" if n % 2 else "big", "spec": json.dumps(OLD_SPEC),
            "state": state.value, "message": "", "attempt": int(begun), "submitted_at": at(n),
        }  # fmt: skip
        if state in HELD:
            task |= {"runner_id": "r", "lease_expires_at": at(90), "stage": Stage.EXECUTING.value, "started_at": at(9)}
        if state.over:
            task |= {"finished_at": at(99), "exit_code": 3, "reason": "exit_nonzero"}
        put(connection, "tasks", task)
        if begun:
            gone = {"state": "DESTROYED", "destroyed_at": at(50), "close_proof": "DONE"}
            vm = {
                "id": f"v{n}", "cloud_id": n, "pool": "small", "image_version": "1", "task_id": f"t{n}", "attempt": 1,
                "runner_id": "r", "created_at": T0, "moved_at": T0,
            }  # fmt: skip
            put(connection, "vms", vm | (gone if state.over else {"state": "IN_USE", "deadline_at": at(900)}))
            attempt = {
                "task_id": f"t{n}", "number": 1, "runner_id": "r", "vm_id": f"v{n}", "timings": "{}",
                "outcome": '{"kind": "exited", "code": 3}', "artifacts": '{"stdout": "a"}', "environment": "{}",
                "started_at": at(9),
            }  # fmt: skip
            put(connection, "attempts", attempt)
        vm_id = f"v{n}" if begun else None
        put(connection, "events", {"at": T0, "kind": "note", "task_id": f"t{n}", "vm_id": vm_id, "data": '{"n": 1}'})


def put(connection: Connection, table: str, row: dict[str, Any]) -> None:
    words = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)})"
    instants = [bindparam(name, type_=UtcDateTime) for name, value in row.items() if isinstance(value, datetime)]
    connection.execute(text(words).bindparams(*instants), row)


def rows(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All that the first schema's columns hold."""
    return {
        table: sorted(map(tuple, connection.execute(text(f"SELECT {', '.join(names)} FROM {table}"))), key=repr)
        for table, names in FIRST_COLUMNS.items()
    }


FIRST_COLUMNS = {
    "installation": ("single", "id"),
    "runners": ("id", "host", "pid", "started_at", "heartbeat_at", "left_at"),
    "tasks": (
        "id", "name", "pool", "state", "stage", "reason", "message", "exit_code", "attempt", "runner_id",
        "lease_expires_at", "cancel_requested_at", "submitted_at", "started_at", "finished_at",
    ),
    "vms": (
        "id", "cloud_id", "pool", "image_version", "state", "host_key", "address", "task_id", "attempt", "runner_id",
        "created_at", "moved_at", "deadline_at", "destroyed_at", "close_proof",
    ),
    "attempts": ("task_id", "number", "runner_id", "vm_id", "stage", "started_at", "finished_at"),
    "events": ("number", "at", "kind", "task_id", "attempt", "vm_id", "runner_id"),
}  # fmt: skip


async def test_migrations_make_what_the_tables_say(database: Database) -> None:
    await migrated(database, upgrade)
    async with database.changing() as connection:
        assert await connection.run_sync(differences) == []
        made = await connection.run_sync(shape)
        await connection.run_sync(to_base)
        assert await connection.run_sync(tables) == ["alembic_version"]
        await connection.run_sync(METADATA.create_all)
        assert made == await connection.run_sync(shape)


async def test_a_database_in_use_is_brought_up_with_all_that_is_in_it(database: Database, empty_url: str) -> None:
    await migrated(database, to_first)
    await migrated(database, fill)
    async with database.reading() as connection:
        before = await connection.run_sync(rows)
    async with await Store.open(empty_url) as store:
        async with database.reading() as connection:
            assert await connection.run_sync(rows) == before
        assert store.installation_id == "mine"
        tasks = {task.state: task for task in await store.tasks.list()}
        assert set(tasks) == set(TaskState)
        now = datetime.now(UTC)
        for state, task in tasks.items():
            assert (task.frontend, task.priority, task.idempotency_key, task.avoid) == ("local", 0, None, ())
            assert (task.spec, task.spec.terms.delivery) == (spec(), Delivery.AT_LEAST_ONCE)
            assert task.admitted_at == (task.submitted_at if state is TaskState.QUEUED else None)
            if state.over:
                assert task.deadline_at is None
            else:
                assert task.deadline_at is not None and timedelta(days=29) < task.deadline_at - now < timedelta(days=31)
            assert await kinds(store, task.id) == ["note"]
        assert [queue.pool for queue in await store.queues.list()] == ["big", "small"]
        assert len(await store.vms.open()) == 2
        runner = await store.runners.get("r")
        assert runner is not None and (runner.name, runner.pools) == ("here-7", ("small",))
        finished = await store.attempts.get(tasks[TaskState.FINISHED].id, 1)
        assert finished is not None and (finished.outcome, finished.artifacts) == (Exited(3), {"stdout": "a"})

        # and it is of use: what was held is adopted, what waited is claimed
        me = (await store.runners.register(name="new", host="h", pid=1, pools=["small", "big"], now=now)).id
        running = tasks[TaskState.RUNNING]
        adopted = await store.tasks.adopt(me, ["small", "big"], lease_seconds=30, now=now, up_to=9)
        assert running.id in {claim.task.id for claim in adopted}
        [claim] = await take(store, me, ["small", "big"], now=now, up_to=9)
        assert claim.task.id == tasks[TaskState.QUEUED].id
        assert await store.tasks.release(tasks[TaskState.NEW].id, now=now)
        last = (await store.events.list())[-1].number
        assert last > max(row[0] for row in before["events"])


async def test_a_database_in_use_is_taken_back_with_what_the_old_schema_knows(
    database: Database, empty_url: str
) -> None:
    await migrated(database, to_first)
    async with database.reading() as connection:
        first = await connection.run_sync(shape)
    await migrated(database, fill)
    async with database.reading() as connection:
        before = await connection.run_sync(rows)
    await migrated(database, upgrade)
    await migrated(database, back_to_first)
    async with database.reading() as connection:
        assert await connection.run_sync(rows) == before
        assert await connection.run_sync(shape) == first
        assert await connection.run_sync(revision) == "0001"
    async with await Store.open(empty_url) as store:
        one = await submit(store, spec(), now=T0)
        await store.tasks.submit(spec(), now=T0, deadline_at=T0 + DAY, idempotency_key="k", frontend="them")
        await store.schedules.list()
        assert (await store.tasks.get(one.id)).state is TaskState.QUEUED
    await migrated(database, back_to_first)
    async with database.changing() as connection:
        put_one = text("INSERT INTO events (at, kind, data) SELECT submitted_at, 'note', '{}' FROM tasks LIMIT 1")
        await connection.execute(put_one)
        found = (await connection.execute(text("SELECT count(*) FROM tasks"))).scalar_one()
        assert found == len(TaskState) + 2


async def test_what_only_the_newest_schema_knows_is_lost_on_the_way_back_and_nothing_else_is(
    database: Database, empty_url: str
) -> None:
    async with await Store.open(empty_url) as store:
        me = await runner(store)
        vm = await store.vms.request(VmRequest("small", "1", me, at(60)), now=T0)
        assert vm is not None and await store.vms.record_launch(vm.id, ok=False, message="no", host="h", now=T0)
        assert await store.queues.drain("small", "a new image", now=at(1))
        await store.queues.rotate("big", now=at(2))
        due = await submit(store, spec(terms=Terms(not_before=at(60))), now=T0)
    await migrated(database, lambda connection: downgrade(connection, "0002"))
    async with await Store.open(empty_url) as store:
        big, small = await store.queues.list()
        assert (small.paused_at, small.paused_because) == (at(1), "a new image"), "it stays paused"
        assert (small.drained_at, small.drained_because, big.rotated_at) == (None, "", None)
        assert await store.vms.spares() == (replace(vm, host="h"),) and await store.vms.launches(since=T0) == ()
        assert await store.queues.drain("small", "again", now=at(3))
        assert await store.tasks.admit(now=at(60), since=at(50)) == (due.id,)


async def test_layers_reviews_and_receipts_are_lost_on_the_way_back_and_tasks_wait_for_their_packages_again(
    database: Database, empty_url: str
) -> None:
    builder = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
    async with await Store.open(empty_url) as store:
        over = await claimed(store)
        used = Usage(1.0, 2, 3, 4)
        assert await store.attempts.record_outcome(over.lease, Exited(0), used)
        assert await store.tasks.finish(Finished(over.lease, TaskState.FINISHED, exit_code=0), now=at(2))
        assert await store.attempts.record_receipt(over.task.id, 1, "a" * 64, now=at(3))
        await store.reviews.decide(over.task.id, Decision.RELEASED, "ada", "", now=at(3))
        waiting = await submit(store, replace(spec(), packages=Packages("numpy")), now=T0)
        wanted = {waiting.id}
        layer = await store.layers.order("k", "1", builder, for_tasks=wanted, now=at(4), deadline_at=at(999))
    await migrated(database, lambda connection: downgrade(connection, "0003"))
    async with database.reading() as connection:
        assert await connection.run_sync(revision) == "0003"
        assert {"layers", "reviews"}.isdisjoint(await connection.run_sync(tables))
    async with await Store.open(empty_url) as store:
        attempt = await store.attempts.get(over.task.id, 1)
        assert attempt is not None and attempt.usage == replace(used, read_bytes=None, written_bytes=None)
        assert await store.attempts.receipt_due() == ((over.task.id, 1),)
        assert await store.reviews.get(over.task.id) is None
        assert [row.id for row in await store.layers.wanted()] == [waiting.id], "and its builder brings none"
        assert await store.tasks.unfinished(waiting.id) == (layer.task_id,)
        assert await store.tasks.admit(now=at(5)) == ()


async def test_a_key_that_was_used_with_an_older_description_is_still_known(store: Store) -> None:
    options = {"now": T0, "deadline_at": T0 + DAY, "idempotency_key": "k"}
    one = await store.tasks.submit(spec(), **options)
    async with store._database.writing() as connection:
        await connection.execute(text("UPDATE tasks SET spec = :old"), {"old": json.dumps(OLD_SPEC)})
    assert (await store.tasks.submit(spec(), **options)).id == one.id
    with pytest.raises(NotPossible, match="used for another task"):
        await store.tasks.submit(spec(name="other"), **options)


async def test_a_migration_that_fails_changes_nothing(database: Database, empty_url: str) -> None:
    await migrated(database, to_first)
    await migrated(database, fill)
    async with database.changing() as connection:
        await connection.execute(text("CREATE TABLE schedules (mine INTEGER)"))
    async with database.reading() as connection:
        before = await connection.run_sync(rows), await connection.run_sync(shape)
    with pytest.raises(Exception, match="already exists"):
        await Store.open(empty_url)
    async with database.reading() as connection:
        assert before == (await connection.run_sync(rows), await connection.run_sync(shape))
        assert await connection.run_sync(revision) == "0001"


async def test_a_newer_schema_is_refused_untouched(database: Database, empty_url: str) -> None:
    async with await Store.open(empty_url) as store:
        assert (await store.describe()).endswith("schema 0004")
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NotPossible, match=r"newer Mayfly: its schema is 9999.*(another MAYFLY_HOME)") as refused:
        await Store.open(empty_url)
    assert refused.value.field == "MAYFLY_DATABASE_URL"
    async with database.reading() as connection:
        assert await connection.run_sync(revision) == "9999"


async def test_several_that_open_an_old_database_migrate_it_once(database: Database, empty_url: str) -> None:
    await migrated(database, to_first)
    await migrated(database, fill)
    stores = await asyncio.gather(*(Store.open(empty_url) for _ in range(4)))
    for store in stores:
        assert len(await store.tasks.list()) == len(TaskState)
        assert (await store.vms.open())[0].state is VmState.IN_USE
        await store.close()
