"""What time it is: the database's, so that hosts whose clocks differ agree on leases and deadlines."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from orchestrator.store.engine import Database


class Clock:
    """On PostgreSQL the server's time, carried on by this process's monotonic clock; on SQLite, whose processes all
    share a host, that host's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._synced: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """Aware, in UTC. Until the first `sync`, this host's time."""
        if self._synced is None:
            return datetime.now(UTC)
        then, at = self._synced
        return then + timedelta(seconds=time.monotonic() - at)

    async def sync(self) -> datetime:
        """Ask the database for the time, and go by it from now on; the time. Off by at most half of what it took."""
        if self._database.is_postgresql:
            async with self._database.reading() as connection:
                before = time.monotonic()
                told: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
                after = time.monotonic()
            self._synced = told.astimezone(UTC), (before + after) / 2
        return self.now()
