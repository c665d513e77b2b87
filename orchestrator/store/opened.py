"""The store, opened: one database, one object for each kind of thing in it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sqlalchemy import insert, select

from orchestrator.store.attempts import Attempts
from orchestrator.store.bell import Bell, Wakeups
from orchestrator.store.clock import Clock
from orchestrator.store.engine import Database
from orchestrator.store.events import Events
from orchestrator.store.layers import Layers
from orchestrator.store.leaders import Leaders
from orchestrator.store.migrate import revision, upgrade
from orchestrator.store.queues import Queues
from orchestrator.store.reviews import Reviews
from orchestrator.store.runners import Runners
from orchestrator.store.schedules import Schedules
from orchestrator.store.schema import INSTALLATION
from orchestrator.store.tasks import Tasks
from orchestrator.store.vms import Vms


class Store:
    """`async with await Store.open(url) as store: …`

    installation_id: a UUID made when the database was first opened; it tags what is ours in the cloud.
    """

    def __init__(self, database: Database, installation_id: str) -> None:
        self._database = database
        self.installation_id = installation_id
        self._bell = Bell(database)
        self.clock = Clock(database)
        self.tasks = Tasks(database, self._bell)
        self.queues = Queues(database, self._bell)
        self.leaders = Leaders(database)
        self.layers = Layers(database, self._bell, self.tasks)
        self.reviews = Reviews(database)
        self.schedules = Schedules(database, self.tasks)
        self.attempts = Attempts(database)
        self.vms = Vms(database)
        self.events = Events(database)
        self.runners = Runners(database)

    @classmethod
    async def open(cls, url: str) -> Store:
        """Open the database, made and migrated if need be. Several processes may do so at once.

        Raises NotPossible (no such database, not ours to write, made by a newer Mayfly), HostDiskFull and
        DatabaseUnavailable.
        """
        database = Database(url)
        await database.prepare()
        try:
            async with database.changing() as connection:
                await connection.run_sync(upgrade)
                found = (await connection.execute(select(INSTALLATION.c.id))).scalar_one_or_none()
                if found is None:
                    row = {"single": 1, "id": str(uuid.uuid4()), "made_at": datetime.now(UTC)}
                    await connection.execute(insert(INSTALLATION).values(row))
            # A connection stays open from here on: a disk that fills up later cannot keep SQLite from being read.
            async with database.reading() as connection:
                store = cls(database, (await connection.execute(select(INSTALLATION.c.id))).scalar_one())
            await store.clock.sync()
        except BaseException:
            await database.close()
            raise
        return store

    async def describe(self) -> str:
        """The kind of the database, its version and that of the schema, for people."""
        async with self._database.reading() as connection:
            version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
            schema = await connection.run_sync(revision)
        return f"{'PostgreSQL' if self._database.is_postgresql else 'SQLite'} {version}, schema {schema}"

    def wakeups(self) -> Wakeups:
        """Enter it, and `wait(timeout)` returns when a task may have become ready."""
        return Wakeups(self._database)

    async def close(self) -> None:
        await self._bell.close()
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
