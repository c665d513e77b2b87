"""One engine. What differs between databases is here, and nowhere else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orchestrator.domain.errors import HostDiskFull, NotPossible, PlatformError

FIELD = "MAYFLY_DATABASE_URL"
BUSY_TIMEOUT_MS = 30_000
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_WRITES = "mayfly_writes"


class Database:
    """Connections for reading and for writing. A block is a transaction: no other I/O belongs inside."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        if self.url.get_backend_name() == "sqlite":
            _make_folder(self.url)
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
        raise NotPossible(
            FIELD, f"not a database URL: {url!r}", "for example sqlite:////var/lib/mayfly/mayfly.db"
        ) from error
    if backend not in _DRIVERS:
        raise NotPossible(FIELD, f"no support for {backend!r} databases", f"use one of {', '.join(_DRIVERS)}")
    if backend == "sqlite" and (not made.database or made.database == ":memory:"):
        raise NotPossible(FIELD, "a database in memory would be lost, and no other process could see it", "name a file")
    return made.set(drivername=_DRIVERS[backend])


def _make_folder(url: URL) -> None:
    folder = Path(url.database or "").absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotPossible(
            FIELD, f"cannot make {folder}: {error.strerror}", "set MAYFLY_HOME to a folder of yours"
        ) from error


def _tame_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        # The driver's own, late BEGIN would let a transaction start as a reader and fail when it turns writer.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # FULL: what we have acknowledged survives a power cut (https://sqlite.org/pragma.html#pragma_synchronous).
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its turn at the start, where busy_timeout makes it wait, not fail.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _told() -> Any:
    """Say what a failure of the database means to a person."""
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code is None:
            raise
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise HostDiskFull(f"no space left for the database: {error.orig}") from error
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY:
                raise PlatformError(f"the database was busy for {BUSY_TIMEOUT_MS // 1000} s") from error
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                raise NotPossible(
                    FIELD, f"the database cannot be written: {error.orig}", "check its owner and mode"
                ) from error
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                raise NotPossible(FIELD, f"{error.orig}", "name another file, or restore a copy") from error
            case _:
                raise
