"""One engine. What differs between databases is here, and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orchestrator.domain.errors import HostDiskFull, MayflyError, NotPossible, PlatformError

FIELD = "MAYFLY_DATABASE_URL"
BUSY_TIMEOUT_MS = 30_000
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_WRITES = "mayfly_writes"


class Database:
    """Connections for reading and for writing. A block is a transaction: no other I/O belongs inside."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        try:
            self._engine: AsyncEngine = create_async_engine(
                self.url, json_serializer=partial(json.dumps, allow_nan=False), hide_parameters=True
            )
        except ImportError as error:
            raise NotPossible(
                FIELD, f"the driver for {self.url.drivername} is missing", f"install {error.name}"
            ) from error
        if self.url.get_backend_name() == "sqlite":
            _tame_sqlite(self._engine)
        self._writing = self._engine.execution_options(**{_WRITES: True})

    async def prepare(self) -> None:
        """Before the first use. Raises NotPossible when there can be no such database."""
        if self.url.get_backend_name() == "sqlite":
            await asyncio.to_thread(_prepare_sqlite, self.url.database or "")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the data."""
        with _told():
            async with self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: all of the block's writes, or none.

        Raises HostDiskFull, or PlatformError when other writers kept the database for too long.
        """
        with _told():
            async with self._writing.begin() as connection:
                yield connection

    async def close(self) -> None:
        await self._engine.dispose()


def _checked(url: str) -> URL:
    try:
        made = make_url(url)
        backend = made.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise NotPossible(FIELD, "not a database URL", "write it as sqlite:////var/lib/mayfly/mayfly.db") from error
    if backend not in _DRIVERS:
        raise NotPossible(FIELD, f"no support for {backend!r} databases", f"use one of {', '.join(_DRIVERS)}")
    if backend == "sqlite" and (not made.database or made.database == ":memory:"):
        raise NotPossible(FIELD, "a database in memory would be lost, and no other process could see it", "name a file")
    return made.set(drivername=_DRIVERS[backend])


def _tame_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        # The driver's own, late BEGIN would let a transaction start as a reader and fail when it turns writer.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys = ON")
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
            raise _meaning(error) or error from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time: two that turn a new database to WAL mode at once would get into each other's way."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def _told() -> Iterator[None]:
    """Say what a failure of the database means to a person."""
    try:
        yield
    except DBAPIError as error:
        meaning = _meaning(error.orig)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: BaseException | None) -> MayflyError | None:
    """None: only a programmer can say."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        code = sqlite3.SQLITE_FULL
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return HostDiskFull(f"no space left for the database: {error}")
        case sqlite3.SQLITE_BUSY:
            return PlatformError(f"the database was busy for {BUSY_TIMEOUT_MS // 1000} s")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return NotPossible(FIELD, f"the database cannot be written: {error}", "check its owner and mode")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return NotPossible(FIELD, f"{error}", "name another file, or restore a copy")
        case _:
            return None
