"""The store, opened: one database, one object for each kind of thing in it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sqlalchemy import insert, select

from orchestrator.store.attempts import Attempts
from orchestrator.store.engine import Database
from orchestrator.store.events import Events
from orchestrator.store.migrate import upgrade
from orchestrator.store.runners import Runners
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
        self.tasks = Tasks(database)
        self.attempts = Attempts(database)
        self.vms = Vms(database)
        self.events = Events(database)
        self.runners = Runners(database)

    @classmethod
    async def open(cls, url: str) -> Store:
        """Open the database, made and migrated if need be. Several processes may do so at once.

        Raises NotPossible (no such database, not ours to write, made by a newer Mayfly) and HostDiskFull.
        """
        database = Database(url)
        await database.prepare()
        try:
            async with database.writing() as connection:
                await connection.run_sync(upgrade)
                found = (await connection.execute(select(INSTALLATION.c.id))).scalar_one_or_none()
                if found is None:
                    found = str(uuid.uuid4())
                    row = {"single": 1, "id": found, "made_at": datetime.now(UTC)}
                    await connection.execute(insert(INSTALLATION).values(row))
        except BaseException:
            await database.close()
            raise
        return cls(database, found)

    async def close(self) -> None:
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
