"""The schema: made by migrations alone, refusing what the tables of legal moves do not know."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError

from orchestrator.domain.errors import NotPossible
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Store
from orchestrator.store.engine import Database
from orchestrator.store.migrate import downgrade, upgrade

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home of mine" / "mayfly.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{tmp_path / 'plain.db'}")
    with engine.begin() as opened:
        yield opened
    engine.dispose()


def shape(connection: Connection) -> dict[str, Any]:
    """Everything that Alembic's comparison leaves out, and what it does not."""
    seen = inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(table)],
            "checks": sorted((c["name"], c["sqltext"]) for c in seen.get_check_constraints(table)),
            "foreign keys": sorted(
                (k["name"], *k["constrained_columns"], k["referred_table"]) for k in seen.get_foreign_keys(table)
            ),
            "indexes": sorted((i["name"], *i["column_names"]) for i in seen.get_indexes(table)),
            "primary key": seen.get_pk_constraint(table)["constrained_columns"],
        }
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def test_the_checks_know_every_state_and_stage_of_the_domain(connection: Connection) -> None:
    upgrade(connection)
    checks = {
        (table, c["name"]): c["sqltext"]
        for table in ("tasks", "vms", "attempts")
        for c in inspect(connection).get_check_constraints(table)
    }
    for key, states in {
        ("tasks", "ck_tasks_state"): TaskState,
        ("tasks", "ck_tasks_stage"): Stage,
        ("attempts", "ck_attempts_stage"): Stage,
        ("vms", "ck_vms_state"): VmState,
    }.items():
        words = {word.strip(" '") for word in checks[key].split("(")[-1].rstrip(")").split(",")}
        assert words == {str(state) for state in states}


def test_migrations_run_down_to_nothing_and_up_again(connection: Connection) -> None:
    upgrade(connection)
    before = shape(connection)
    upgrade(connection)
    assert shape(connection) == before
    downgrade(connection, "base")
    assert shape(connection) == {}
    upgrade(connection)
    assert shape(connection) == before


async def test_a_migration_that_fails_leaves_nothing(path: Path, url: str) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE attempts (mine TEXT)")
        other.commit()
        with pytest.raises(OperationalError, match="attempts already exists"):
            await Store.open(url)
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("attempts",)]


@pytest.mark.parametrize(
    "bad, told",
    [
        ("", "not a database URL"),
        ("/var/lib/mayfly.db", "not a database URL"),
        ("mysql://x/y", "no support for 'mysql'"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////dev/null/x/mayfly.db", "cannot make /dev/null/x"),
        ("sqlite:////proc/mayfly.db", "cannot be written"),
        ("sqlite:///{folder}", "cannot be written"),
        ("sqlite:///{text}", "not a database"),
    ],
)
async def test_a_database_that_cannot_be_is_told(tmp_path: Path, bad: str, told: str) -> None:
    (tmp_path / "text").write_text("hello, I am a text file, and no database at all\n" * 100)
    with pytest.raises(NotPossible, match=told) as refused:
        await Store.open(bad.format(folder=tmp_path, text=tmp_path / "text"))
    assert refused.value.field == "MAYFLY_DATABASE_URL" and refused.value.remedy
    assert (tmp_path / "text").read_text().startswith("hello")


async def test_sqlite_is_opened_as_promised(url: str) -> None:
    async with await Store.open(url):
        database = Database(url)
        async with database.reading() as connection:
            found = {
                name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
            }
        await database.close()
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 2}


async def test_the_installation_has_one_id_for_good(url: str, tmp_path: Path) -> None:
    stores = await asyncio.gather(*(Store.open(url) for _ in range(6)))
    for store in stores:
        await store.close()
    async with await Store.open(url) as again, await Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        assert {store.installation_id for store in stores} == {again.installation_id}
        assert other.installation_id != again.installation_id


def test_processes_may_open_a_new_database_at_once(url: str) -> None:
    program = (
        "import asyncio, sys; from orchestrator.store import Store\n"
        "async def main():\n"
        "    async with await Store.open(sys.argv[1]) as store: print(store.installation_id)\n"
        "asyncio.run(main())"
    )
    opened = [
        subprocess.Popen([sys.executable, "-c", program, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [process.communicate(timeout=60)[0] for process in opened]
    assert [process.returncode for process in opened] == [0, 0, 0]
    assert len(set(told)) == 1 and told[0].strip()


TASK = {
    "id": "'t'", "name": "''", "pool": "'p'", "spec": "'{}'", "state": "'QUEUED'", "message": "''", "attempt": "0",
    "submitted_at": "'2026-01-01'", "priority": "0", "delivery": "'at_least_once'", "avoid": "'[]'",
    "deadline_at": "'2026-01-02'",
}  # fmt: skip
HELD = {"state": "'RUNNING'", "runner_id": "'r'", "lease_expires_at": "'2026-01-01'"}
VM = {
    "id": "'v'", "pool": "'p'", "image_version": "'1'", "state": "'BOOTING'", "created_at": "'2026-01-01'",
    "moved_at": "'2026-01-01'", "deadline_at": "'2026-01-01'",
}  # fmt: skip
LAYER = {"key": "'k'", "image_version": "'1'", "task_id": "'t0'", "made_at": "'2026-01-01'"}
BUILT = {"blob": "'b'", "resolved": "'[]'", "ready_at": "'2026-01-01'"}
REVIEW = {"task_id": "'t0'", "decision": "'released'", "by": "'ada'", "why": "''", "at": "'2026-01-01'"}
ATTEMPT = {
    "task_id": "'t0'", "number": "1", "runner_id": "'r'", "timings": "'{}'", "artifacts": "'{}'",
    "environment": "'{}'", "started_at": "'2026-01-01'",
}  # fmt: skip
SIGNED = {"finished_at": "'2026-01-01'", "receipt_sha256": "'a'", "receipt_at": "'2026-01-01'"}
GONE = {"state": "'DESTROYED'", "destroyed_at": "'2026-01-01'", "close_proof": "'DONE'"}


@pytest.mark.parametrize(
    "table, row, fits",
    [
        ("tasks", TASK, True),
        ("tasks", TASK | {"state": "'queued'"}, False),
        ("tasks", TASK | {"state": "'PAUSED'"}, False),
        ("tasks", TASK | HELD, True),
        ("tasks", TASK | HELD | {"runner_id": "NULL"}, False),
        ("tasks", TASK | HELD | {"runner_id": "'nobody'"}, False),
        ("tasks", TASK | HELD | {"lease_expires_at": "NULL"}, False),
        ("tasks", TASK | HELD | {"state": "'QUEUED'"}, False),
        ("tasks", TASK | HELD | {"stage": "'SEALING'"}, True),
        ("tasks", TASK | HELD | {"stage": "'LUNCH'"}, False),
        ("tasks", TASK | {"stage": "'SEALING'"}, False),
        ("tasks", TASK | {"state": "'FAILED'"}, False),
        ("tasks", TASK | {"state": "'FAILED'", "finished_at": "'2026-01-01'"}, True),
        ("tasks", TASK | {"finished_at": "'2026-01-01'"}, False),
        ("tasks", TASK | {"attempt": "-1"}, False),
        ("tasks", TASK | {"brings_packages": "NULL"}, False),
        ("tasks", TASK | {"submitted_by": "NULL"}, False),
        ("vms", VM, True),
        ("vms", VM | {"state": "'READY_AGAIN'"}, False),
        ("vms", VM | {"deadline_at": "NULL"}, False),
        ("vms", VM | GONE, True),
        ("vms", VM | GONE | {"close_proof": "NULL"}, False),
        ("vms", VM | GONE | {"destroyed_at": "NULL"}, False),
        ("vms", VM | {"destroyed_at": "'2026-01-01'"}, False),
        ("vms", VM | {"state": "'IN_USE'"}, False),
        ("vms", VM | {"task_id": "'t0'", "attempt": "1", "state": "'IN_USE'"}, True),
        ("vms", VM | {"task_id": "'t0'"}, False),
        ("vms", VM | {"task_id": "'nobody'", "attempt": "1"}, False),
        ("layers", LAYER, True),
        ("layers", LAYER | BUILT, True),
        ("layers", LAYER | BUILT | {"blob": "NULL"}, False),
        ("layers", LAYER | BUILT | {"ready_at": "NULL"}, False),
        ("layers", LAYER | {"task_id": "'nobody'"}, False),
        ("reviews", REVIEW, True),
        ("reviews", REVIEW | {"decision": "'maybe'"}, False),
        ("reviews", REVIEW | {"task_id": "'nobody'"}, False),
        ("attempts", ATTEMPT | SIGNED, True),
        ("attempts", ATTEMPT | SIGNED | {"finished_at": "NULL"}, False),
        ("attempts", ATTEMPT | SIGNED | {"receipt_at": "NULL"}, False),
        ("installation", {"single": "2", "id": "'x'", "made_at": "'2026-01-01'"}, False),
        (
            "events",
            {"number": "1", "at": "'2026-01-01'", "kind": "'note'", "task_id": "'nobody'", "data": "'{}'"},
            False,
        ),
    ],
)
async def test_the_database_itself_refuses_what_cannot_be(
    url: str, table: str, row: dict[str, str], fits: bool
) -> None:
    await (await Store.open(url)).close()
    database = Database(url)
    try:
        async with database.writing() as connection:
            await connection.execute(
                text(
                    "INSERT INTO runners (id, name, host, pid, pools, started_at, heartbeat_at) "
                    "VALUES ('r', 'r', 'h', 1, '[]', '2026-01-01', '2026-01-01')"
                )
            )
            await _insert(connection, "tasks", TASK | {"id": "'t0'"})
        if fits:
            async with database.writing() as connection:
                await _insert(connection, table, row)
        else:
            with pytest.raises(IntegrityError):
                async with database.writing() as connection:
                    await _insert(connection, table, row)
    finally:
        await database.close()


async def _insert(connection: Any, table: str, row: dict[str, str]) -> None:
    await connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"))


async def test_a_block_that_fails_or_is_canceled_writes_nothing(url: str) -> None:
    await (await Store.open(url)).close()
    database = Database(url)
    inside = asyncio.Event()

    async def write(then: BaseException | None) -> None:
        async with database.writing() as connection:
            await _insert(connection, "tasks", TASK)
            inside.set()
            if then is not None:
                raise then
            await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError):
        await write(ZeroDivisionError())
    inside.clear()
    canceled = asyncio.create_task(write(None))
    await inside.wait()
    canceled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await canceled
    async with database.writing() as connection:  # the lock is free again, too
        assert (await connection.execute(text("SELECT count(*) FROM tasks"))).scalar_one() == 0
    await database.close()
