"""What a failure of the database means to a person. The words of the drivers hold no password."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.domain.errors import DatabaseUnavailable, HostDiskFull, MayflyError, NotPossible

FIELD = "MAYFLY_DATABASE_URL"
BUSY_TIMEOUT_MS = 30_000


@contextmanager
def told() -> Iterator[None]:
    """Raise what a failure of the database means, where it means something."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable(f"no connection to the database was free for {BUSY_TIMEOUT_MS // 1000} s") from error
    except DBAPIError as error:
        found = meaning(error.orig)
        if found is None:
            raise
        raise found from error
    except psycopg.Error as error:  # where SQLAlchemy is not asked
        found = meaning(error)
        if found is None:
            raise
        raise found from error


def meaning(error: BaseException | None) -> MayflyError | None:
    """None: only a programmer can say."""
    if isinstance(error, sqlite3.Error):
        return _of_sqlite(error)
    if error is not None and hasattr(error, "sqlstate"):  # psycopg's, which need not be installed
        return _of_postgresql(error.sqlstate, str(error).strip(), type(error).__name__)
    return None


def _of_sqlite(error: sqlite3.Error) -> MayflyError | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        code = sqlite3.SQLITE_FULL
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return HostDiskFull(f"no space left for the database: {error}")
        case sqlite3.SQLITE_BUSY:
            return DatabaseUnavailable(f"the database was busy for {BUSY_TIMEOUT_MS // 1000} s")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return NotPossible(FIELD, f"the database cannot be written: {error}", "check its owner and mode")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return NotPossible(FIELD, f"{error}", "name another file, or restore a copy")
        case _:
            return None


def _of_postgresql(code: str | None, words: str, kind: str) -> MayflyError | None:
    """By the classes of https://www.postgresql.org/docs/15/errcodes-appendix.html. No code: the connection failed."""
    first = words.split("\n", 1)[0]
    match code:
        case None:
            if kind not in ("OperationalError", "InterfaceError", "ConnectionTimeout", "PipelineAborted"):
                return None
            return DatabaseUnavailable(f"the database does not answer: {' '.join(words.split())}")
        case "53100":
            return HostDiskFull(f"no space left for the database: {first}")
        case "40001" | "40P01" | "55P03":
            return DatabaseUnavailable(f"the database was busy: {first}")
        case "25006" | "42501":
            return NotPossible(FIELD, f"the database cannot be written: {first}", "check the rights of its user")
        case "28000" | "28P01" | "3D000":
            return NotPossible(FIELD, first, "check the user, the password and the name of the database")
        case _ if code[:2] in ("08", "53", "57", "58") or code == "25P03":
            return DatabaseUnavailable(f"the database does not answer: {first}")
        case _:
            return None
