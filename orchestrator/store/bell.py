"""Word to runners that a task may have become ready: NOTIFY on PostgreSQL; on SQLite they look for it in the events.

The word is given after the commit, in a transaction of its own: one that notifies holds a lock of the whole server
while it is flushed to disk, and submitters would take turns. Word that is lost costs a runner a wait for its next look.

On SQLite `PRAGMA data_version` tells, without reading the file, whether another connection has committed anything since
it was last asked (https://www.sqlite.org/pragma.html#pragma_data_version); only then are the newest events looked at.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing

import psycopg
from sqlalchemy.engine import URL

from orchestrator.domain.errors import MayflyError
from orchestrator.store.conditions import one_of
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind

CHANNEL = "mayfly_ready"
# Nothing is written that would have to wait for the disk.
_WORD = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', '')"
LOOK_SECONDS = 0.02
"""How often one looks where nobody gives word; some microseconds each."""
_READY_BY = one_of(
    (
        EventKind.TASK_SUBMITTED,
        EventKind.TASK_RELEASED,
        EventKind.TASK_ADMITTED,
        EventKind.TASK_REQUEUED,
        EventKind.TASK_LET_GO,
        EventKind.QUEUE_RESUMED,
    )
)
_NEWS = f"SELECT max(number), sum(kind IN {_READY_BY}) FROM events WHERE number > ?"  # noqa: S608  our own words alone
AGAIN_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Bell:
    """Rung by those who make tasks ready. What is rung while word goes out goes out as one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rung = False
        self._ringing: asyncio.Task[None] | None = None

    def ring(self) -> None:
        if not self._database.is_postgresql:
            return
        self._rung = True
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring(), name="bell")

    async def _ring(self) -> None:
        while self._rung:
            self._rung = False
            try:
                async with self._database.writing_at_once() as connection:
                    await connection.exec_driver_sql(_WORD)
            except MayflyError as trouble:
                _log.info("runners could not be told of a task: %s", trouble)

    async def close(self) -> None:
        """Wait for the word that is going out."""
        if self._ringing is not None:
            await asyncio.gather(self._ringing, return_exceptions=True)


class Wakeups:
    """`async with store.wakeups() as wakeups: … await wakeups.wait(timeout)`"""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._woken = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109  as `asyncio.wait` has it
        """Return when a task may have become ready since the last call returned, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def __aenter__(self) -> Wakeups:
        url = self._database.url
        ear = self._listen(url) if self._database.is_postgresql else self._look(await _opened(url))
        self._listening = asyncio.create_task(ear, name="wake-ups")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _look(self, connection: sqlite3.Connection) -> None:
        """For ever. Each look is at memory that the processes share, so it keeps nobody waiting."""
        seen = last = None
        with closing(connection):
            while True:
                try:
                    [version] = connection.execute("PRAGMA data_version").fetchone()
                    if last is None:
                        [last] = connection.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
                        self._woken.set()  # for what came while nobody looked
                    elif version != seen:
                        newest, ready = connection.execute(_NEWS, (last,)).fetchone()
                        last = newest or last
                        if ready:
                            self._woken.set()
                    seen = version
                except sqlite3.Error as trouble:  # it is busy for a moment, say, while its log is put in order
                    _log.debug("nobody can wake us for a moment: %s", trouble)
                await asyncio.sleep(LOOK_SECONDS)

    async def _listen(self, url: URL) -> None:
        """For ever, over whatever becomes of the server."""
        conninfo = psycopg.conninfo.make_conninfo(**_parameters(url))
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._woken.set()  # for what came while nobody listened
                    async for _ in connection.notifies():
                        self._woken.set()
            except (psycopg.Error, OSError) as trouble:
                _log.info("nobody can wake us for a while: %s", trouble)
            await asyncio.sleep(AGAIN_SECONDS)


async def _opened(url: URL) -> sqlite3.Connection:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(url.database or "", timeout=0, check_same_thread=False, isolation_level=None)

    return await asyncio.to_thread(connect)


def _parameters(url: URL) -> dict[str, str]:
    """What libpq calls the parts of the URL."""
    translated = url.translate_connect_args(username="user", database="dbname")
    return {name: str(value) for name, value in {**url.query, **translated}.items()}
