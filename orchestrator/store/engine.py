"""One engine. What differs between databases is here, and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event, func
from sqlalchemy import select as sql_select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from orchestrator.domain.errors import NotPossible
from orchestrator.store.failures import BUSY_TIMEOUT_MS, FIELD, meaning, told

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_WRITES = "mayfly_writes"
_MIGRATION_LOCK = 5577006791947779411
_POSTGRESQL: dict[str, Any] = {
    # The one that was used last is used first: what it has prepared is needed again.
    "pool_use_lifo": True,
    "connect_args": {"prepare_threshold": 2},
    "pool_size": 8,
    "max_overflow": 8,
    "pool_timeout": BUSY_TIMEOUT_MS / 1000,
}
_CONNECT = {
    "connect_timeout": "10",
    # A server that is gone without a word is noticed (https://www.postgresql.org/docs/15/libpq-connect.html).
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    # Nobody waits for ever for a row, and no process that was stopped in the middle of a transaction keeps others out.
    # Compiling a query takes longer than any of ours does. There is an index for each of them, and the planner, which
    # cannot know how few rows a document brings, is not to read a whole table for three.
    "options": f"-c jit=off -c enable_seqscan=off -c lock_timeout={BUSY_TIMEOUT_MS} "
    f"-c idle_in_transaction_session_timeout={BUSY_TIMEOUT_MS}",
}


class Database:
    """Connections for reading and for writing. A block is a transaction: no other I/O belongs inside."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self.is_postgresql = self.url.get_backend_name() == "postgresql"
        self._engine = self._made(**(_POSTGRESQL if self.is_postgresql else {}))
        self._turn = asyncio.Lock()
        self._writing = self._engine.execution_options(**{_WRITES: True})
        self._reading = self._at_once = self._engine
        if self.is_postgresql:
            _mind_postgresql(self._engine)
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._at_once = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            _tame_sqlite(self._engine)

    def _made(self, **options: Any) -> AsyncEngine:
        try:
            return create_async_engine(
                self.url, json_serializer=partial(json.dumps, allow_nan=False), hide_parameters=True, **options
            )
        except ImportError as error:
            raise NotPossible(
                FIELD, f"the driver for {self.url.drivername} is missing", f"install {error.name}"
            ) from error

    async def prepare(self) -> None:
        """Before the first use. Raises NotPossible when there can be no such database."""
        if not self.is_postgresql:
            await asyncio.to_thread(_prepare_sqlite, self.url.database or "")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the data."""
        with told():
            async with self._reading.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading_at_once(self) -> AsyncIterator[AsyncConnection]:
        """As `reading`, for one question: on PostgreSQL it costs one round trip."""
        if self.is_postgresql:
            with told():
                async with self._at_once.connect() as connection:
                    yield connection
        else:
            async with self.reading() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: all of the block's writes, or none.

        Raises HostDiskFull; DatabaseUnavailable when the database is not there, or was kept busy for too long: then
        nothing was written, or all was and only the word of it was lost.
        """
        if self.is_postgresql:
            with told():
                async with self._writing.begin() as connection:
                    yield connection
            return
        # There is one writer at a time in any case. Here one is woken when it is its turn; SQLite would look again now
        # and then, in no order.
        async with self._turn:
            with told():
                async with self._writing.begin() as connection:
                    yield connection

    @asynccontextmanager
    async def writing_at_once(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, for what is one statement on PostgreSQL, and thereby a transaction of its own there."""
        if self.is_postgresql:
            with told():
                async with self._at_once.connect() as connection:
                    yield connection
        else:
            async with self.writing() as connection:
                yield connection

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction that may change the schema; one process at a time. Otherwise as `writing`."""
        if self.is_postgresql:
            async with self.writing() as connection:
                await connection.execute(sql_select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                yield connection
            return
        # SQLite makes a table anew to change it, which only a connection without foreign keys may do, step 1 of
        # https://www.sqlite.org/lang_altertable.html#otheralter
        engine = self._made(poolclass=NullPool)
        _tame_sqlite(engine, foreign_keys=False)
        try:
            with told():
                async with engine.execution_options(**{_WRITES: True}).begin() as connection:
                    yield connection
                    if (await connection.exec_driver_sql("PRAGMA foreign_key_check")).first() is not None:
                        raise RuntimeError("the migration left a row that refers to none")
        finally:
            await engine.dispose()

    async def close(self) -> None:
        await self._engine.dispose()


def _checked(url: str) -> URL:
    try:
        made = make_url(url)
        backend = made.get_backend_name()
    except (ArgumentError, ValueError):
        # What was wrong is not said: it could quote a password.
        remedy = "write it as sqlite:////var/lib/mayfly/mayfly.db or postgresql://user@host/database"
        raise NotPossible(FIELD, "not a database URL", remedy) from None
    if backend not in _DRIVERS:
        raise NotPossible(FIELD, f"no support for {backend!r} databases", f"use one of {', '.join(_DRIVERS)}")
    if backend == "sqlite" and (not made.database or made.database == ":memory:"):
        raise NotPossible(FIELD, "a database in memory would be lost, and no other process could see it", "name a file")
    if backend == "postgresql":
        made = made.update_query_dict({name: value for name, value in _CONNECT.items() if name not in made.query})
    return made.set(drivername=_DRIVERS[backend])


def _mind_postgresql(engine: AsyncEngine) -> None:
    """A server that was restarted costs nobody an error: before a connection is used it is seen whether there is
    something to read from it. Unasked, a server only says that it goes away. This costs no round trip."""

    @event.listens_for(engine.sync_engine, "checkout")
    def checkout(_connection: object, record: Any, _proxy: object) -> None:
        heard = select.poll()
        heard.register(record.driver_connection.fileno(), select.POLLIN)
        if heard.poll(0):
            raise InvalidatePoolError("the connection was closed")


def _tame_sqlite(engine: AsyncEngine, *, foreign_keys: bool = True) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        # The driver's own, late BEGIN would let a transaction start as a reader and fail when it turns writer.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        # FULL: what we have acknowledged survives a power cut (https://sqlite.org/pragma.html#pragma_synchronous).
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its turn at the start, where busy_timeout makes it wait, not fail.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_sqlite(file: str) -> None:
    """Make the file, if need be, and see that it is a database in WAL mode that may be written.

    Done before the driver opens it, for a driver that cannot open its file leaves a thread behind for a while.
    """
    path = Path(file).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot make {path.parent}: {error.strerror}"
        raise NotPossible(FIELD, problem, "set MAYFLY_HOME to a folder of yours") from error
    with _alone_in(path.parent):
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            raise meaning(error) or error from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time: two that turn a new database to WAL mode at once would get into each other's way."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
